//! Matrix-unit tiles in bf16: swizzled shared memory, `ldmatrix` and `mma.sync` through cubecl.
//!
//! cubecl has neither `wgmma` nor inline assembly, so that operands go through registers; this is what limits the speed.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;
use half::bf16;

/// Eight bf16: one asynchronous copy.
pub(super) type Chunk = Vector<bf16, Const<8>>;
/// Two bf16: a register of an operand.
pub(super) type Pair = Vector<bf16, Const<2>>;
/// Two f32: neighbours in a register of an accumulator.
pub(super) type Sums = Vector<f32, Const<2>>;
/// The product of a 16×16 and a 16×8 tile.
pub(super) type Mma = cmma::MmaDefinition<bf16, bf16, f32>;

/// Elements of a [`Chunk`].
pub(super) const CHUNK: usize = 8;
/// Threads of a cube: four planes.
pub(super) const THREADS: usize = 128;

/// Place of a chunk in a tile with `chunks` per row; the exclusive-or keeps `ldmatrix` free of bank conflicts.
#[cube]
pub(super) fn place(row: u32, chunk: u32, #[comptime] chunks: usize) -> usize {
    (row * comptime!(chunks as u32) + (chunk ^ (row & 7u32))) as usize
}

/// Starts copying rows `first..first + rows` of a strided matrix into a tile. Rows from `limit` on repeat the last one: they
/// are hidden from every result, and what is hidden must be finite.
#[cube]
pub(super) fn stage(
    from: &Array<Chunk>,
    to: &mut SharedMemory<Chunk>,
    offset: usize,
    base: usize,
    stride: usize,
    first: u32,
    limit: u32,
    #[comptime] rows: usize,
    #[comptime] chunks: usize,
) {
    #[unroll]
    for i in 0..comptime!(rows * chunks / THREADS) {
        let item = UNIT_POS + comptime!((i * THREADS) as u32);
        let row = item / comptime!(chunks as u32);
        let chunk = item % comptime!(chunks as u32);
        let source = base + min(first + row, limit - 1u32) as usize * stride + chunk as usize;
        let target = offset + place(row, chunk, chunks);
        copy_async(&from.slice(source, source + 1), &mut to.slice_mut(target, target + 1), comptime!(CHUNK as u32));
    }
}

/// `n` accumulators of 16×8, all zero.
#[cube]
pub(super) fn zeros(#[comptime] n: usize) -> Sequence<Array<Sums>> {
    let mut out = Sequence::<Array<Sums>>::new();
    #[unroll]
    for _ in 0..n {
        let mut tile = Array::<Sums>::new(2usize);
        tile[0] = Sums::new(0.0f32);
        tile[1] = Sums::new(0.0f32);
        out.push(tile);
    }
    out
}

/// `acc[at.., ..] += a[row.., ..]·bᵀ`, where `acc` holds 16 rows and `columns` columns from accumulator `at` on.
#[cube]
pub(super) fn dot(
    def: &Mma,
    a: &SharedMemory<Chunk>,
    row: u32,
    b: &SharedMemory<Chunk>,
    b_offset: usize,
    acc: &mut Sequence<Array<Sums>>,
    #[comptime] columns: usize,
    #[comptime] chunks: usize,
) {
    let lane = UNIT_POS_PLANE;
    #[unroll]
    for k in 0..comptime!(chunks / 2) {
        let at = place(row + lane % 16u32, comptime!(2 * k as u32) + lane / 16u32, chunks);
        let left = def.load_matrix::<Chunk, Const<2>>(&a.slice(at, at + 1), cmma::MatrixIdent::A, 4usize, false);
        #[unroll]
        for pair in 0..comptime!(columns / 16) {
            let b_row = comptime!(16 * pair as u32) + (lane / 16u32) * 8u32 + lane % 8u32;
            let at = b_offset + place(b_row, comptime!(2 * k as u32) + (lane / 8u32) % 2u32, chunks);
            let right = def.load_matrix::<Chunk, Const<2>>(&b.slice(at, at + 1), cmma::MatrixIdent::B, 4usize, false);
            let mut low = Array::<Pair>::new(2usize);
            let mut high = Array::<Pair>::new(2usize);
            low[0] = right[0];
            low[1] = right[1];
            high[0] = right[2];
            high[1] = right[3];
            def.execute_inplace(&left, &low, acc.index_mut(comptime!(2 * pair)));
            def.execute_inplace(&left, &high, acc.index_mut(comptime!(2 * pair + 1)));
        }
    }
}

/// `acc += p·b`, where the 16 rows of `p` are accumulators that are rounded to bf16, one for 8 rows of `b`.
#[cube]
pub(super) fn accumulate(
    def: &Mma,
    p: &Sequence<Array<Sums>>,
    b: &SharedMemory<Chunk>,
    b_offset: usize,
    acc: &mut Sequence<Array<Sums>>,
    #[comptime] rows: usize,
    #[comptime] chunks: usize,
) {
    let lane = UNIT_POS_PLANE;
    #[unroll]
    for k in 0..comptime!(rows / 16) {
        let mut left = Array::<Pair>::new(4usize);
        left[0] = Pair::cast_from(p.index(comptime!(2 * k))[0]);
        left[1] = Pair::cast_from(p.index(comptime!(2 * k))[1]);
        left[2] = Pair::cast_from(p.index(comptime!(2 * k + 1))[0]);
        left[3] = Pair::cast_from(p.index(comptime!(2 * k + 1))[1]);
        #[unroll]
        for pair in 0..comptime!(chunks / 2) {
            let row = comptime!(16 * k as u32) + lane % 16u32;
            let at = b_offset + place(row, comptime!(2 * pair as u32) + lane / 16u32, chunks);
            let right = def.load_matrix::<Chunk, Const<2>>(&b.slice(at, at + 1), cmma::MatrixIdent::B, 4usize, true);
            let mut low = Array::<Pair>::new(2usize);
            let mut high = Array::<Pair>::new(2usize);
            low[0] = right[0];
            low[1] = right[1];
            high[0] = right[2];
            high[1] = right[3];
            def.execute_inplace(&left, &low, acc.index_mut(comptime!(2 * pair)));
            def.execute_inplace(&left, &high, acc.index_mut(comptime!(2 * pair + 1)));
        }
    }
}

/// Writes `factor·acc` to the plane's 16 rows from `first` on; `base` and `stride` count pairs.
#[cube]
pub(super) fn store(
    to: &mut Array<Pair>,
    acc: &Sequence<Array<Sums>>,
    base: usize,
    stride: usize,
    first: u32,
    limit: u32,
    factor: f32,
    #[comptime] chunks: usize,
) {
    let lane = UNIT_POS_PLANE;
    #[unroll]
    for half in 0..2usize {
        let row = first + lane / 4u32 + comptime!(half as u32 * 8);
        if row < limit {
            let at = base + row as usize * stride + (lane % 4u32) as usize;
            #[unroll]
            for tile in 0..chunks {
                to[at + comptime!(4 * tile)] = Pair::cast_from(acc.index(tile)[half] * Sums::new(factor));
            }
        }
    }
}
