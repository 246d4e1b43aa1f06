//! RMS norm on the CPU: threads over groups of rows, each row read from memory once.

use multiversion::multiversion;

use crate::cpu::parallel::{rows_per_task, tasks2, tasks3};

/// Independent sums of a row.
const LANES: usize = 16;

/// Rows of `x`, their norm `y` and `rstd`, one per row.
pub(crate) fn forward(x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let d = gamma.len();
    let rows = rows_per_task(d);
    tasks2([(y, rows * d), (rstd, rows)], |task, [y, rstd]| {
        let x = &x[task * rows * d..];
        for ((y, x), rstd) in y.chunks_mut(d).zip(x.chunks(d)).zip(rstd) {
            *rstd = reciprocal_root(sum_squares(x), d, eps);
            normalise(y, x, gamma, *rstd);
        }
    });
}

/// Adds `residual` to `x` in place, then as [`forward`].
pub(crate) fn add_forward(x: &mut [f32], residual: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let d = gamma.len();
    let rows = rows_per_task(d);
    tasks3([(x, rows * d), (y, rows * d), (rstd, rows)], |task, [x, y, rstd]| {
        let residual = &residual[task * rows * d..];
        for (((x, residual), y), rstd) in x.chunks_mut(d).zip(residual.chunks(d)).zip(y.chunks_mut(d)).zip(rstd) {
            *rstd = reciprocal_root(add_sum_squares(x, residual), d, eps);
            normalise(y, x, gamma, *rstd);
        }
    });
}

/// What the backward pass needs from the forward pass.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    /// Rows that were normalised.
    pub(crate) x: &'a [f32],
    /// Gain.
    pub(crate) gamma: &'a [f32],
    /// Reciprocal root of each row.
    pub(crate) rstd: &'a [f32],
}

/// Gradient of the gain; `dx` gets the gradient of the rows, added to what is there when `carry`.
pub(crate) fn backward(dy: &[f32], saved: Saved, dx: &mut [f32], carry: bool) -> Vec<f32> {
    let (d, m) = (saved.gamma.len(), saved.rstd.len());
    let rows = rows_per_task(d);
    let mut partial = vec![0.0; m.div_ceil(rows) * d];
    tasks2([(dx, rows * d), (&mut partial, d)], |task, [dx, dgamma]| {
        let first = task * rows;
        if !carry {
            dx.fill(0.0);
        }
        for (i, dx) in dx.chunks_mut(d).enumerate() {
            let at = (first + i) * d..(first + i + 1) * d;
            let (dy, x, r) = (&dy[at.clone()], &saved.x[at], saved.rstd[first + i]);
            let mean = first_pass(dy, x, saved.gamma, r, dgamma) / d as f32;
            second_pass(dx, dy, x, saved.gamma, r, mean);
        }
    });
    fold(&partial, d)
}

/// Sums the rows in their order, in f64.
fn fold(partial: &[f32], d: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; d];
    for row in partial.chunks(d) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.into_iter().map(|x| x as f32).collect()
}

fn reciprocal_root(sum_squares: f32, d: usize, eps: f32) -> f32 {
    1.0 / (sum_squares / d as f32 + eps).sqrt()
}

#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += x[i] * x[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    fold_lanes(lanes)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_sum_squares(x: &mut [f32], residual: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (x_chunks, x_rest) = x.as_chunks_mut::<LANES>();
    let (r_chunks, r_rest) = residual.as_chunks::<LANES>();
    for (x, r) in x_chunks.iter_mut().zip(r_chunks) {
        for i in 0..LANES {
            x[i] += r[i];
            lanes[i] += x[i] * x[i];
        }
    }
    for ((lane, x), r) in lanes.iter_mut().zip(x_rest).zip(r_rest) {
        *x += r;
        *lane += *x * *x;
    }
    fold_lanes(lanes)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn normalise(y: &mut [f32], x: &[f32], gamma: &[f32], r: f32) {
    for ((y, x), gamma) in y.iter_mut().zip(x).zip(gamma) {
        *y = x * r * gamma;
    }
}

/// Adds `dy·x̂` to `dgamma` and returns `Σ dy·γ·x̂`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn first_pass(dy: &[f32], x: &[f32], gamma: &[f32], r: f32, dgamma: &mut [f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (dy_chunks, dy_rest) = dy.as_chunks::<LANES>();
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (g_chunks, g_rest) = gamma.as_chunks::<LANES>();
    let (d_chunks, d_rest) = dgamma.as_chunks_mut::<LANES>();
    for (((dy, x), g), d) in dy_chunks.iter().zip(x_chunks).zip(g_chunks).zip(d_chunks) {
        for i in 0..LANES {
            let product = dy[i] * (x[i] * r);
            d[i] += product;
            lanes[i] += product * g[i];
        }
    }
    for ((((lane, dy), x), g), d) in lanes.iter_mut().zip(dy_rest).zip(x_rest).zip(g_rest).zip(d_rest) {
        let product = dy * (x * r);
        *d += product;
        *lane += product * g;
    }
    fold_lanes(lanes)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn second_pass(dx: &mut [f32], dy: &[f32], x: &[f32], gamma: &[f32], r: f32, mean: f32) {
    for (((dx, dy), x), gamma) in dx.iter_mut().zip(dy).zip(x).zip(gamma) {
        *dx += r * (dy * gamma - x * r * mean);
    }
}
