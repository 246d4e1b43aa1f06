//! Accumulation and scaling on the CPU, in place.

use multiversion::multiversion;

use crate::cpu::parallel::{TASK, tasks1};

/// `acc ← acc + x`.
pub(crate) fn add_assign(acc: &mut [f32], x: &[f32]) {
    tasks1((acc, TASK), |task, acc| add(acc, &x[task * TASK..][..acc.len()]));
}

/// `x ← factor·x`; a factor of 1 touches nothing.
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        tasks1((x, TASK), |_, x| crate::simd_math::scale(x, factor));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add(acc: &mut [f32], x: &[f32]) {
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc += x;
    }
}
