//! General attention forward: any element type, head size, length and span; also over a cache.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tile::{HIDDEN, PLANES, ROWS, TILE, accumulate, dot, load, span, zeros};

/// One tile of queries of one head. `sizes` of the buffers: rows of the query buffer are `q_stride` apart, those of a batch
/// row `n_queries·q_stride`; rows of the key buffers are `kv_stride` and batch rows `kv_batch` apart; a row's keys begin at
/// `k_at`, its values at `v_at`.
#[cube(launch)]
pub(super) fn forward_kernel<F: Float>(
    q: &Array<F>,
    k: &Array<F>,
    v: &Array<F>,
    start: &Array<i32>,
    end: &Array<i32>,
    sinks: &Array<f32>,
    out: &mut Array<F>,
    lse: &mut Array<f32>,
    n_queries: u32,
    n_keys: u32,
    q_stride: u32,
    kv_stride: u32,
    kv_batch: u32,
    k_at: u32,
    v_at: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] group: usize,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
    #[comptime] sunk: bool,
    #[define(F)] _dtype: StorageType,
) {
    let first = CUBE_POS_X * comptime!(TILE as u32);
    let head = CUBE_POS_Y;
    let batch = CUBE_POS_Z;
    let kv_head = head / comptime!(group as u32) * comptime!(d_head as u32);
    let tile = comptime!(TILE * (per * TILE + 1));
    let mut queries = SharedMemory::<f32>::new(tile);
    let mut keys = SharedMemory::<f32>::new(tile);
    let mut values = SharedMemory::<f32>::new(tile);
    let q_base = batch * n_queries * q_stride + head * comptime!(d_head as u32);
    load::<F>(q, &mut queries, q_base, q_stride, first, n_queries, d_head, per);

    // The lane's own query, whose span the plane asks for by shuffles.
    let row = first + UNIT_POS_X;
    let (from, to) = span(start, end, batch * n_queries + row, row, n_queries, n_keys);
    let lowest = plane_min(select(from < to, from, n_keys));
    let highest = plane_max(to);

    let mut acc = zeros(comptime!(ROWS * per));
    let mut most = zeros(ROWS);
    let mut sum = zeros(ROWS);
    let mut p = zeros(ROWS);
    #[unroll]
    for r in 0..comptime!(ROWS) {
        most[r] = f32::new(HIDDEN);
    }
    let mut key0 = lowest / comptime!(TILE as u32) * comptime!(TILE as u32);
    while key0 < highest {
        sync_cube();
        load::<F>(k, &mut keys, batch * kv_batch + k_at + kv_head, kv_stride, key0, n_keys, d_head, per);
        load::<F>(v, &mut values, batch * kv_batch + v_at + kv_head, kv_stride, key0, n_keys, d_head, per);
        sync_cube();
        dot(&queries, &keys, &mut p, d_head, per);
        softmax_step(&mut p, &mut most, &mut sum, &mut acc, from, to, key0 + UNIT_POS_X, scale, per);
        accumulate(&p, &values, &mut acc, per);
        key0 += comptime!(TILE as u32);
    }
    finish::<F>(
        &acc, &most, &sum, sinks, out, lse, first, n_queries, head, batch, from, to, n_heads, d_head, per, sunk,
    );
}

/// Turns the scores of a tile into weights relative to the running maximum, and scales what was summed before.
#[cube]
fn softmax_step(
    p: &mut Array<f32>,
    most: &mut Array<f32>,
    sum: &mut Array<f32>,
    acc: &mut Array<f32>,
    from: u32,
    to: u32,
    key: u32,
    scale: f32,
    #[comptime] per: usize,
) {
    #[unroll]
    for r in 0..comptime!(ROWS) {
        let lane = UNIT_POS_Y * comptime!(ROWS as u32) + comptime!(r as u32);
        let seen = key >= plane_shuffle(from, lane) && key < plane_shuffle(to, lane);
        let score = select(seen, p[r] * scale, f32::new(HIDDEN));
        let top = max(most[r], plane_max(score));
        let keep = (most[r] - top).exp();
        let weight = select(seen, (score - top).exp(), 0.0f32);
        sum[r] = sum[r] * keep + plane_sum(weight);
        most[r] = top;
        p[r] = weight;
        #[unroll]
        for c in 0..per {
            acc[comptime!(r * per + c)] = acc[comptime!(r * per + c)] * keep;
        }
    }
}

/// Adds the sink to the normalisation and writes output and log-sum-exp.
#[cube]
fn finish<F: Float>(
    acc: &Array<f32>,
    most: &Array<f32>,
    sum: &Array<f32>,
    sinks: &Array<f32>,
    out: &mut Array<F>,
    lse: &mut Array<f32>,
    first: u32,
    n_queries: u32,
    head: u32,
    batch: u32,
    from: u32,
    to: u32,
    #[comptime] n_heads: usize,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
    #[comptime] sunk: bool,
) {
    #[unroll]
    for r in 0..comptime!(ROWS) {
        let lane = UNIT_POS_Y * comptime!(ROWS as u32) + comptime!(r as u32);
        let row = first + lane;
        let sees = plane_shuffle(from, lane) < plane_shuffle(to, lane);
        let mut top = most[r];
        let mut keep = 1.0f32.runtime();
        let mut total = sum[r];
        if comptime!(sunk) {
            let sink = sinks[head as usize];
            top = max(top, sink);
            keep = (most[r] - top).exp();
            total = sum[r] * keep + (sink - top).exp();
        }
        if row < n_queries {
            let base = ((batch * n_queries + row) * comptime!(n_heads as u32) + head) * comptime!(d_head as u32);
            #[unroll]
            for c in 0..per {
                let column = comptime!((c * TILE) as u32) + UNIT_POS_X;
                if column < comptime!(d_head as u32) {
                    let value = select(sees, acc[comptime!(r * per + c)] * keep / total, 0.0f32);
                    out[(base + column) as usize] = F::cast_from(value);
                }
            }
            if UNIT_POS_X == 0u32 {
                // Without anything to see the sum is 0 and its logarithm −∞.
                lse[((batch * comptime!(n_heads as u32) + head) * n_queries + row) as usize] = top + total.ln();
            }
        }
    }
}

/// Threads of a cube.
pub(super) fn cube_dim() -> CubeDim {
    CubeDim::new_2d(TILE as u32, PLANES as u32)
}
