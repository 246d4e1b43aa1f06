//! Attention backward on the matrix units, without atomics: `dk` and `dv` by blocks of keys, `dq` by blocks of queries.
//!
//! Both make the scores again, so that seven products are computed where five would do; in return every sum has a fixed order.
//! Fast-math flags as in the forward pass.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::mma::{CHUNK, Chunk, Mma, Pair, Sums, THREADS, accumulate, dot, stage, store, zeros};
use super::tile::span;

/// Rows of a block, 16 per plane.
pub(super) const BLOCK: usize = 64;
/// Accumulators of a plane's scores.
const TILES: usize = BLOCK / 8;

/// First query whose span begins at or behind `key`: starts do not decrease within a row.
#[cube]
fn first_start(start: &Array<i32>, base: u32, n_tokens: u32, key: u32) -> u32 {
    let mut low = 0u32;
    let mut high = n_tokens;
    while low < high {
        let middle = (low + high) / 2u32;
        if start[(base + middle) as usize] >= key as i32 {
            high = middle;
        } else {
            low = middle + 1u32;
        }
    }
    low
}

/// Puts log-sum-exp, delta and span of the block's queries into shared memory.
#[cube]
fn stage_rows(
    lse: &Array<f32>,
    delta: &Array<f32>,
    start: &Array<i32>,
    end: &Array<i32>,
    numbers: &mut SharedMemory<f32>,
    spans: &mut SharedMemory<u32>,
    slot: u32,
    item: u32,
    row0: u32,
    first: u32,
    n_tokens: u32,
) {
    let own = UNIT_POS % comptime!(BLOCK as u32);
    let row = first + own;
    let at = (slot * comptime!(2 * BLOCK as u32) + own) as usize;
    if UNIT_POS < comptime!(BLOCK as u32) {
        let mut l = 0.0f32;
        let mut d = 0.0f32;
        if row < n_tokens {
            l = lse[(item + row) as usize];
            d = delta[(item + row) as usize];
        }
        numbers[at] = l;
        numbers[at + BLOCK] = d;
    } else {
        let (from, to) = span(start, end, row0 + row, row, n_tokens, n_tokens);
        spans[at] = from;
        spans[at + BLOCK] = to;
    }
}

/// Scores become probabilities; columns are queries, rows are the plane's keys from `key` on.
#[cube]
fn probabilities(
    p: &mut Sequence<Array<Sums>>,
    numbers: &SharedMemory<f32>,
    spans: &SharedMemory<u32>,
    base: usize,
    key: u32,
    scale: f32,
) {
    let lane = UNIT_POS_PLANE;
    // All 64 queries see all 16 keys of the plane: nothing to hide.
    let low = base + lane as usize;
    let open = spans[low] <= key
        && spans[low + 32usize] <= key
        && spans[low + BLOCK] >= key + 16u32
        && spans[low + comptime!(BLOCK + 32)] >= key + 16u32;
    let masked = !plane_all(open);
    #[unroll]
    for tile in 0..comptime!(TILES) {
        let column = base + comptime!(8 * tile) + ((lane % 4u32) * 2u32) as usize;
        let x = p.index_mut(tile);
        #[unroll]
        for half in 0..2usize {
            let old = x[half];
            let mut new = Sums::empty();
            new[0] = (old[0] * scale - numbers[column]).exp();
            new[1] = (old[1] * scale - numbers[column + 1]).exp();
            x[half] = new;
        }
        if masked {
            #[unroll]
            for half in 0..2usize {
                let row = key + lane / 4u32 + comptime!(8 * half as u32);
                let old = x[half];
                let mut new = Sums::empty();
                new[0] = select(row >= spans[column] && row < spans[column + BLOCK], old[0], 0.0f32);
                let next = column + 1;
                new[1] = select(row >= spans[next] && row < spans[next + BLOCK], old[1], 0.0f32);
                x[half] = new;
            }
        }
    }
}

