//! RMS norm on CUDA: forward a plane per row, or a cube where the row is long; backward a cube walks over many rows, so that `dγ`
//! needs no atomics.
#![expect(unsafe_code, reason = "kernels without bounds checks, whose callers' lengths are checked here")]
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, check_lengths, cubes, dense, empty, lanes, row_threads, rows};
use crate::cuda::peaks::{gather, keep, largest_size, wanted, words};
use crate::cuda::reduce::{cube_sum, cube_sums, lane_sum, sum_rows};
use crate::cuda::{Buffer, Peaks, Runtime};

/// Vectors of a row that a thread holds, forward, where a plane works on the row alone: many loads in flight and no barrier. A
/// longer row is for a whole cube: more of them made `add_rms_norm` slower (docs/LOG.md).
const PLANE_VECTORS: usize = 4;
/// Threads of a plane, and rows of a cube whose planes work alone.
const PLANE: usize = 32;
const PLANES: usize = 4;
/// Most threads that work on a longer row, forward: few, so that each has several loads in flight.
const FORWARD_THREADS: usize = 128;
/// Most threads that work on a row, backward.
const BACKWARD_THREADS: usize = 256;
/// Most cubes of the backward pass: two for each multiprocessor, because each leaves a row of partial sums.
const MAX_STRIPS: usize = 264;
/// Vectors of each operand that a thread of the backward pass holds for two rows at once; with more it takes one row, because
/// the registers of two rows would leave room for one cube only.
const HELD_VECTORS: usize = 2;

/// `y` and `r` of the cube's rows, one for each row of its threads; a thread holds `per` vectors. With `added` first
/// `sum ← x + residual`, and the norm is that of the rounded sum. Where there are several rows, each is a plane's.
#[cube(launch_unchecked)]
fn forward_kernel<F: Float, G: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    residual: &Array<Vector<F, N>>,
    gamma: &Array<Vector<G, N>>,
    sum: &mut Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    rstd: &mut Array<f32>,
    words: &Array<Atomic<u32>>,
    eps: f32,
    n_rows: u32,
    vectors: u32,
    width: f32,
    #[comptime] per: usize,
    #[comptime] rows: usize,
    #[comptime] threads: usize,
    #[comptime] added: bool,
    #[comptime] gathered: bool,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
) {
    let row = CUBE_POS_X * comptime!(rows as u32) + UNIT_POS_Y;
    let base = row * vectors;
    let columns = select(row < n_rows, vectors, 0u32);
    let mut values = Array::<Vector<F, N>>::new(per);
    let mut others = Array::<Vector<F, N>>::new(per);
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS_X + comptime!((i * threads) as u32);
        if column < columns {
            values[i] = x[(base + column) as usize];
            if comptime!(added) {
                others[i] = residual[(base + column) as usize];
            }
        }
    }
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS_X + comptime!((i * threads) as u32);
        if column < columns {
            if comptime!(added) {
                let total = Vector::<f32, N>::cast_from(values[i]) + Vector::<f32, N>::cast_from(others[i]);
                values[i] = Vector::<F, N>::cast_from(total);
                sum[(base + column) as usize] = values[i];
            }
            let value = Vector::<f32, N>::cast_from(values[i]);
            squares += value * value;
        }
    }
    let mut total = lane_sum::<N>(squares);
    if comptime!(rows > 1) {
        total = plane_sum(total);
    } else {
        total = cube_sum(total, threads);
    }
    let r = 1.0f32 / (total / width + eps).sqrt();
    let mut size = 0.0f32;
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS_X + comptime!((i * threads) as u32);
        if column < columns {
            let gain = Vector::<f32, N>::cast_from(gamma[column as usize]);
            let value = Vector::<f32, N>::cast_from(values[i]);
            let normed = Vector::<F, N>::cast_from(value * Vector::new(r) * gain);
            y[(base + column) as usize] = normed;
            if comptime!(gathered) {
                size = max(size, largest_size::<F, N>(normed));
            }
        }
    }
    if UNIT_POS_X == 0u32 && row < n_rows {
        rstd[row as usize] = r;
    }
    if comptime!(gathered) {
        gather(size, words, comptime!(rows * threads));
    }
}

/// Loads the thread's vectors of a row into the `k`-th part of `held`.
#[cube]
fn load_row<F: Float, N: Size>(
    matrix: &Array<Vector<F, N>>,
    held: &mut Array<Vector<F, N>>,
    row: u32,
    vectors: u32,
    #[comptime] k: usize,
    #[comptime] per: usize,
    #[comptime] threads: usize,
) {
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * threads) as u32);
        if column < vectors {
            held[comptime!(k * per + i)] = matrix[(row * vectors + column) as usize];
        }
    }
}

