//! RMS norm on CUDA: a cube per row forward; backward a cube walks over many rows, so that `dγ` needs no atomics.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, cubes, dense, empty, lanes, row_threads, rows};
use crate::cuda::reduce::{cube_sum, lane_sum, sum_rows};
use crate::cuda::{Buffer, Runtime};

/// Most threads that work on a row, forward: few, so that each has several loads in flight.
const FORWARD_THREADS: usize = 128;
/// Most threads that work on a row, backward.
const BACKWARD_THREADS: usize = 256;
/// Most cubes of the backward pass: a few for each multiprocessor, because each leaves a row of partial sums.
const MAX_STRIPS: usize = 528;

#[cube(launch)]
fn forward_kernel<F: Float, G: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    gamma: &Array<Vector<G, N>>,
    y: &mut Array<Vector<F, N>>,
    rstd: &mut Array<f32>,
    eps: f32,
    vectors: u32,
    width: f32,
    #[comptime] per: usize,
    #[comptime] threads: usize,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
) {
    let base = CUBE_POS_X * vectors;
    let mut values = Array::<Vector<f32, N>>::new(per);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * threads) as u32);
        if column < vectors {
            values[i] = Vector::<f32, N>::cast_from(x[(base + column) as usize]);
            squares += values[i] * values[i];
        }
    }
    normalize::<F, G, N>(&values, squares, gamma, y, rstd, eps, vectors, width, per, threads);
}

/// As the plain kernel, after `sum ← x + residual`; the norm is that of the rounded sum.
#[cube(launch)]
fn add_forward_kernel<F: Float, G: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    residual: &Array<Vector<F, N>>,
    gamma: &Array<Vector<G, N>>,
    sum: &mut Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    rstd: &mut Array<f32>,
    eps: f32,
    vectors: u32,
    width: f32,
    #[comptime] per: usize,
    #[comptime] threads: usize,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
) {
    let base = CUBE_POS_X * vectors;
    let mut values = Array::<Vector<f32, N>>::new(per);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * threads) as u32);
        if column < vectors {
            let at = (base + column) as usize;
            let exact = Vector::<f32, N>::cast_from(x[at]) + Vector::<f32, N>::cast_from(residual[at]);
            let rounded = Vector::<F, N>::cast_from(exact);
            sum[at] = rounded;
            values[i] = Vector::<f32, N>::cast_from(rounded);
            squares += values[i] * values[i];
        }
    }
    normalize::<F, G, N>(&values, squares, gamma, y, rstd, eps, vectors, width, per, threads);
}

/// `y` and `r` of the cube's row; each thread holds `per` vectors of it.
#[cube]
fn normalize<F: Float, G: Float, N: Size>(
    values: &Array<Vector<f32, N>>,
    squares: Vector<f32, N>,
    gamma: &Array<Vector<G, N>>,
    y: &mut Array<Vector<F, N>>,
    rstd: &mut Array<f32>,
    eps: f32,
    vectors: u32,
    width: f32,
    #[comptime] per: usize,
    #[comptime] threads: usize,
) {
    let base = CUBE_POS_X * vectors;
    let total = cube_sum(lane_sum::<N>(squares), threads);
    let r = 1.0f32 / (total / width + eps).sqrt();
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * threads) as u32);
        if column < vectors {
            let gain = Vector::<f32, N>::cast_from(gamma[column as usize]);
            y[(base + column) as usize] = Vector::cast_from(values[i] * Vector::new(r) * gain);
        }
    }
    if UNIT_POS == 0u32 {
        rstd[CUBE_POS_X as usize] = r;
    }
}

/// `dx`, and this cube's part of `dγ`. Each thread owns `per` vectors of a row.
#[cube(launch)]
fn backward_kernel<F: Float, G: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    x: &Array<Vector<F, N>>,
    gamma: &Array<Vector<G, N>>,
    rstd: &Array<f32>,
    carry: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    part: &mut Array<Vector<f32, N>>,
    n_rows: u32,
    vectors: u32,
    width: f32,
    strips: u32,
    #[comptime] per: usize,
    #[comptime] threads: usize,
    #[comptime] carried: bool,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
) {
    let mut dgamma = Array::<Vector<f32, N>>::new(per);
    #[unroll]
    for i in 0..per {
        dgamma[i] = Vector::new(0.0f32);
    }
    let mut row = CUBE_POS_X;
    while row < n_rows {
        let base = row * vectors;
        let r = Vector::<f32, N>::new(rstd[row as usize]);
        let mut products = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..per {
            let column = UNIT_POS + comptime!((i * threads) as u32);
            if column < vectors {
                let at = (base + column) as usize;
                let upstream = Vector::<f32, N>::cast_from(dy[at]);
                let x_hat = Vector::<f32, N>::cast_from(x[at]) * r;
                dgamma[i] = dgamma[i] + upstream * x_hat;
                products += upstream * Vector::<f32, N>::cast_from(gamma[column as usize]) * x_hat;
            }
        }
        let mean = Vector::<f32, N>::new(cube_sum(lane_sum::<N>(products), threads) / width);
        #[unroll]
        for i in 0..per {
            let column = UNIT_POS + comptime!((i * threads) as u32);
            if column < vectors {
                let at = (base + column) as usize;
                let upstream = Vector::<f32, N>::cast_from(dy[at]);
                let x_hat = Vector::<f32, N>::cast_from(x[at]) * r;
                let scaled = upstream * Vector::<f32, N>::cast_from(gamma[column as usize]);
                let mut gradient = (scaled - x_hat * mean) * r;
                if comptime!(carried) {
                    gradient += Vector::<f32, N>::cast_from(carry[at]);
                }
                dx[at] = Vector::cast_from(gradient);
            }
        }
        row += strips;
    }
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * threads) as u32);
        if column < vectors {
            part[(CUBE_POS_X * vectors + column) as usize] = dgamma[i];
        }
    }
}