#[cube(launch_unchecked, fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
pub(crate) fn flash_dkv_kernel(
    qkv: &Array<Chunk>,
    dout: &Array<Chunk>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    start: &Array<i32>,
    end: &Array<i32>,
    dqkv: &mut Array<Pair>,
    n_tokens: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] n_kv_heads: usize,
    #[comptime] d_head: usize,
) {
    let def = Mma::new(16usize, 8usize, 16usize);
    let chunks = comptime!(d_head / CHUNK);
    let stride = comptime!((n_heads + 2 * n_kv_heads) * d_head / CHUNK);
    let plane_row = UNIT_POS / 32u32 * 16u32;
    let key0 = CUBE_POS_X * comptime!(BLOCK as u32);
    let kv_head = CUBE_POS_Y as usize;
    let row0 = CUBE_POS_Z * n_tokens;
    let k_base = row0 as usize * stride + (comptime!(n_heads).runtime() + kv_head) * chunks;
    let tile = comptime!(BLOCK * chunks);
    let mut keys = SharedMemory::<Chunk>::new_aligned(tile, 128usize);
    let mut values = SharedMemory::<Chunk>::new_aligned(tile, 128usize);
    let mut queries = SharedMemory::<Chunk>::new_aligned(comptime!(2 * tile), 128usize);
    let mut upstream = SharedMemory::<Chunk>::new_aligned(comptime!(2 * tile), 128usize);
    let mut numbers = SharedMemory::<f32>::new(comptime!(4 * BLOCK));
    let mut spans = SharedMemory::<u32>::new(comptime!(4 * BLOCK));
    let copied = Barrier::shared(comptime!(THREADS as u32), UNIT_POS == 0u32);
    let none = 0usize.runtime();
    stage(qkv, &mut keys, none, k_base, stride.runtime(), key0, n_tokens, BLOCK, chunks);
    let v_base = k_base + comptime!(n_kv_heads * d_head / CHUNK);
    stage(qkv, &mut values, none, v_base, stride.runtime(), key0, n_tokens, BLOCK, chunks);

    // Blocks of queries from the one beside these keys to the last whose span begins before the end of them.
    let past = first_start(start, row0, n_tokens, key0 + comptime!(BLOCK as u32));
    let block1 = (past + comptime!(BLOCK as u32 - 1)) / comptime!(BLOCK as u32);
    let n_blocks = max(block1, CUBE_POS_X + 1u32) - CUBE_POS_X;
    let total = n_blocks * comptime!((n_heads / n_kv_heads) as u32);
    let mut dk = zeros(chunks);
    let mut dv = zeros(chunks);
    // Turn `turn` starts copying block `turn` and computes block `turn - 1`.
    let mut turn = 0u32;
    while turn <= total {
        if turn > 0u32 {
            copied.wait_parity((turn - 1u32) % 2u32);
            sync_cube();
        }
        if turn < total {
            let head = kv_head * comptime!(n_heads / n_kv_heads) + (turn / n_blocks) as usize;
            let first = (CUBE_POS_X + turn % n_blocks) * comptime!(BLOCK as u32);
            let at = (turn % 2u32) as usize * tile;
            let q_base = row0 as usize * stride + head * chunks;
            stage(qkv, &mut queries, at, q_base, stride.runtime(), first, n_tokens, BLOCK, chunks);
            let o_stride = comptime!(n_heads * d_head / CHUNK).runtime();
            let o_base = row0 as usize * o_stride + head * chunks;
            stage(dout, &mut upstream, at, o_base, o_stride, first, n_tokens, BLOCK, chunks);
            let item = (CUBE_POS_Z * comptime!(n_heads as u32) + head as u32) * n_tokens;
            stage_rows(lse, delta, start, end, &mut numbers, &mut spans, turn % 2u32, item, row0, first, n_tokens);
            copied.commit_copy_async();
            copied.arrive();
        }
        if turn > 0u32 {
            let place = ((turn - 1u32) % 2u32) as usize;
            let (at, base) = (place * tile, place * comptime!(2 * BLOCK));
            let mut p = zeros(TILES);
            dot(&def, &keys, plane_row, &queries, at, &mut p, BLOCK, chunks);
            probabilities(&mut p, &numbers, &spans, base, key0 + plane_row, scale);
            accumulate(&def, &p, &upstream, at, &mut dv, BLOCK, chunks);
            let mut ds = zeros(TILES);
            dot(&def, &values, plane_row, &upstream, at, &mut ds, BLOCK, chunks);
            slopes_of_columns(&p, &mut ds, &numbers, base);
            accumulate(&def, &ds, &queries, at, &mut dk, BLOCK, chunks);
        }
        turn += 1u32;
    }
    let pairs = comptime!(stride * CHUNK / 2).runtime();
    let base = row0 as usize * pairs + (comptime!(n_heads).runtime() + kv_head) * comptime!(d_head / 2);
    store(dqkv, &dk, base, pairs, key0 + plane_row, n_tokens, scale, chunks);
    let base = base + comptime!(n_kv_heads * d_head / 2);
    store(dqkv, &dv, base, pairs, key0 + plane_row, n_tokens, 1.0f32.runtime(), chunks);
}

