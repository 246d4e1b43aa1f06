//! Gated unit on the CPU: threads over groups of rows.

use multiversion::multiversion;

use crate::cpu::parallel::{rows_per_task, tasks1};
use crate::simd_math::exp;

/// `y [m, f]` from `gate_up [m, 2f]`.
pub(crate) fn forward(gate_up: &[f32], y: &mut [f32], f: usize) {
    let rows = rows_per_task(2 * f);
    tasks1((y, rows * f), |task, y| {
        let gate_up = &gate_up[task * rows * 2 * f..];
        for (y, row) in y.chunks_mut(f).zip(gate_up.chunks(2 * f)) {
            let (gate, up) = row.split_at(f);
            forward_row(y, gate, up);
        }
    });
}

/// Replaces `gate_up` by its gradient.
pub(crate) fn backward(dy: &[f32], gate_up: &mut [f32], f: usize) {
    let rows = rows_per_task(2 * f);
    tasks1((gate_up, rows * 2 * f), |task, gate_up| {
        let dy = &dy[task * rows * f..];
        for (dy, row) in dy.chunks(f).zip(gate_up.chunks_mut(2 * f)) {
            let (gate, up) = row.split_at_mut(f);
            backward_row(dy, gate, up);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn forward_row(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate / (1.0 + exp(-gate)) * up;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn backward_row(dy: &[f32], gate: &mut [f32], up: &mut [f32]) {
    for ((&dy, gate), up) in dy.iter().zip(gate).zip(up) {
        let sigma = 1.0 / (1.0 + exp(-*gate));
        let dgate = dy * *up * sigma * (1.0 + *gate * (1.0 - sigma));
        *up = dy * *gate * sigma;
        *gate = dgate;
    }
}
