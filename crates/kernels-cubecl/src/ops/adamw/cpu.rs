//! The optimizer step on the CPU: one pass over all four arrays, in place.

use multiversion::multiversion;

use super::AdamW;
use crate::cpu::parallel::{TASK, tasks3};

/// The factors of a step as the inner loop uses them.
#[derive(Clone, Copy)]
struct Factors {
    grad: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    step: f32,
    inverse_root2: f32,
    eps: f32,
}

/// Updates `param`, `m` and `v`.
pub(crate) fn step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], hyper: &AdamW) {
    let (keep, step, root2) = hyper.factors();
    let factors = Factors {
        grad: hyper.grad_scale,
        beta1: hyper.beta1,
        beta2: hyper.beta2,
        keep: keep as f32,
        step: step as f32,
        inverse_root2: (1.0 / root2) as f32,
        eps: hyper.eps,
    };
    tasks3([(param, TASK), (m, TASK), (v, TASK)], |task, [param, m, v]| {
        let grad = &grad[task * TASK..][..param.len()];
        update(param, grad, m, v, factors);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], factors: Factors) {
    let Factors { grad: scale, beta1, beta2, keep, step, inverse_root2, eps } = factors;
    let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
    for (((param, &grad), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        let grad = grad * scale;
        *m = beta1 * *m + rest1 * grad;
        *v = beta2 * *v + rest2 * grad * grad;
        *param = *param * keep - step * *m / (v.sqrt() * inverse_root2 + eps);
    }
}
