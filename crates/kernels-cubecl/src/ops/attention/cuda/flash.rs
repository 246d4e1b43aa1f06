//! Attention forward on the matrix units: bf16, head sizes 64 and 128, any length, spans and sinks.
//!
//! A cube owns [`QUERIES`] queries of one head, a plane 32 of them. Blocks of [`KEYS`] keys stream through shared memory from
//! the first to the last that some query of the cube sees; scores, weights and output stay in registers. Masks are applied
//! only in blocks that some query of the plane does not see whole.
//!
//! The fast-math flags only choose `ex2.approx`, which carries NaN and infinities on.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]
#![allow(clippy::manual_is_multiple_of, reason = "kernels have no such method")]

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::mma::{CHUNK, Chunk, Mma, Pair, Sums, THREADS, place, stage, zeros};
use super::tile::span;

/// Planes of a cube.
const PLANES: usize = THREADS / 32;
/// Queries of a cube.
pub(super) const QUERIES: usize = 32 * PLANES;
/// Keys of a block.
const KEYS: usize = 64;
/// Accumulators of a plane's scores for 16 queries.
const TILES: usize = KEYS / 8;
/// Score of a hidden key: far below real ones, and finite after the factor.
const HIDDEN: f32 = -1.0e34;

/// What one thread knows of the four queries that it holds parts of.
#[derive(CubeType)]
struct Rows {
    from: Array<u32>,
    to: Array<u32>,
    most: Array<f32>,
    sum: Array<f32>,
}

#[cube(launch_unchecked, fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
pub(crate) fn flash_kernel(
    qkv: &Array<Chunk>,
    start: &Array<i32>,
    end: &Array<i32>,
    sinks: &Array<f32>,
    out: &mut Array<Pair>,
    lse: &mut Array<f32>,
    n_tokens: u32,
    n_blocks: u32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] n_kv_heads: usize,
    #[comptime] d_head: usize,
    #[comptime] sunk: bool,
) {
    let chunks = comptime!(d_head / CHUNK);
    let stride = comptime!((n_heads + 2 * n_kv_heads) * d_head / CHUNK);
    let first = (n_blocks - 1u32 - CUBE_POS_X) * comptime!(QUERIES as u32);
    let head = CUBE_POS_Y as usize;
    let row0 = CUBE_POS_Z as usize * n_tokens as usize;
    let k_head = comptime!(n_heads).runtime() + head / comptime!(n_heads / n_kv_heads);
    let k_base = row0 * stride + k_head * chunks;
    let v_base = k_base + comptime!(n_kv_heads * d_head / CHUNK);
    let plane_row = UNIT_POS / 32u32 * 32u32;

    let mut queries = SharedMemory::<Chunk>::new_aligned(comptime!(QUERIES * chunks), 128usize);
    let mut keys = SharedMemory::<Chunk>::new_aligned(comptime!(KEYS * chunks), 128usize);
    let mut values = SharedMemory::<Chunk>::new_aligned(comptime!(KEYS * chunks), 128usize);
    let keys_in = Barrier::shared(comptime!(THREADS as u32), UNIT_POS == 0u32);
    let values_in = Barrier::shared(comptime!(THREADS as u32), UNIT_POS == 0u32);

    let own = first + UNIT_POS;
    let (from, to) = span(start, end, row0 as u32 + own, own, n_tokens, n_tokens);
    let exists = own < n_tokens;
    let whole_from = plane_max(from);
    let whole_to = plane_min(select(exists, to, n_tokens));
    let (block0, block1) = blocks(from, to, n_tokens);
    let mut rows = own_rows(from, to);
    let mut acc = zeros(comptime!(2 * d_head / 8));
    let none = 0usize.runtime();
    if block0 < block1 {
        let q_base = row0 * stride + head * chunks;
        stage(qkv, &mut queries, none, q_base, stride.runtime(), first, n_tokens, QUERIES, chunks);
        let key0 = block0 * comptime!(KEYS as u32);
        stage(qkv, &mut keys, none, k_base, stride.runtime(), key0, n_tokens, KEYS, chunks);
        keys_in.commit_copy_async();
        keys_in.arrive();
    }
    let mut phase = 0u32;
    for block in block0..block1 {
        let key0 = block * comptime!(KEYS as u32);
        keys_in.wait_parity(phase);
        // All threads are done with the values of the block before.
        sync_cube();
        stage(qkv, &mut values, none, v_base, stride.runtime(), key0, n_tokens, KEYS, chunks);
        values_in.commit_copy_async();
        values_in.arrive();
        let mut scores = zeros(comptime!(2 * TILES));
        score(&queries, &keys, plane_row, &mut scores, chunks);
        values_in.wait_parity(phase);
        // All threads are done with the keys of this block.
        sync_cube();
        if block + 1u32 < block1 {
            let next = key0 + comptime!(KEYS as u32);
            stage(qkv, &mut keys, none, k_base, stride.runtime(), next, n_tokens, KEYS, chunks);
            keys_in.commit_copy_async();
            keys_in.arrive();
        }
        if key0 < whole_from || key0 + comptime!(KEYS as u32) > whole_to {
            hide(&mut scores, &rows, key0);
        }
        soften(&mut scores, &mut acc, &mut rows, scale, d_head);
        weigh(&scores, &values, &mut acc, d_head);
        phase ^= 1u32;
    }
    let item = (CUBE_POS_Z * comptime!(n_heads as u32) + CUBE_POS_Y) * n_tokens;
    let base = (row0 * n_heads + head) * comptime!(d_head / 2);
    let mut sink = 0.0f32;
    if comptime!(sunk) {
        sink = sinks[head];
    }
    finish(out, lse, &acc, &mut rows, first + plane_row, n_tokens, item, base, sink, scale, n_heads, d_head, sunk);
}

