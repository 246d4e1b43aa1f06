//! General attention backward without atomics: `delta`, `dq` by tiles of queries, `dk` and `dv` by tiles of keys, sinks.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tile::{ROWS, TILE, accumulate, dot, load, span, store, zeros};
use crate::cuda::reduce::cube_sum;

/// `delta[b, n, t] = Σ dout·out` over the head: a plane per row and head.
#[cube(launch)]
pub(super) fn delta_kernel<F: Float>(
    dout: &Array<F>,
    out: &Array<F>,
    delta: &mut Array<f32>,
    n_queries: u32,
    n_items: u32,
    #[comptime] n_heads: usize,
    #[comptime] d_head: usize,
    #[comptime] planes: usize,
    #[define(F)] _dtype: StorageType,
) {
    let item = CUBE_POS_X * comptime!(planes as u32) + UNIT_POS_Y;
    let mut sum = 0.0f32;
    if item < n_items {
        let mut i = UNIT_POS_X;
        while i < comptime!(d_head as u32) {
            let at = (item * comptime!(d_head as u32) + i) as usize;
            sum += f32::cast_from(dout[at]) * f32::cast_from(out[at]);
            i += comptime!(TILE as u32);
        }
    }
    let total = plane_sum(sum);
    if item < n_items && UNIT_POS_X == 0u32 {
        let token = item / comptime!(n_heads as u32);
        let head = item % comptime!(n_heads as u32);
        let batch = token / n_queries;
        delta[((batch * comptime!(n_heads as u32) + head) * n_queries + token % n_queries) as usize] = total;
    }
}

/// `dsinks[n] = −Σ exp(sink − L)·delta` over all queries: a cube per head.
#[cube(launch)]
pub(super) fn sinks_kernel<F: Float>(
    sinks: &Array<f32>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    dsinks: &mut Array<F>,
    n_queries: u32,
    n_items: u32,
    #[comptime] n_heads: usize,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let head = CUBE_POS_X;
    let sink = sinks[head as usize];
    let mut sum = 0.0f32;
    let mut i = UNIT_POS;
    while i < n_items {
        let batch = i / n_queries;
        let at = ((batch * comptime!(n_heads as u32) + head) * n_queries + i % n_queries) as usize;
        sum += (sink - lse[at]).exp() * delta[at];
        i += comptime!(threads as u32);
    }
    let total = cube_sum(sum, threads);
    if UNIT_POS == 0u32 {
        dsinks[head as usize] = F::cast_from(0.0f32 - total);
    }
}

/// `dq` of one tile of queries of one head, over fused rows.
#[cube(launch)]
pub(super) fn dq_kernel<F: Float>(
    qkv: &Array<F>,
    dout: &Array<F>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    start: &Array<i32>,
    end: &Array<i32>,
    dqkv: &mut Array<F>,
    n_tokens: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] n_kv_heads: usize,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
    #[define(F)] _dtype: StorageType,
) {
    let first = CUBE_POS_X * comptime!(TILE as u32);
    let head = CUBE_POS_Y;
    let batch = CUBE_POS_Z;
    let h = comptime!(d_head as u32);
    let stride = comptime!(((n_heads + 2 * n_kv_heads) * d_head) as u32);
    let o_stride = comptime!((n_heads * d_head) as u32);
    let row_base = batch * n_tokens;
    let k_base = row_base * stride + (comptime!(n_heads as u32) + head / comptime!((n_heads / n_kv_heads) as u32)) * h;
    let tile = comptime!(TILE * (per * TILE + 1));
    let mut queries = SharedMemory::<f32>::new(tile);
    let mut upstream = SharedMemory::<f32>::new(tile);
    let mut keys = SharedMemory::<f32>::new(tile);
    let mut values = SharedMemory::<f32>::new(tile);
    load::<F>(qkv, &mut queries, row_base * stride + head * h, stride, first, n_tokens, d_head, per);
    load::<F>(dout, &mut upstream, row_base * o_stride + head * h, o_stride, first, n_tokens, d_head, per);

    let row = first + UNIT_POS_X;
    let (from, to) = span(start, end, row_base + row, row, n_tokens, n_tokens);
    let mut own_lse = 0.0f32;
    let mut own_delta = 0.0f32;
    if row < n_tokens {
        let at = ((batch * comptime!(n_heads as u32) + head) * n_tokens + row) as usize;
        own_lse = lse[at];
        own_delta = delta[at];
    }
    let lowest = plane_min(select(from < to, from, n_tokens));
    let highest = plane_max(to);
    let mut acc = zeros(comptime!(ROWS * per));
    let mut scores = zeros(ROWS);
    let mut slopes = zeros(ROWS);
    let mut key0 = lowest / comptime!(TILE as u32) * comptime!(TILE as u32);
    while key0 < highest {
        sync_cube();
        load::<F>(qkv, &mut keys, k_base, stride, key0, n_tokens, d_head, per);
        let v_base = k_base + comptime!((n_kv_heads * d_head) as u32);
        load::<F>(qkv, &mut values, v_base, stride, key0, n_tokens, d_head, per);
        sync_cube();
        dot(&queries, &keys, &mut scores, d_head, per);
        dot(&upstream, &values, &mut slopes, d_head, per);
        let key = key0 + UNIT_POS_X;
        #[unroll]
        for r in 0..comptime!(ROWS) {
            let lane = UNIT_POS_Y * comptime!(ROWS as u32) + comptime!(r as u32);
            let seen = key >= plane_shuffle(from, lane) && key < plane_shuffle(to, lane);
            let p = (scores[r] * scale - plane_shuffle(own_lse, lane)).exp();
            slopes[r] = select(seen, p * (slopes[r] - plane_shuffle(own_delta, lane)), 0.0f32);
        }
        accumulate(&slopes, &keys, &mut acc, per);
        key0 += comptime!(TILE as u32);
    }
    store::<F>(dqkv, &acc, row_base * stride + head * h, stride, first, n_tokens, scale, d_head, per);
}

