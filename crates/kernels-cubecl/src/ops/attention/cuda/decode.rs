//! Attention of one new query per row over a cache: bound by reading keys and values, each of which is read once.
//!
//! A cube is one key head of one row with all the query heads that share it. Its planes take turns in the keys, a few at a
//! time so that their loads are on the way together; a lane holds every 32nd column. Each plane has a running softmax of its
//! own, and they meet in shared memory at the end, in the order of the planes.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tile::{HIDDEN, span, zeros};

/// Lanes of a plane.
const LANES: usize = 32;
/// Planes of a cube.
const PLANES: usize = 8;
/// Keys that a plane has in hand.
const KEYS: usize = 4;
/// Most accumulators of a lane: more would not stay in registers.
const MAX_HELD: usize = 32;

/// Whether the kernel is for such heads.
pub(super) fn applies(group: usize, per: usize) -> bool {
    group * per <= MAX_HELD
}

/// Threads of a cube.
pub(super) fn cube_dim() -> CubeDim {
    CubeDim::new_2d(LANES as u32, PLANES as u32)
}

/// One new query per row; keys and values as in the general kernel.
#[cube(launch)]
pub(super) fn decode_kernel<F: Float>(
    q: &Array<F>,
    k: &Array<F>,
    v: &Array<F>,
    start: &Array<i32>,
    end: &Array<i32>,
    sinks: &Array<f32>,
    out: &mut Array<F>,
    n_keys: u32,
    kv_stride: u32,
    kv_batch: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] group: usize,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
    #[comptime] sunk: bool,
    #[define(F)] _dtype: StorageType,
) {
    let (kv_head, batch) = (CUBE_POS_X, CUBE_POS_Y);
    let (lane, plane) = (UNIT_POS_X, UNIT_POS_Y);
    let width = comptime!(d_head as u32);
    let base = batch * kv_batch + kv_head * width;
    let q_base = (batch * comptime!(n_heads as u32) + kv_head * comptime!(group as u32)) * width;
    let (from, to) = span(start, end, batch, 0u32, 1u32, n_keys);

    let mut query = zeros(comptime!(group * per));
    let mut acc = zeros(comptime!(group * per));
    let mut most = zeros(group);
    let mut sum = zeros(group);
    #[unroll]
    for g in 0..group {
        most[g] = f32::new(HIDDEN);
        #[unroll]
        for c in 0..per {
            let column = comptime!((c * LANES) as u32) + lane;
            if column < width {
                let at = q_base + comptime!(g as u32) * width + column;
                query[comptime!(g * per + c)] = f32::cast_from(q[at as usize]) * scale;
            }
        }
    }
    let mut key0 = from + plane * comptime!(KEYS as u32);
    while key0 < to {
        let keys = load::<F>(k, base, kv_stride, key0, to, d_head, per);
        let values = load::<F>(v, base, kv_stride, key0, to, d_head, per);
        #[unroll]
        for g in 0..group {
            let mut scores = zeros(KEYS);
            let mut top = most[g];
            #[unroll]
            for j in 0..comptime!(KEYS) {
                let mut part = 0.0f32.runtime();
                #[unroll]
                for c in 0..per {
                    part += query[comptime!(g * per + c)] * keys[comptime!(j * per + c)];
                }
                let seen = key0 + comptime!(j as u32) < to;
                scores[j] = select(seen, plane_sum(part), f32::new(HIDDEN));
                top = max(top, scores[j]);
            }
            let keep = (most[g] - top).exp();
            most[g] = top;
            sum[g] = sum[g] * keep;
            #[unroll]
            for c in 0..per {
                acc[comptime!(g * per + c)] = acc[comptime!(g * per + c)] * keep;
            }
            #[unroll]
            for j in 0..comptime!(KEYS) {
                let seen = key0 + comptime!(j as u32) < to;
                let weight = select(seen, (scores[j] - top).exp(), 0.0f32);
                sum[g] = sum[g] + weight;
                #[unroll]
                for c in 0..per {
                    acc[comptime!(g * per + c)] = acc[comptime!(g * per + c)] + weight * values[comptime!(j * per + c)];
                }
            }
        }
        key0 += comptime!((KEYS * PLANES) as u32);
    }
    finish::<F>(&acc, &most, &sum, sinks, out, q_base, kv_head, from < to, group, d_head, per, sunk);
}

/// The lane's columns of the next keys; zero beyond the last key and the last column.
#[cube]
fn load<F: Float>(
    from: &Array<F>,
    base: u32,
    row_stride: u32,
    first: u32,
    limit: u32,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
) -> Array<f32> {
    let mut held = zeros(comptime!(KEYS * per));
    #[unroll]
    for j in 0..comptime!(KEYS) {
        let key = first + comptime!(j as u32);
        #[unroll]
        for c in 0..per {
            let column = comptime!((c * LANES) as u32) + UNIT_POS_X;
            if key < limit && column < comptime!(d_head as u32) {
                held[comptime!(j * per + c)] = f32::cast_from(from[(base + key * row_stride + column) as usize]);
            }
        }
    }
    held
}

/// Puts the planes' sums together, adds the sink to the normalisation and writes the output.
#[cube]
fn finish<F: Float>(
    acc: &Array<f32>,
    most: &Array<f32>,
    sum: &Array<f32>,
    sinks: &Array<f32>,
    out: &mut Array<F>,
    out_base: u32,
    kv_head: u32,
    sees: bool,
    #[comptime] group: usize,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
    #[comptime] sunk: bool,
) {
    let padded = comptime!((per * LANES) as u32);
    let mut parts = SharedMemory::<f32>::new(comptime!(PLANES * group * per * LANES));
    let mut tops = SharedMemory::<f32>::new(comptime!(PLANES * group));
    let mut sums = SharedMemory::<f32>::new(comptime!(PLANES * group));
    #[unroll]
    for g in 0..group {
        let row = UNIT_POS_Y * comptime!(group as u32) + comptime!(g as u32);
        #[unroll]
        for c in 0..per {
            let column = comptime!((c * LANES) as u32) + UNIT_POS_X;
            parts[(row * padded + column) as usize] = acc[comptime!(g * per + c)];
        }
        if UNIT_POS_X == 0u32 {
            tops[row as usize] = most[g];
            sums[row as usize] = sum[g];
        }
    }
    sync_cube();
    let mut item = UNIT_POS_Y * comptime!(LANES as u32) + UNIT_POS_X;
    while item < comptime!(group as u32) * padded {
        let (head, column) = (item / padded, item % padded);
        let mut top = tops[head as usize];
        if comptime!(sunk) {
            top = max(top, sinks[(kv_head * comptime!(group as u32) + head) as usize]);
        }
        for p in 0..comptime!(PLANES as u32) {
            top = max(top, tops[(p * comptime!(group as u32) + head) as usize]);
        }
        let mut total = 0.0f32.runtime();
        if comptime!(sunk) {
            total = (sinks[(kv_head * comptime!(group as u32) + head) as usize] - top).exp();
        }
        let mut value = 0.0f32.runtime();
        for p in 0..comptime!(PLANES as u32) {
            let row = p * comptime!(group as u32) + head;
            let keep = (tops[row as usize] - top).exp();
            total += sums[row as usize] * keep;
            value += parts[(row * padded + column) as usize] * keep;
        }
        if column < comptime!(d_head as u32) {
            let at = out_base + head * comptime!(d_head as u32) + column;
            let mean = select(sees, value / total, 0.0f32);
            out[at as usize] = F::cast_from(mean);
        }
        item += comptime!((LANES * PLANES) as u32);
    }
}
