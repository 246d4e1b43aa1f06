//! Sum of squares on CUDA: partial sums of a fixed number of cubes, then one cube adds them.

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::SUM_PARTS;
use crate::cuda::launch::{THREADS, check_indices, cubes, dense, dense_as, empty, lanes, owned, row_range};
use crate::cuda::reduce::{cube_sum, lane_sum};
use crate::cuda::{Buffer, Runtime};

/// Largest finite number.
const LARGEST: f32 = f32::MAX;
/// Partial sums from which on the second pass has its largest cube.
const MANY_PARTS: usize = 1 << 14;

#[cube(launch)]
fn squares_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    part: &mut Array<f32>,
    stride: u32,
    #[comptime] threads: usize,
    #[define(F)] _x_type: StorageType,
) {
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = ABSOLUTE_POS;
    while i < x.len() {
        let value = Vector::<f32, N>::cast_from(x[i]);
        squares += value * value;
        i += stride as usize;
    }
    let total = cube_sum(lane_sum::<N>(squares), threads);
    if UNIT_POS == 0u32 {
        part[CUBE_POS_X as usize] = total;
    }
}

#[cube(launch)]
fn total_kernel(part: &Array<f32>, total: &mut Array<f32>, n: u32, #[comptime] threads: usize) {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS;
    while i < n {
        sum += part[i as usize];
        i += comptime!(threads as u32);
    }
    let all = cube_sum(sum, threads);
    if UNIT_POS == 0u32 {
        total[0] = all;
    }
}

/// See [`super::clip_scale`].
#[cube(launch)]
fn clip_kernel(squares: &Array<f32>, scale: &mut Array<f32>, units: f32, max_norm: f32) {
    if UNIT_POS == 0u32 {
        let norm = squares[0].sqrt() / units;
        let mut factor = 0.0f32;
        // A NaN is not below it, and dividing by no units gives no finite number.
        if norm.abs() <= LARGEST {
            factor = 1.0f32 / units;
            if norm > max_norm {
                factor = max_norm / norm / units;
            }
        }
        scale[0] = factor;
    }
}

/// The sum of f32 numbers in a fixed order, `[1]`.
pub(crate) fn total(part: Buffer) -> Buffer {
    let part = dense(part);
    let (n, out) = (part.shape().num_elements(), empty(&part, Shape::new([1]), DType::F32));
    let threads = if n < MANY_PARTS { THREADS } else { 1024 };
    let client = part.client.clone();
    let (part, total) = (part.into_array_arg(), out.clone().into_array_arg());
    total_kernel::launch::<Runtime>(&client, cubes(1), CubeDim::new_1d(threads as u32), part, total, n as u32, threads);
    out
}

/// Cubes that leave a partial sum each.
fn n_cubes(n: usize, lanes: usize) -> usize {
    (n / lanes).div_ceil(THREADS).min(SUM_PARTS)
}

/// Writes a partial sum for each cube; `x` is dense and not empty.
fn squares(x: Buffer, part: Buffer) {
    let n = x.shape().num_elements();
    check_indices("sum_squares", &[&x]);
    let lanes = lanes(n, &[&x]);
    let n_cubes = n_cubes(n, lanes);
    let (dtype, client) = (x.dtype, x.client.clone());
    squares_kernel::launch::<Runtime>(
        &client,
        cubes(n_cubes),
        CubeDim::new_1d(THREADS as u32),
        lanes,
        x.into_array_arg(),
        part.into_array_arg(),
        (n_cubes * THREADS) as u32,
        THREADS,
        dtype.into(),
    );
}

/// `Σ x²`, `[1]` in f32.
pub(crate) fn forward(x: Buffer) -> Buffer {
    let x = dense(x);
    let n = x.shape().num_elements();
    if n == 0 {
        return crate::cuda::gemm::zeros(&x, Shape::new([1]), DType::F32);
    }
    let part = empty(&x, Shape::new([n_cubes(n, lanes(n, &[&x]))]), DType::F32);
    squares(x, part.clone());
    total(part)
}

/// `parts` with the partial sums of `x` in row `index`.
pub(crate) fn into(parts: Buffer, index: usize, x: Buffer) -> Buffer {
    let (parts, x) = (owned(parts), dense(x));
    if x.shape().num_elements() > 0 {
        squares(x, row_range(&parts, index, 1));
    }
    parts
}

/// Factor of a summed gradient with this sum of squares.
pub(crate) fn clip_scale(squares: Buffer, units: f64, max_norm: f64) -> Buffer {
    let squares = dense_as(squares, DType::F32);
    let out = empty(&squares, Shape::new([1]), DType::F32);
    let (client, dim) = (squares.client.clone(), CubeDim::new_1d(32));
    let (squares, scale) = (squares.into_array_arg(), out.clone().into_array_arg());
    clip_kernel::launch::<Runtime>(&client, cubes(1), dim, squares, scale, units as f32, max_norm as f32);
    out
}