/// `dk` and `dv` of one tile of keys of one key head, over all query heads that share it.
#[cube(launch)]
pub(super) fn dkv_kernel<F: Float>(
    qkv: &Array<F>,
    dout: &Array<F>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    start: &Array<i32>,
    end: &Array<i32>,
    dqkv: &mut Array<F>,
    n_tokens: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] n_kv_heads: usize,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
    #[define(F)] _dtype: StorageType,
) {
    let first = CUBE_POS_X * comptime!(TILE as u32);
    let kv_head = CUBE_POS_Y;
    let batch = CUBE_POS_Z;
    let h = comptime!(d_head as u32);
    let stride = comptime!(((n_heads + 2 * n_kv_heads) * d_head) as u32);
    let o_stride = comptime!((n_heads * d_head) as u32);
    let group = comptime!((n_heads / n_kv_heads) as u32);
    let row_base = batch * n_tokens;
    let k_base = row_base * stride + (comptime!(n_heads as u32) + kv_head) * h;
    let v_base = k_base + comptime!((n_kv_heads * d_head) as u32);
    let tile = comptime!(TILE * (per * TILE + 1));
    let mut keys = SharedMemory::<f32>::new(tile);
    let mut values = SharedMemory::<f32>::new(tile);
    let mut queries = SharedMemory::<f32>::new(tile);
    let mut upstream = SharedMemory::<f32>::new(tile);
    load::<F>(qkv, &mut keys, k_base, stride, first, n_tokens, d_head, per);
    load::<F>(qkv, &mut values, v_base, stride, first, n_tokens, d_head, per);
    let mut dk = zeros(comptime!(ROWS * per));
    let mut dv = zeros(comptime!(ROWS * per));
    let mut p = zeros(ROWS);
    let mut slopes = zeros(ROWS);
    let last_key = first + comptime!(TILE as u32);
    for g in 0..group {
        let head = kv_head * group + g;
        // No query before a key sees it, and starts do not decrease: past the first start behind the tile nobody sees it.
        let mut query0 = first;
        while query0 < n_tokens {
            let row = query0 + UNIT_POS_X;
            let (from, to) = span(start, end, row_base + row, row, n_tokens, n_tokens);
            if plane_any(from < last_key && to > first) {
                sync_cube();
                load::<F>(qkv, &mut queries, row_base * stride + head * h, stride, query0, n_tokens, d_head, per);
                load::<F>(dout, &mut upstream, row_base * o_stride + head * h, o_stride, query0, n_tokens, d_head, per);
                sync_cube();
                dot(&keys, &queries, &mut p, d_head, per);
                dot(&values, &upstream, &mut slopes, d_head, per);
                let mut own_lse = 0.0f32;
                let mut own_delta = 0.0f32;
                if row < n_tokens {
                    let at = ((batch * comptime!(n_heads as u32) + head) * n_tokens + row) as usize;
                    own_lse = lse[at];
                    own_delta = delta[at];
                }
                #[unroll]
                for r in 0..comptime!(ROWS) {
                    let key = first + UNIT_POS_Y * comptime!(ROWS as u32) + comptime!(r as u32);
                    let seen = key >= from && key < to;
                    let weight = select(seen, (p[r] * scale - own_lse).exp(), 0.0f32);
                    slopes[r] = select(seen, weight * (slopes[r] - own_delta), 0.0f32);
                    p[r] = weight;
                }
                accumulate(&p, &upstream, &mut dv, per);
                accumulate(&slopes, &queries, &mut dk, per);
            }
            query0 += comptime!(TILE as u32);
            // Rows that see nothing say nothing about the starts of later ones.
            if plane_all(from < to && from >= last_key) {
                query0 = n_tokens;
            }
        }
    }
    store::<F>(dqkv, &dk, k_base, stride, first, n_tokens, scale, d_head, per);
    store::<F>(dqkv, &dv, v_base, stride, first, n_tokens, 1.0f32.runtime(), d_head, per);
}
