//! Reductions over the threads of a cube, and over the rows of a matrix; the order is fixed by the launch shape.

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{cubes, empty};
use super::{Buffer, Runtime};

/// Columns and row lanes of a cube of [`sum_rows`]: many lanes, because a column's loads wait for each other.
const COLUMNS: usize = 32;
const LANES: usize = 32;

/// Sum of a vector's elements.
#[cube]
pub(crate) fn lane_sum<N: Size>(v: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    let n = v.vector_size();
    #[unroll]
    for i in 0..n {
        sum += v[i];
    }
    sum
}

/// Largest of a vector's elements; NaN loses.
#[cube]
pub(crate) fn lane_max<N: Size>(v: Vector<f32, N>) -> f32 {
    let mut most = v[0];
    let n = v.vector_size();
    #[unroll]
    for i in 1..n {
        most = max(most, v[i]);
    }
    most
}

/// Sum over the cube, for every thread; `threads` is a multiple of the plane.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] threads: usize) -> f32 {
    let planes = comptime!(threads / 32);
    let mut partial = SharedMemory::<f32>::new(planes);
    let sum = plane_sum(value);
    if UNIT_POS_PLANE == 0u32 {
        partial[(UNIT_POS / 32u32) as usize] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..planes {
        total += partial[i];
    }
    // The memory may be used again by the next call.
    sync_cube();
    total
}

/// [`cube_sum`] of `n` numbers at once.
#[cube]
pub(crate) fn cube_sums(values: &mut Array<f32>, #[comptime] n: usize, #[comptime] threads: usize) {
    let planes = comptime!(threads / 32);
    let mut partial = SharedMemory::<f32>::new(comptime!(n * planes));
    #[unroll]
    for k in 0..n {
        let sum = plane_sum(values[k]);
        if UNIT_POS_PLANE == 0u32 {
            partial[comptime!(k * planes) + (UNIT_POS / 32u32) as usize] = sum;
        }
    }
    sync_cube();
    #[unroll]
    for k in 0..n {
        let mut total = 0.0f32;
        #[unroll]
        for i in 0..planes {
            total += partial[comptime!(k * planes + i)];
        }
        values[k] = total;
    }
    // The memory may be used again by the next call.
    sync_cube();
}

/// Maximum over the cube, for every thread; NaN loses.
#[cube]
pub(crate) fn cube_max(value: f32, #[comptime] threads: usize) -> f32 {
    let planes = comptime!(threads / 32);
    let mut partial = SharedMemory::<f32>::new(planes);
    let most = plane_max(value);
    if UNIT_POS_PLANE == 0u32 {
        partial[(UNIT_POS / 32u32) as usize] = most;
    }
    sync_cube();
    let mut total = partial[0];
    #[unroll]
    for i in 1..planes {
        total = max(total, partial[i]);
    }
    sync_cube();
    total
}

/// Minimum of whole numbers over the cube, for every thread.
#[cube]
pub(crate) fn cube_min(value: u32, #[comptime] threads: usize) -> u32 {
    let planes = comptime!(threads / 32);
    let mut partial = SharedMemory::<u32>::new(planes);
    let least = plane_min(value);
    if UNIT_POS_PLANE == 0u32 {
        partial[(UNIT_POS / 32u32) as usize] = least;
    }
    sync_cube();
    let mut total = partial[0];
    #[unroll]
    for i in 1..planes {
        total = min(total, partial[i]);
    }
    sync_cube();
    total
}

/// `out[c] = Σ_r part[r, c]`.
#[cube(launch)]
fn sum_rows_kernel<F: Float>(
    part: &Array<f32>,
    out: &mut Array<F>,
    rows: u32,
    columns: u32,
    #[define(F)] _out_type: StorageType,
) {
    let column = CUBE_POS_X * comptime!(COLUMNS as u32) + UNIT_POS_X;
    let mut sum = 0.0f32;
    if column < columns {
        let mut row = UNIT_POS_Y;
        while row < rows {
            sum += part[(row * columns + column) as usize];
            row += comptime!(LANES as u32);
        }
    }
    let mut partial = SharedMemory::<f32>::new(comptime!(COLUMNS * LANES));
    partial[(UNIT_POS_Y * comptime!(COLUMNS as u32) + UNIT_POS_X) as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0u32 && column < columns {
        let mut total = 0.0f32;
        #[unroll]
        for i in 0..comptime!(LANES) {
            total += partial[comptime!(i * COLUMNS) + UNIT_POS_X as usize];
        }
        out[column as usize] = F::cast_from(total);
    }
}

/// Sums of the columns of `part [rows, columns]` in f32, rounded to `dtype`.
pub(crate) fn sum_rows(part: Buffer, dtype: DType) -> Buffer {
    let shape = part.shape();
    let (rows, columns) = (shape[0], shape[1]);
    let out = empty(&part, Shape::new([columns]), dtype);
    if columns > 0 {
        sum_rows_kernel::launch::<Runtime>(
            &part.client.clone(),
            cubes(columns.div_ceil(COLUMNS)),
            CubeDim::new_2d(COLUMNS as u32, LANES as u32),
            part.into_array_arg(),
            out.clone().into_array_arg(),
            rows as u32,
            columns as u32,
            dtype.into(),
        );
    }
    out
}
