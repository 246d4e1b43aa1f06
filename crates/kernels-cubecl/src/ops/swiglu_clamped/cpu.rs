//! The clamped gated unit on the CPU: threads over ranges of elements, since a row's width plays no part.

use multiversion::multiversion;

use crate::cpu::parallel::{TASK, tasks1};
use crate::simd_math::exp;

/// `y` with an element per pair of `gate_up`.
pub(crate) fn forward(gate_up: &[f32], y: &mut [f32], alpha: f32, limit: f32) {
    tasks1((y, TASK / 2), |task, y| forward_part(y, &gate_up[task * TASK..], alpha, limit));
}

/// Replaces `gate_up` by its gradient.
pub(crate) fn backward(dy: &[f32], gate_up: &mut [f32], alpha: f32, limit: f32) {
    tasks1((gate_up, TASK), |task, gate_up| backward_part(&dy[task * (TASK / 2)..], gate_up, alpha, limit));
}

/// Clamped up; NaN stays.
fn clamped(up: f32, limit: f32) -> f32 {
    let below = if up > limit { limit } else { up };
    if below < -limit { -limit } else { below }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn forward_part(y: &mut [f32], gate_up: &[f32], alpha: f32, limit: f32) {
    for (y, pair) in y.iter_mut().zip(gate_up.chunks_exact(2)) {
        let gate = if pair[0] > limit { limit } else { pair[0] };
        *y = (clamped(pair[1], limit) + 1.0) * (gate / (1.0 + exp(-alpha * gate)));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn backward_part(dy: &[f32], gate_up: &mut [f32], alpha: f32, limit: f32) {
    for (dy, pair) in dy.iter().zip(gate_up.chunks_exact_mut(2)) {
        let (gate, up) = (if pair[0] > limit { limit } else { pair[0] }, clamped(pair[1], limit));
        let sigma = 1.0 / (1.0 + exp(-alpha * gate));
        let dgate = dy * (up + 1.0) * sigma * (1.0 + alpha * gate * (1.0 - sigma));
        let dup = dy * gate * sigma;
        pair[0] = if pair[0] > limit { 0.0 } else { dgate };
        pair[1] = if pair[1].abs() > limit { 0.0 } else { dup };
    }
}