/// First and last-but-one block that some query of the cube sees.
#[cube]
fn blocks(from: u32, to: u32, n_tokens: u32) -> (u32, u32) {
    let mut bounds = SharedMemory::<u32>::new(comptime!(2 * PLANES));
    let low = plane_min(select(from < to, from, n_tokens));
    let high = plane_max(to);
    if UNIT_POS_PLANE == 0u32 {
        bounds[(UNIT_POS / 32u32) as usize] = low;
        bounds[(UNIT_POS / 32u32) as usize + PLANES] = high;
    }
    sync_cube();
    let mut lowest = bounds[0];
    let mut highest = bounds[PLANES];
    #[unroll]
    for i in 1..PLANES {
        lowest = min(lowest, bounds[i]);
        highest = max(highest, bounds[i + PLANES]);
    }
    let block0 = lowest / comptime!(KEYS as u32);
    let block1 = (highest + comptime!(KEYS as u32 - 1)) / comptime!(KEYS as u32);
    (min(block0, block1), block1)
}

/// The four queries of this thread: two tiles of 16, and in each rows `lane / 4` and `lane / 4 + 8`.
#[cube]
fn own_rows(from: u32, to: u32) -> Rows {
    let mut rows = Rows {
        from: Array::<u32>::new(4usize),
        to: Array::<u32>::new(4usize),
        most: Array::<f32>::new(4usize),
        sum: Array::<f32>::new(4usize),
    };
    #[unroll]
    for r in 0..4usize {
        let lane = comptime!((r / 2 * 16 + r % 2 * 8) as u32) + UNIT_POS_PLANE / 4u32;
        rows.from[r] = plane_shuffle(from, lane);
        rows.to[r] = plane_shuffle(to, lane);
        rows.most[r] = f32::new(HIDDEN);
        rows.sum[r] = 0.0f32;
    }
    rows
}