/// `(y, rstd)`.
pub(crate) fn forward(x: Buffer, gamma: Buffer, eps: f32) -> (Buffer, Buffer) {
    let (x, gamma) = (dense(x), dense(gamma));
    check_indices("rms_norm", &[&x]);
    let (m, d) = rows(&x.shape());
    let (y, rstd) = (empty(&x, x.shape(), x.dtype), empty(&x, Shape::new([m]), DType::F32));
    if m > 0 {
        let lanes = lanes(d, &[&x, &gamma, &y]);
        let threads = row_threads(d / lanes, FORWARD_THREADS);
        let (dtype, gamma_dtype, client) = (x.dtype, gamma.dtype, x.client.clone());
        forward_kernel::launch::<Runtime>(
            &client,
            cubes(m),
            CubeDim::new_1d(threads as u32),
            lanes,
            x.into_array_arg(),
            gamma.into_array_arg(),
            y.clone().into_array_arg(),
            rstd.clone().into_array_arg(),
            eps,
            (d / lanes) as u32,
            d as f32,
            (d / lanes).div_ceil(threads),
            threads,
            dtype.into(),
            gamma_dtype.into(),
        );
    }
    (y, rstd)
}

/// `(x + residual, y, rstd)`.
pub(crate) fn add_forward(x: Buffer, residual: Buffer, gamma: Buffer, eps: f32) -> (Buffer, Buffer, Buffer) {
    let [x, residual, gamma] = [x, residual, gamma].map(dense);
    assert!(x.dtype == residual.dtype, "add_rms_norm: x is {:?}, the residual {:?}", x.dtype, residual.dtype);
    check_indices("add_rms_norm", &[&x]);
    let (m, d) = rows(&x.shape());
    let (sum, y) = (empty(&x, x.shape(), x.dtype), empty(&x, x.shape(), x.dtype));
    let rstd = empty(&x, Shape::new([m]), DType::F32);
    if m > 0 {
        let lanes = lanes(d, &[&x, &residual, &gamma]);
        let threads = row_threads(d / lanes, FORWARD_THREADS);
        let (dtype, gamma_dtype, client) = (x.dtype, gamma.dtype, x.client.clone());
        add_forward_kernel::launch::<Runtime>(
            &client,
            cubes(m),
            CubeDim::new_1d(threads as u32),
            lanes,
            x.into_array_arg(),
            residual.into_array_arg(),
            gamma.into_array_arg(),
            sum.clone().into_array_arg(),
            y.clone().into_array_arg(),
            rstd.clone().into_array_arg(),
            eps,
            (d / lanes) as u32,
            d as f32,
            (d / lanes).div_ceil(threads),
            threads,
            dtype.into(),
            gamma_dtype.into(),
        );
    }
    (sum, y, rstd)
}

/// `(dx, dγ)`, with `carry` added to `dx`.
pub(crate) fn backward(dy: Buffer, x: Buffer, gamma: Buffer, rstd: Buffer, carry: Option<Buffer>) -> (Buffer, Buffer) {
    let [dy, x, gamma, rstd] = [dy, x, gamma, rstd].map(dense);
    check_indices("rms_norm backward", &[&x]);
    let (m, d) = rows(&x.shape());
    let dtype = x.dtype;
    let dy = crate::cuda::launch::dense_as(dy, dtype);
    let strips = m.clamp(1, MAX_STRIPS);
    let (dx, part) = (empty(&x, x.shape(), dtype), empty(&x, Shape::new([strips, d]), DType::F32));
    if m == 0 {
        return (dx, crate::cuda::gemm::zeros(&x, gamma.shape(), gamma.dtype));
    }
    let carried = carry.is_some();
    let carry = carry.map_or_else(|| dy.clone(), |carry| crate::cuda::launch::dense_as(carry, dtype));
    let lanes = lanes(d, &[&dy, &x, &gamma, &carry, &part]);
    let threads = row_threads(d / lanes, BACKWARD_THREADS);
    let (gamma_dtype, client) = (gamma.dtype, x.client.clone());
    backward_kernel::launch::<Runtime>(
        &client,
        cubes(strips),
        CubeDim::new_1d(threads as u32),
        lanes,
        dy.into_array_arg(),
        x.into_array_arg(),
        gamma.into_array_arg(),
        rstd.into_array_arg(),
        carry.into_array_arg(),
        dx.clone().into_array_arg(),
        part.clone().into_array_arg(),
        m as u32,
        (d / lanes) as u32,
        d as f32,
        strips as u32,
        (d / lanes).div_ceil(threads),
        threads,
        carried,
        dtype.into(),
        gamma_dtype.into(),
    );
    (dx, sum_rows(part, gamma_dtype))
}
