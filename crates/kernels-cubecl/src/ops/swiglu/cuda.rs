//! Gated unit on CUDA: a thread per vector of the result.

use burn::tensor::TensorMetadata;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{THREADS, check_indices, dense, dense_as, empty, lanes, one_thread_each, rows, with_last};
use crate::cuda::peaks::{gather, largest_size, wanted, words};
use crate::cuda::{Buffer, Peaks, Runtime};

/// `1 + e^−g`: the reciprocal of the logistic function.
#[cube]
fn one_plus_exp<N: Size>(gate: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.0f32) + (Vector::new(0.0f32) - gate).exp()
}

/// `vectors` is the width of the result.
#[cube(launch)]
fn forward_kernel<F: Float, N: Size>(
    gate_up: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    words: &Array<Atomic<u32>>,
    #[comptime] vectors: usize,
    #[comptime] gathered: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    let mut size = 0.0f32;
    if i < y.len() {
        let at = i / vectors * comptime!(2 * vectors) + i % vectors;
        let gate = Vector::<f32, N>::cast_from(gate_up[at]);
        let up = Vector::<f32, N>::cast_from(gate_up[at + vectors]);
        let gated = Vector::<F, N>::cast_from(gate / one_plus_exp::<N>(gate) * up);
        y[i] = gated;
        if comptime!(gathered) {
            size = largest_size::<F, N>(gated);
        }
    }
    if comptime!(gathered) {
        gather(size, words, THREADS);
    }
}

#[cube(launch)]
fn backward_kernel<F: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    gate_up: &Array<Vector<F, N>>,
    grad: &mut Array<Vector<F, N>>,
    words: &Array<Atomic<u32>>,
    #[comptime] vectors: usize,
    #[comptime] gathered: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    let mut size = 0.0f32;
    if i < dy.len() {
        let at = i / vectors * comptime!(2 * vectors) + i % vectors;
        let upstream = Vector::<f32, N>::cast_from(dy[i]);
        let gate = Vector::<f32, N>::cast_from(gate_up[at]);
        let up = Vector::<f32, N>::cast_from(gate_up[at + vectors]);
        let one = Vector::<f32, N>::new(1.0f32);
        let sigma = one / one_plus_exp::<N>(gate);
        let of_gate = Vector::<F, N>::cast_from(upstream * up * sigma * (one + gate * (one - sigma)));
        let of_up = Vector::<F, N>::cast_from(upstream * gate * sigma);
        grad[at] = of_gate;
        grad[at + vectors] = of_up;
        if comptime!(gathered) {
            size = max(largest_size::<F, N>(of_gate), largest_size::<F, N>(of_up));
        }
    }
    if comptime!(gathered) {
        gather(size, words, THREADS);
    }
}

/// `silu(gate)·up`, with its peaks in the slot.
pub(crate) fn forward(gate_up: Buffer, peaks: Option<&Peaks>) -> Buffer {
    let gate_up = dense(gate_up);
    check_indices("swiglu", &[&gate_up]);
    let (m, f) = (rows(&gate_up.shape()).0, rows(&gate_up.shape()).1 / 2);
    let y = empty(&gate_up, with_last(&gate_up.shape(), f), gate_up.dtype);
    if m * f > 0 {
        let lanes = lanes(f, &[&gate_up, &y]);
        let (count, dim) = one_thread_each(m * f / lanes);
        let (dtype, client) = (gate_up.dtype, gate_up.client.clone());
        let slot = wanted(peaks, &y);
        let seen = words(slot, &y);
        forward_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            lanes,
            gate_up.into_array_arg(),
            y.clone().into_array_arg(),
            seen.clone().into_array_arg(),
            f / lanes,
            slot.is_some(),
            dtype.into(),
        );
        if let Some(slot) = slot {
            slot.leave(y.clone(), seen);
        }
    }
    y
}

/// Gradient of `gate_up`, with its peaks in the slot.
pub(crate) fn backward(dy: Buffer, gate_up: Buffer, peaks: Option<&Peaks>) -> Buffer {
    let gate_up = dense(gate_up);
    let dy = dense_as(dy, gate_up.dtype);
    check_indices("swiglu backward", &[&gate_up]);
    let (m, f) = (rows(&gate_up.shape()).0, rows(&gate_up.shape()).1 / 2);
    let grad = empty(&gate_up, gate_up.shape(), gate_up.dtype);
    if m * f > 0 {
        let lanes = lanes(f, &[&dy, &gate_up, &grad]);
        let (count, dim) = one_thread_each(m * f / lanes);
        let (dtype, client) = (gate_up.dtype, gate_up.client.clone());
        let slot = wanted(peaks, &grad);
        let seen = words(slot, &grad);
        backward_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            lanes,
            dy.into_array_arg(),
            gate_up.into_array_arg(),
            grad.clone().into_array_arg(),
            seen.clone().into_array_arg(),
            f / lanes,
            slot.is_some(),
            dtype.into(),
        );
        if let Some(slot) = slot {
            slot.leave(grad.clone(), seen);
        }
    }
    grad
}