/// `ds ← p·(dp − delta)`, where columns are queries.
#[cube]
fn slopes_of_columns(
    p: &Sequence<Array<Sums>>,
    ds: &mut Sequence<Array<Sums>>,
    numbers: &SharedMemory<f32>,
    base: usize,
) {
    #[unroll]
    for tile in 0..comptime!(TILES) {
        let column = base + comptime!(BLOCK + 8 * tile) + ((UNIT_POS_PLANE % 4u32) * 2u32) as usize;
        let mut delta = Sums::empty();
        delta[0] = numbers[column];
        delta[1] = numbers[column + 1];
        let x = ds.index_mut(tile);
        let y = p.index(tile);
        #[unroll]
        for half in 0..2usize {
            x[half] = y[half] * (x[half] - delta);
        }
    }
}

/// Log-sum-exp, delta and span of the two queries that a thread holds parts of.
#[derive(CubeType)]
struct Rows {
    lse: Array<f32>,
    delta: Array<f32>,
    from: Array<u32>,
    to: Array<u32>,
}

/// `ds = p·(dp − delta)` from scores and `dp`, where rows are queries and columns keys from `key0` on.
#[cube]
fn slopes_of_rows(
    scores: &Sequence<Array<Sums>>,
    ds: &mut Sequence<Array<Sums>>,
    rows: &Rows,
    key0: u32,
    scale: f32,
    masked: bool,
) {
    #[unroll]
    for tile in 0..comptime!(TILES) {
        let key = key0 + comptime!(8 * tile as u32) + (UNIT_POS_PLANE % 4u32) * 2u32;
        let x = ds.index_mut(tile);
        let y = scores.index(tile);
        #[unroll]
        for half in 0..2usize {
            let score = y[half];
            let dp = x[half];
            let mut new = Sums::empty();
            new[0] = (score[0] * scale - rows.lse[half]).exp() * (dp[0] - rows.delta[half]);
            new[1] = (score[1] * scale - rows.lse[half]).exp() * (dp[1] - rows.delta[half]);
            if masked {
                new[0] = select(key >= rows.from[half] && key < rows.to[half], new[0], 0.0f32);
                new[1] = select(key + 1u32 >= rows.from[half] && key + 1u32 < rows.to[half], new[1], 0.0f32);
            }
            x[half] = new;
        }
    }
}

/// The two queries of this thread, and the bounds of what all queries of the plane see: `(rows, from, to)` with the first and
/// last-but-one key that some query of the cube sees.
#[cube]
fn own_rows(
    lse: &Array<f32>,
    delta: &Array<f32>,
    start: &Array<i32>,
    end: &Array<i32>,
    item: u32,
    row0: u32,
    first: u32,
    n_tokens: u32,
) -> Rows {
    let mut rows = Rows {
        lse: Array::<f32>::new(2usize),
        delta: Array::<f32>::new(2usize),
        from: Array::<u32>::new(2usize),
        to: Array::<u32>::new(2usize),
    };
    #[unroll]
    for half in 0..2usize {
        let row = first + UNIT_POS_PLANE / 4u32 + comptime!(8 * half as u32);
        let (from, to) = span(start, end, row0 + row, row, n_tokens, n_tokens);
        rows.from[half] = from;
        rows.to[half] = to;
        rows.lse[half] = 0.0f32;
        rows.delta[half] = 0.0f32;
        if row < n_tokens {
            rows.lse[half] = lse[(item + row) as usize];
            rows.delta[half] = delta[(item + row) as usize];
        }
    }
    rows
}

