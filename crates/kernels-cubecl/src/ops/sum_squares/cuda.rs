//! Sum of squares on CUDA: partial sums of a fixed number of cubes, then one cube adds them.

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{THREADS, check_indices, cubes, dense, empty, lanes};
use crate::cuda::reduce::{cube_sum, lane_sum};
use crate::cuda::{Buffer, Runtime};

/// Most cubes of the first pass.
const MAX_CUBES: usize = 1024;

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

/// The sum of `n` f32 numbers in a fixed order, `[1]`.
pub(crate) fn total(part: Buffer) -> Buffer {
    let (n, out) = (part.shape().num_elements(), empty(&part, Shape::new([1]), DType::F32));
    let client = part.client.clone();
    let (part, total) = (part.into_array_arg(), out.clone().into_array_arg());
    total_kernel::launch::<Runtime>(&client, cubes(1), CubeDim::new_1d(THREADS as u32), part, total, n as u32, THREADS);
    out
}

/// `Σ x²`, `[1]` in f32.
pub(crate) fn forward(x: Buffer) -> Buffer {
    let x = dense(x);
    check_indices("sum_squares", &[&x]);
    let n = x.shape().num_elements();
    if n == 0 {
        return crate::cuda::gemm::zeros(&x, Shape::new([1]), DType::F32);
    }
    let lanes = lanes(n, &[&x]);
    let n_cubes = (n / lanes).div_ceil(THREADS).min(MAX_CUBES);
    let part = empty(&x, Shape::new([n_cubes]), DType::F32);
    let (dtype, client) = (x.dtype, x.client.clone());
    squares_kernel::launch::<Runtime>(
        &client,
        cubes(n_cubes),
        CubeDim::new_1d(THREADS as u32),
        lanes,
        x.into_array_arg(),
        part.clone().into_array_arg(),
        (n_cubes * THREADS) as u32,
        THREADS,
        dtype.into(),
    );
    total(part)
}