/// Scores of the plane's 32 queries against the block.
#[cube]
fn score(
    queries: &SharedMemory<Chunk>,
    keys: &SharedMemory<Chunk>,
    plane_row: u32,
    scores: &mut Sequence<Array<Sums>>,
    #[comptime] chunks: usize,
) {
    let def = Mma::new(16usize, 8usize, 16usize);
    let lane = UNIT_POS_PLANE;
    #[unroll]
    for k in 0..comptime!(chunks / 2) {
        let chunk = comptime!(2 * k as u32) + lane / 16u32;
        let at0 = place(plane_row + lane % 16u32, chunk, chunks);
        let at1 = place(plane_row + 16u32 + lane % 16u32, chunk, chunks);
        let left0 =
            def.load_matrix::<Chunk, Const<2>>(&queries.slice(at0, at0 + 1), cmma::MatrixIdent::A, 4usize, false);
        let left1 =
            def.load_matrix::<Chunk, Const<2>>(&queries.slice(at1, at1 + 1), cmma::MatrixIdent::A, 4usize, false);
        #[unroll]
        for pair in 0..comptime!(TILES / 2) {
            let row = comptime!(16 * pair as u32) + (lane / 16u32) * 8u32 + lane % 8u32;
            let at = place(row, comptime!(2 * k as u32) + (lane / 8u32) % 2u32, chunks);
            let right =
                def.load_matrix::<Chunk, Const<2>>(&keys.slice(at, at + 1), cmma::MatrixIdent::B, 4usize, false);
            let mut low = Array::<Pair>::new(2usize);
            let mut high = Array::<Pair>::new(2usize);
            low[0] = right[0];
            low[1] = right[1];
            high[0] = right[2];
            high[1] = right[3];
            def.execute_inplace(&left0, &low, scores.index_mut(comptime!(2 * pair)));
            def.execute_inplace(&left0, &high, scores.index_mut(comptime!(2 * pair + 1)));
            def.execute_inplace(&left1, &low, scores.index_mut(comptime!(TILES + 2 * pair)));
            def.execute_inplace(&left1, &high, scores.index_mut(comptime!(TILES + 2 * pair + 1)));
        }
    }
}

/// Replaces the scores of hidden keys.
#[cube]
fn hide(scores: &mut Sequence<Array<Sums>>, rows: &Rows, key0: u32) {
    #[unroll]
    for r in 0..4usize {
        #[unroll]
        for tile in 0..comptime!(TILES) {
            let key = key0 + comptime!(8 * tile as u32) + (UNIT_POS_PLANE % 4u32) * 2u32;
            let x = scores.index_mut(comptime!(r / 2 * TILES + tile));
            let old = x[comptime!(r % 2)];
            let mut new = Sums::empty();
            let hidden = f32::new(HIDDEN);
            new[0] = select(key >= rows.from[r] && key < rows.to[r], old[0], hidden);
            new[1] = select(key + 1u32 >= rows.from[r] && key + 1u32 < rows.to[r], old[1], hidden);
            x[comptime!(r % 2)] = new;
        }
    }
}

/// Scores become weights relative to the running maximum; what was summed before is scaled.
///
/// Hidden keys get exp of a huge negative number, which is 0. While a query has seen nothing its maximum is hidden too, and
/// must not be subtracted: of two huge numbers that cancel, a fused multiply-add would leave a huge rounding error.
#[cube]
fn soften(
    scores: &mut Sequence<Array<Sums>>,
    acc: &mut Sequence<Array<Sums>>,
    rows: &mut Rows,
    scale: f32,
    #[comptime] d_head: usize,
) {
    #[unroll]
    for r in 0..4usize {
        let mut top = rows.most[r];
        #[unroll]
        for tile in 0..comptime!(TILES) {
            let x = scores.index(comptime!(r / 2 * TILES + tile))[comptime!(r % 2)];
            top = max(top, max(x[0], x[1]));
        }
        top = max(top, plane_shuffle_xor(top, 1u32));
        top = max(top, plane_shuffle_xor(top, 2u32));
        let keep = ((rows.most[r] - top) * scale).exp();
        let shift = select(top <= f32::new(HIDDEN), 0.0f32, top * scale);
        rows.most[r] = top;
        let mut sum = 0.0f32;
        #[unroll]
        for tile in 0..comptime!(TILES) {
            let x = scores.index_mut(comptime!(r / 2 * TILES + tile));
            let old = x[comptime!(r % 2)];
            let mut new = Sums::empty();
            new[0] = (old[0] * scale - shift).exp();
            new[1] = (old[1] * scale - shift).exp();
            sum += new[0] + new[1];
            x[comptime!(r % 2)] = new;
        }
        rows.sum[r] = rows.sum[r] * keep + sum;
        #[unroll]
        for tile in 0..comptime!(d_head / 8) {
            let x = acc.index_mut(comptime!(r / 2 * (d_head / 8) + tile));
            x[comptime!(r % 2)] = x[comptime!(r % 2)] * Sums::new(keep);
        }
    }
}