#[cube(launch_unchecked, fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
pub(crate) fn flash_dq_kernel(
    qkv: &Array<Chunk>,
    dout: &Array<Chunk>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    start: &Array<i32>,
    end: &Array<i32>,
    dqkv: &mut Array<Pair>,
    n_tokens: u32,
    n_blocks: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] n_kv_heads: usize,
    #[comptime] d_head: usize,
) {
    let def = Mma::new(16usize, 8usize, 16usize);
    let chunks = comptime!(d_head / CHUNK);
    let stride = comptime!((n_heads + 2 * n_kv_heads) * d_head / CHUNK);
    let o_stride = comptime!(n_heads * d_head / CHUNK).runtime();
    let plane_row = UNIT_POS / 32u32 * 16u32;
    // Long rows first.
    let first = (n_blocks - 1u32 - CUBE_POS_X) * comptime!(BLOCK as u32);
    let head = CUBE_POS_Y as usize;
    let row0 = CUBE_POS_Z * n_tokens;
    let item = (CUBE_POS_Z * comptime!(n_heads as u32) + CUBE_POS_Y) * n_tokens;
    let k_head = comptime!(n_heads).runtime() + head / comptime!(n_heads / n_kv_heads);
    let k_base = row0 as usize * stride + k_head * chunks;
    let v_base = k_base + comptime!(n_kv_heads * d_head / CHUNK);
    let tile = comptime!(BLOCK * chunks);
    let mut queries = SharedMemory::<Chunk>::new_aligned(tile, 128usize);
    let mut upstream = SharedMemory::<Chunk>::new_aligned(tile, 128usize);
    let mut keys = SharedMemory::<Chunk>::new_aligned(comptime!(2 * tile), 128usize);
    let mut values = SharedMemory::<Chunk>::new_aligned(comptime!(2 * tile), 128usize);
    let copied = Barrier::shared(comptime!(THREADS as u32), UNIT_POS == 0u32);
    let none = 0usize.runtime();
    let q_base = row0 as usize * stride + head * chunks;
    stage(qkv, &mut queries, none, q_base, stride.runtime(), first, n_tokens, BLOCK, chunks);
    let o_base = row0 as usize * o_stride + head * chunks;
    stage(dout, &mut upstream, none, o_base, o_stride, first, n_tokens, BLOCK, chunks);

    let rows = own_rows(lse, delta, start, end, item, row0, first + plane_row, n_tokens);
    let whole_from = plane_max(max(rows.from[0], rows.from[1]));
    let whole_to = plane_min(min(rows.to[0], rows.to[1]));
    let (block0, block1) = blocks(&rows, n_tokens);
    let mut dq = zeros(chunks);
    let total = block1 - block0;
    let mut turn = 0u32;
    while turn <= total {
        if turn > 0u32 {
            copied.wait_parity((turn - 1u32) % 2u32);
            sync_cube();
        }
        if turn < total {
            let at = (turn % 2u32) as usize * tile;
            let key0 = (block0 + turn) * comptime!(BLOCK as u32);
            stage(qkv, &mut keys, at, k_base, stride.runtime(), key0, n_tokens, BLOCK, chunks);
            stage(qkv, &mut values, at, v_base, stride.runtime(), key0, n_tokens, BLOCK, chunks);
            copied.commit_copy_async();
            copied.arrive();
        }
        if turn > 0u32 {
            let at = ((turn - 1u32) % 2u32) as usize * tile;
            let key0 = (block0 + turn - 1u32) * comptime!(BLOCK as u32);
            let mut scores = zeros(TILES);
            dot(&def, &queries, plane_row, &keys, at, &mut scores, BLOCK, chunks);
            let mut ds = zeros(TILES);
            dot(&def, &upstream, plane_row, &values, at, &mut ds, BLOCK, chunks);
            let masked = key0 < whole_from || key0 + comptime!(BLOCK as u32) > whole_to;
            slopes_of_rows(&scores, &mut ds, &rows, key0, scale, masked);
            accumulate(&def, &ds, &keys, at, &mut dq, BLOCK, chunks);
        }
        turn += 1u32;
    }
    let pairs = comptime!(stride * CHUNK / 2).runtime();
    let base = row0 as usize * pairs + head * comptime!(d_head / 2);
    store(dqkv, &dq, base, pairs, first + plane_row, n_tokens, scale, chunks);
}

/// First and last-but-one block of keys that some query of the cube sees.
#[cube]
fn blocks(rows: &Rows, n_tokens: u32) -> (u32, u32) {
    let planes = comptime!(THREADS / 32);
    let mut bounds = SharedMemory::<u32>::new(comptime!(2 * planes));
    let low0 = select(rows.from[0] < rows.to[0], rows.from[0], n_tokens);
    let low1 = select(rows.from[1] < rows.to[1], rows.from[1], n_tokens);
    let low = plane_min(min(low0, low1));
    let high = plane_max(max(rows.to[0], rows.to[1]));
    if UNIT_POS_PLANE == 0u32 {
        bounds[(UNIT_POS / 32u32) as usize] = low;
        bounds[(UNIT_POS / 32u32) as usize + planes] = high;
    }
    sync_cube();
    let mut lowest = bounds[0];
    let mut highest = bounds[planes];
    #[unroll]
    for i in 1..planes {
        lowest = min(lowest, bounds[i]);
        highest = max(highest, bounds[i + planes]);
    }
    let block1 = (highest + comptime!(BLOCK as u32 - 1)) / comptime!(BLOCK as u32);
    (min(lowest / comptime!(BLOCK as u32), block1), block1)
}
