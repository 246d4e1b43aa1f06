//! Tiles of the general attention kernels: 32 rows of one side against 32 columns of the other, f32 in shared memory.
//!
//! A cube has four planes. Each owns [`ROWS`] rows, and a lane is one column of the tile while scores are made and one column
//! of the head while rows are summed. Heads are padded with zeros to whole planes, and the stride is odd, so that neither
//! way of reading has bank conflicts.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use cubecl::prelude::*;

/// Rows and columns of a tile.
pub(super) const TILE: usize = 32;
/// Planes of a cube.
pub(super) const PLANES: usize = 4;
/// Rows of a plane.
pub(super) const ROWS: usize = TILE / PLANES;
/// Score of a hidden key: below every score that can be told from it.
pub(super) const HIDDEN: f32 = -3.0e38;

/// Elements of a lane: `d_head` in whole planes.
pub(super) fn per_lane(d_head: usize) -> usize {
    d_head.div_ceil(TILE)
}

/// Copies rows `first..first + 32` of a strided matrix into a tile; rows from `limit` on and columns from `d_head` on are zero.
#[cube]
pub(super) fn load<F: Float>(
    from: &Array<F>,
    to: &mut SharedMemory<f32>,
    base: u32,
    row_stride: u32,
    first: u32,
    limit: u32,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
) {
    #[unroll]
    for r in 0..comptime!(ROWS) {
        let row = UNIT_POS_Y * comptime!(ROWS as u32) + comptime!(r as u32);
        #[unroll]
        for c in 0..per {
            let column = comptime!((c * TILE) as u32) + UNIT_POS_X;
            let mut value = 0.0f32;
            if first + row < limit && column < comptime!(d_head as u32) {
                value = f32::cast_from(from[(base + (first + row) * row_stride + column) as usize]);
            }
            to[(row * comptime!((per * TILE + 1) as u32) + column) as usize] = value;
        }
    }
}

/// Scores of the plane's rows against the lane's column.
#[cube]
pub(super) fn dot(
    rows: &SharedMemory<f32>,
    columns: &SharedMemory<f32>,
    out: &mut Array<f32>,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
) {
    let stride = comptime!(per * TILE + 1);
    let row = UNIT_POS_Y as usize * comptime!(ROWS);
    #[unroll]
    for r in 0..comptime!(ROWS) {
        out[r] = 0.0f32;
    }
    for i in 0..d_head {
        let y = columns[UNIT_POS_X as usize * stride + i];
        #[unroll]
        for r in 0..comptime!(ROWS) {
            out[r] = out[r] + rows[(row + r) * stride + i] * y;
        }
    }
}

/// `acc[r, ..] += Σ_j p[r, lane j]·columns[j, ..]` for the plane's rows; `acc` holds `per` elements of each row.
#[cube]
pub(super) fn accumulate(p: &Array<f32>, columns: &SharedMemory<f32>, acc: &mut Array<f32>, #[comptime] per: usize) {
    let stride = comptime!(per * TILE + 1);
    for j in 0..comptime!(TILE as u32) {
        let mut values = Array::<f32>::new(per);
        #[unroll]
        for c in 0..per {
            values[c] = columns[j as usize * stride + comptime!(c * TILE) + UNIT_POS_X as usize];
        }
        #[unroll]
        for r in 0..comptime!(ROWS) {
            let share = plane_shuffle(p[r], j);
            #[unroll]
            for c in 0..per {
                acc[comptime!(r * per + c)] = acc[comptime!(r * per + c)] + share * values[c];
            }
        }
    }
}

/// Zeros for the plane's rows.
#[cube]
pub(super) fn zeros(#[comptime] n: usize) -> Array<f32> {
    let mut out = Array::<f32>::new(n);
    #[unroll]
    for i in 0..n {
        out[i] = 0.0f32;
    }
    out
}

/// Writes `factor·acc` to the plane's rows of a strided matrix.
#[cube]
pub(super) fn store<F: Float>(
    to: &mut Array<F>,
    acc: &Array<f32>,
    base: u32,
    row_stride: u32,
    first: u32,
    limit: u32,
    factor: f32,
    #[comptime] d_head: usize,
    #[comptime] per: usize,
) {
    #[unroll]
    for r in 0..comptime!(ROWS) {
        let row = first + UNIT_POS_Y * comptime!(ROWS as u32) + comptime!(r as u32);
        #[unroll]
        for c in 0..per {
            let column = comptime!((c * TILE) as u32) + UNIT_POS_X;
            if row < limit && column < comptime!(d_head as u32) {
                to[(base + row * row_stride + column) as usize] = F::cast_from(acc[comptime!(r * per + c)] * factor);
            }
        }
    }
}

/// First and last-but-one visible key of query `row`, cut to the keys that exist; `(0, 0)` for rows that see nothing.
#[cube]
pub(super) fn span(start: &Array<i32>, end: &Array<i32>, at: u32, row: u32, n_queries: u32, n_keys: u32) -> (u32, u32) {
    let mut from = 0u32;
    let mut to = 0u32;
    if row < n_queries {
        let first = max(start[at as usize], 0i32) as u32;
        let last = min(max(end[at as usize], 0i32) as u32, n_keys);
        if first < last {
            from = first;
            to = last;
        }
    }
    (from, to)
}
