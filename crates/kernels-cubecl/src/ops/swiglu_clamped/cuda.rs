//! The clamped gated unit on CUDA: a thread per vector of pairs.

use burn::tensor::{Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, dense, dense_as, empty, lanes, one_thread_each, with_last};
use crate::cuda::{Buffer, Runtime};

/// `min(x, limit)`; NaN stays.
#[cube]
fn below(x: f32, limit: f32) -> f32 {
    select(x > limit, limit, x)
}

/// `x` between both limits; NaN stays.
#[cube]
fn between(x: f32, limit: f32) -> f32 {
    let x = below(x, limit);
    select(x < -limit, -limit, x)
}

/// A vector of `gate_up` has `N` numbers, one of `y` has `M = N/2`.
#[cube(launch)]
fn forward_kernel<F: Float, N: Size, M: Size>(
    gate_up: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, M>>,
    alpha: f32,
    limit: f32,
    #[comptime] pairs: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let input = Vector::<f32, N>::cast_from(gate_up[i]);
        let mut out = Vector::<f32, M>::empty();
        #[unroll]
        for k in 0..pairs {
            let gate = below(input[comptime!(2 * k)], limit);
            let up = between(input[comptime!(2 * k + 1)], limit);
            out[k] = (up + 1.0f32) * (gate / (1.0f32 + (-(alpha * gate)).exp()));
        }
        y[i] = Vector::cast_from(out);
    }
}

#[cube(launch)]
fn backward_kernel<F: Float, N: Size, M: Size>(
    dy: &Array<Vector<F, M>>,
    gate_up: &Array<Vector<F, N>>,
    grad: &mut Array<Vector<F, N>>,
    alpha: f32,
    limit: f32,
    #[comptime] pairs: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < dy.len() {
        let upstream = Vector::<f32, M>::cast_from(dy[i]);
        let input = Vector::<f32, N>::cast_from(gate_up[i]);
        let mut out = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..pairs {
            let (raw_gate, raw_up) = (input[comptime!(2 * k)], input[comptime!(2 * k + 1)]);
            let gate = below(raw_gate, limit);
            let up = between(raw_up, limit);
            let sigma = 1.0f32 / (1.0f32 + (-(alpha * gate)).exp());
            let slope = sigma * (1.0f32 + alpha * gate * (1.0f32 - sigma));
            out[comptime!(2 * k)] = select(raw_gate > limit, 0.0f32, upstream[k] * (up + 1.0f32) * slope);
            out[comptime!(2 * k + 1)] = select(raw_up.abs() > limit, 0.0f32, upstream[k] * gate * sigma);
        }
        grad[i] = Vector::cast_from(out);
    }
}

/// Numbers of a vector of pairs, of which `wide` has twice as many elements as `narrow`.
fn pair_lanes(wide: &Buffer, narrow: &Buffer) -> usize {
    // The narrow vectors are half as long; a wide one that fits both ways keeps them aligned too.
    2 * (lanes(narrow.shape().num_elements(), &[wide, narrow]) / 2).max(1)
}

/// The unit's result.
pub(crate) fn forward(gate_up: Buffer, alpha: f32, limit: f32) -> Buffer {
    let gate_up = dense(gate_up);
    check_indices("swiglu_clamped", &[&gate_up]);
    let shape: Shape = gate_up.shape();
    let y = empty(&gate_up, with_last(&shape, shape[shape.num_dims() - 1] / 2), gate_up.dtype);
    let n = y.shape().num_elements();
    if n > 0 {
        let lanes = pair_lanes(&gate_up, &y);
        let (count, dim) = one_thread_each(n / (lanes / 2));
        let (dtype, client) = (gate_up.dtype, gate_up.client.clone());
        let (x, out) = (gate_up.into_array_arg(), y.clone().into_array_arg());
        let half = lanes / 2;
        forward_kernel::launch::<Runtime>(&client, count, dim, lanes, half, x, out, alpha, limit, half, dtype.into());
    }
    y
}

/// Gradient of `gate_up`.
pub(crate) fn backward(dy: Buffer, gate_up: Buffer, alpha: f32, limit: f32) -> Buffer {
    let gate_up = dense(gate_up);
    let dy = dense_as(dy, gate_up.dtype);
    check_indices("swiglu_clamped backward", &[&gate_up]);
    let grad = empty(&gate_up, gate_up.shape(), gate_up.dtype);
    let n = dy.shape().num_elements();
    if n > 0 {
        let lanes = pair_lanes(&gate_up, &dy);
        let half = lanes / 2;
        let (count, dim) = one_thread_each(n / half);
        let (dtype, client) = (gate_up.dtype, gate_up.client.clone());
        backward_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            lanes,
            half,
            dy.into_array_arg(),
            gate_up.into_array_arg(),
            grad.clone().into_array_arg(),
            alpha,
            limit,
            half,
            dtype.into(),
        );
    }
    grad
}