/// `dx`, this cube's part of `dγ`, and where it is wanted the largest size in its part of `dx`. Each thread owns `per` vectors of a
/// row. The cube takes `rows` rows at once: all their loads are in flight together, and their sums are added in one go.
#[cube(launch_unchecked)]
fn backward_kernel<F: Float, G: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    x: &Array<Vector<F, N>>,
    gamma: &Array<Vector<G, N>>,
    rstd: &Array<f32>,
    carry: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    part: &mut Array<Vector<f32, N>>,
    seen: &mut Array<f32>,
    n_rows: u32,
    vectors: u32,
    width: f32,
    strips: u32,
    #[comptime] per: usize,
    #[comptime] rows: usize,
    #[comptime] threads: usize,
    #[comptime] carried: bool,
    #[comptime] gathered: bool,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
) {
    let mut size = 0.0f32;
    let mut dgamma = Array::<Vector<f32, N>>::new(per);
    #[unroll]
    for i in 0..per {
        dgamma[i] = Vector::new(0.0f32);
    }
    let mut first = CUBE_POS_X * comptime!(rows as u32);
    while first < n_rows {
        let mut upstream = Array::<Vector<F, N>>::new(comptime!(rows * per));
        let mut input = Array::<Vector<F, N>>::new(comptime!(rows * per));
        let mut carries = Array::<Vector<F, N>>::new(comptime!(rows * per));
        let mut r = Array::<f32>::new(rows);
        #[unroll]
        for k in 0..rows {
            // Beyond the end the last row is taken again, and neither counted nor written.
            let row = min(first + comptime!(k as u32), n_rows - 1u32);
            r[k] = rstd[row as usize];
            load_row::<F, N>(dy, &mut upstream, row, vectors, k, per, threads);
            load_row::<F, N>(x, &mut input, row, vectors, k, per, threads);
            if comptime!(carried) {
                load_row::<F, N>(carry, &mut carries, row, vectors, k, per, threads);
            }
        }
        let mut sums = Array::<f32>::new(rows);
        #[unroll]
        for k in 0..rows {
            let mut products = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for i in 0..per {
                let column = UNIT_POS + comptime!((i * threads) as u32);
                if column < vectors {
                    let up = Vector::<f32, N>::cast_from(upstream[comptime!(k * per + i)]);
                    let x_hat = Vector::<f32, N>::cast_from(input[comptime!(k * per + i)]) * Vector::new(r[k]);
                    if first + comptime!(k as u32) < n_rows {
                        dgamma[i] = dgamma[i] + up * x_hat;
                    }
                    products += up * Vector::<f32, N>::cast_from(gamma[column as usize]) * x_hat;
                }
            }
            sums[k] = lane_sum::<N>(products);
        }
        cube_sums(&mut sums, rows, threads);
        #[unroll]
        for k in 0..rows {
            let row = first + comptime!(k as u32);
            let mean = Vector::<f32, N>::new(sums[k] / width);
            let factor = Vector::<f32, N>::new(r[k]);
            #[unroll]
            for i in 0..per {
                let column = UNIT_POS + comptime!((i * threads) as u32);
                if column < vectors && row < n_rows {
                    let up = Vector::<f32, N>::cast_from(upstream[comptime!(k * per + i)]);
                    let x_hat = Vector::<f32, N>::cast_from(input[comptime!(k * per + i)]) * factor;
                    let scaled = up * Vector::<f32, N>::cast_from(gamma[column as usize]);
                    let mut gradient = (scaled - x_hat * mean) * factor;
                    if comptime!(carried) {
                        gradient += Vector::<f32, N>::cast_from(carries[comptime!(k * per + i)]);
                    }
                    let rounded = Vector::<F, N>::cast_from(gradient);
                    dx[(row * vectors + column) as usize] = rounded;
                    if comptime!(gathered) {
                        size = max(size, largest_size::<F, N>(rounded));
                    }
                }
            }
        }
        first += strips * comptime!(rows as u32);
    }
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * threads) as u32);
        if column < vectors {
            part[(CUBE_POS_X * vectors + column) as usize] = dgamma[i];
        }
    }
    if comptime!(gathered) {
        keep(size, seen, threads);
    }
}

/// `(y, rstd)`, with the peaks of `y` in the slot.
pub(crate) fn forward(x: Buffer, gamma: Buffer, eps: f32, peaks: Option<&Peaks>) -> (Buffer, Buffer) {
    let (_, y, rstd) = normalize(x, None, gamma, eps, peaks);
    (y, rstd)
}

/// `(x + residual, y, rstd)`, with the peaks of `y` in the slot.
pub(crate) fn add_forward(
    x: Buffer,
    residual: Buffer,
    gamma: Buffer,
    eps: f32,
    peaks: Option<&Peaks>,
) -> (Buffer, Buffer, Buffer) {
    assert!(x.dtype == residual.dtype, "add_rms_norm: x is {:?}, the residual {:?}", x.dtype, residual.dtype);
    normalize(x, Some(residual), gamma, eps, peaks)
}