/// Adds the weighted values of the block.
#[cube]
fn weigh(
    scores: &Sequence<Array<Sums>>,
    values: &SharedMemory<Chunk>,
    acc: &mut Sequence<Array<Sums>>,
    #[comptime] d_head: usize,
) {
    let def = Mma::new(16usize, 8usize, 16usize);
    let lane = UNIT_POS_PLANE;
    let chunks = comptime!(d_head / CHUNK);
    #[unroll]
    for k in 0..comptime!(KEYS / 16) {
        let mut weights = Sequence::<Array<Pair>>::new();
        #[unroll]
        for m in 0..2usize {
            let mut left = Array::<Pair>::new(4usize);
            left[0] = Pair::cast_from(scores.index(comptime!(m * TILES + 2 * k))[0]);
            left[1] = Pair::cast_from(scores.index(comptime!(m * TILES + 2 * k))[1]);
            left[2] = Pair::cast_from(scores.index(comptime!(m * TILES + 2 * k + 1))[0]);
            left[3] = Pair::cast_from(scores.index(comptime!(m * TILES + 2 * k + 1))[1]);
            weights.push(left);
        }
        #[unroll]
        for pair in 0..comptime!(chunks / 2) {
            let row = comptime!(16 * k as u32) + lane % 16u32;
            let at = place(row, comptime!(2 * pair as u32) + lane / 16u32, chunks);
            let right =
                def.load_matrix::<Chunk, Const<2>>(&values.slice(at, at + 1), cmma::MatrixIdent::B, 4usize, true);
            let mut low = Array::<Pair>::new(2usize);
            let mut high = Array::<Pair>::new(2usize);
            low[0] = right[0];
            low[1] = right[1];
            high[0] = right[2];
            high[1] = right[3];
            #[unroll]
            for m in 0..2usize {
                def.execute_inplace(weights.index(m), &low, acc.index_mut(comptime!(m * chunks + 2 * pair)));
                def.execute_inplace(weights.index(m), &high, acc.index_mut(comptime!(m * chunks + 2 * pair + 1)));
            }
        }
    }
}

/// Adds the sink to the normalisation and writes output and log-sum-exp. `base` counts pairs of the output.
#[cube]
fn finish(
    out: &mut Array<Pair>,
    lse: &mut Array<f32>,
    acc: &Sequence<Array<Sums>>,
    rows: &mut Rows,
    first: u32,
    n_tokens: u32,
    item: u32,
    base: usize,
    sink: f32,
    scale: f32,
    #[comptime] n_heads: usize,
    #[comptime] d_head: usize,
    #[comptime] sunk: bool,
) {
    let lane = UNIT_POS_PLANE;
    #[unroll]
    for r in 0..4usize {
        let mut total = rows.sum[r];
        total += plane_shuffle_xor(total, 1u32);
        total += plane_shuffle_xor(total, 2u32);
        let sees = rows.from[r] < rows.to[r];
        total = select(sees, total, 0.0f32);
        let mut top = select(sees, rows.most[r] * scale, f32::new(HIDDEN));
        let mut keep = 1.0f32.runtime();
        if comptime!(sunk) {
            let most = max(top, sink);
            keep = (top - most).exp();
            total = total * keep + (sink - most).exp();
            top = most;
        }
        let factor = select(sees, keep / total, 0.0f32);
        let row = first + comptime!((r / 2 * 16 + r % 2 * 8) as u32) + lane / 4u32;
        if row < n_tokens {
            let at = base + row as usize * comptime!(n_heads * d_head / 2) + (lane % 4u32) as usize;
            #[unroll]
            for tile in 0..comptime!(d_head / 8) {
                let x = acc.index(comptime!(r / 2 * (d_head / 8) + tile))[comptime!(r % 2)];
                out[at + comptime!(4 * tile)] = Pair::cast_from(x * Sums::new(factor));
            }
            if lane % 4u32 == 0u32 {
                lse[(item + row) as usize] = top + total.ln();
            }
        }
    }
}
