//! AdamW on CUDA: one pass over parameter, gradient and both moments, in place.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::TensorMetadata;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::AdamW;
use crate::cuda::launch::{check_indices, dense, lanes, one_thread_each, owned};
use crate::cuda::{Buffer, Runtime};

#[cube(launch)]
fn step_kernel<P: Float, G: Float, S: Float, N: Size>(
    param: &mut Array<Vector<P, N>>,
    grad: &Array<Vector<G, N>>,
    m: &mut Array<Vector<S, N>>,
    v: &mut Array<Vector<S, N>>,
    grad_scale: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    keep: f32,
    step: f32,
    root2: f32,
    eps: f32,
    #[define(P)] _param_type: StorageType,
    #[define(G)] _grad_type: StorageType,
    #[define(S)] _state_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < grad.len() {
        let g = Vector::<f32, N>::cast_from(grad[i]) * Vector::new(grad_scale);
        let first = Vector::<f32, N>::cast_from(m[i]) * Vector::new(beta1) + g * Vector::new(rest1);
        let second = Vector::<f32, N>::cast_from(v[i]) * Vector::new(beta2) + g * Vector::new(rest2) * g;
        let denominator = second.sqrt() / Vector::new(root2) + Vector::new(eps);
        let p = Vector::<f32, N>::cast_from(param[i]) * Vector::new(keep);
        param[i] = Vector::cast_from(p - first * Vector::new(step) / denominator);
        m[i] = Vector::cast_from(first);
        v[i] = Vector::cast_from(second);
    }
}

/// `(param, m, v)` after one step.
pub(crate) fn step(param: Buffer, grad: Buffer, m: Buffer, v: Buffer, hyper: &AdamW) -> (Buffer, Buffer, Buffer) {
    let (param, grad, m, v) = (owned(param), dense(grad), owned(m), owned(v));
    assert!(m.dtype == v.dtype, "adamw: both moments need one element type, got {:?} and {:?}", m.dtype, v.dtype);
    check_indices("adamw", &[&param]);
    let n = param.shape().num_elements();
    if n > 0 {
        let lanes = lanes(n, &[&param, &grad, &m, &v]);
        let (count, dim) = one_thread_each(n / lanes);
        let (keep, step, root2) = hyper.factors();
        let rest = |beta: f32| (1.0 - f64::from(beta)) as f32;
        let (param_dtype, grad_dtype, state_dtype) = (param.dtype, grad.dtype, m.dtype);
        step_kernel::launch::<Runtime>(
            &param.client.clone(),
            count,
            dim,
            lanes,
            param.clone().into_array_arg(),
            grad.into_array_arg(),
            m.clone().into_array_arg(),
            v.clone().into_array_arg(),
            hyper.grad_scale,
            hyper.beta1,
            rest(hyper.beta1),
            hyper.beta2,
            rest(hyper.beta2),
            keep as f32,
            step as f32,
            root2 as f32,
            hyper.eps,
            param_dtype.into(),
            grad_dtype.into(),
            state_dtype.into(),
        );
    }
    (param, m, v)
}