/// `(sum, y, rstd)`; without a residual the sum is `x`.
fn normalize(
    x: Buffer,
    residual: Option<Buffer>,
    gamma: Buffer,
    eps: f32,
    peaks: Option<&Peaks>,
) -> (Buffer, Buffer, Buffer) {
    let (x, gamma, added) = (dense(x), dense(gamma), residual.is_some());
    // Without one the kernel touches neither the residual nor the sum.
    let residual = residual.map_or_else(|| x.clone(), dense);
    check_indices("rms_norm", &[&x]);
    let (m, d) = rows(&x.shape());
    check_lengths("rms_norm", &[(&residual, m * d), (&gamma, d)]);
    let (y, rstd) = (empty(&x, x.shape(), x.dtype), empty(&x, Shape::new([m]), DType::F32));
    let sum = if added { empty(&x, x.shape(), x.dtype) } else { x.clone() };
    if m > 0 {
        let lanes = lanes(d, &[&x, &residual, &gamma]);
        let alone = d / lanes <= PLANE * PLANE_VECTORS;
        let (threads, at_once) = if alone { (PLANE, PLANES) } else { (row_threads(d / lanes, FORWARD_THREADS), 1) };
        let (dtype, gamma_dtype, client) = (x.dtype, gamma.dtype, x.client.clone());
        let slot = wanted(peaks, &y);
        let seen = words(slot, &y);
        // SAFETY: every column is below the width and every row below the number of rows, and the lengths are those.
        unsafe {
            forward_kernel::launch_unchecked::<Runtime>(
                &client,
                cubes(m.div_ceil(at_once)),
                CubeDim::new_2d(threads as u32, at_once as u32),
                lanes,
                x.into_array_arg(),
                residual.into_array_arg(),
                gamma.into_array_arg(),
                sum.clone().into_array_arg(),
                y.clone().into_array_arg(),
                rstd.clone().into_array_arg(),
                seen.clone().into_array_arg(),
                eps,
                m as u32,
                (d / lanes) as u32,
                d as f32,
                (d / lanes).div_ceil(threads),
                at_once,
                threads,
                added,
                slot.is_some(),
                dtype.into(),
                gamma_dtype.into(),
            );
        }
        if let Some(slot) = slot {
            slot.leave(y.clone(), seen);
        }
    }
    (sum, y, rstd)
}

/// `(dx, dγ)`, with `carry` added to `dx`, and the peaks of `dx` in the slot.
pub(crate) fn backward(
    dy: Buffer,
    x: Buffer,
    gamma: Buffer,
    rstd: Buffer,
    carry: Option<Buffer>,
    peaks: Option<&Peaks>,
) -> (Buffer, Buffer) {
    let [dy, x, gamma, rstd] = [dy, x, gamma, rstd].map(dense);
    check_indices("rms_norm backward", &[&x]);
    let (m, d) = rows(&x.shape());
    let dtype = x.dtype;
    let dy = crate::cuda::launch::dense_as(dy, dtype);
    check_lengths("rms_norm backward", &[(&dy, m * d), (&gamma, d), (&rstd, m)]);
    let dx = empty(&x, x.shape(), dtype);
    if m == 0 {
        return (dx, crate::cuda::gemm::zeros(&x, gamma.shape(), gamma.dtype));
    }
    let carried = carry.is_some();
    let carry = carry.map_or_else(|| dy.clone(), |carry| crate::cuda::launch::dense_as(carry, dtype));
    check_lengths("rms_norm backward", &[(&carry, m * d)]);
    let lanes = lanes(d, &[&dy, &x, &gamma, &carry]);
    let threads = row_threads(d / lanes, BACKWARD_THREADS);
    let per = (d / lanes).div_ceil(threads);
    let at_once = if 2 * per <= HELD_VECTORS { 2 } else { 1 };
    let strips = m.div_ceil(at_once).min(MAX_STRIPS);
    let part = empty(&x, Shape::new([strips, d]), DType::F32);
    let (gamma_dtype, client) = (gamma.dtype, x.client.clone());
    let slot = wanted(peaks, &dx);
    // Every cube has a word of its own here.
    let seen = if slot.is_some() { empty(&x, Shape::new([strips]), DType::F32) } else { part.clone() };
    // SAFETY: every column is below the width and every row below the number of rows, and the lengths are those.
    unsafe {
        backward_kernel::launch_unchecked::<Runtime>(
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
            seen.clone().into_array_arg(),
            m as u32,
            (d / lanes) as u32,
            d as f32,
            strips as u32,
            per,
            at_once,
            threads,
            carried,
            slot.is_some(),
            dtype.into(),
            gamma_dtype.into(),
        );
    }
    if let Some(slot) = slot {
        slot.leave(dx.clone(), seen);
    }
    (dx, sum_rows(part, gamma_dtype))
}
