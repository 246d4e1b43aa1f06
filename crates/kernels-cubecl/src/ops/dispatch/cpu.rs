//! Dispatch on the CPU: a counting sort on one thread, then threads over groups of rows.

use multiversion::multiversion;

use crate::cpu::parallel::{rows_per_task, tasks1};

/// Slots in the order of their experts; see [`crate::Dispatch`].
#[derive(Debug)]
pub(crate) struct Sorted {
    pub(crate) token: Vec<i32>,
    pub(crate) slot: Vec<i32>,
    pub(crate) position: Vec<i32>,
    pub(crate) offsets: Vec<i32>,
}

/// Sorts the slots of `experts [n, k]`.
pub(crate) fn sort(experts: &[i32], k: usize, n_experts: usize) -> Sorted {
    let key = |expert: i32| usize::try_from(expert).map_or(n_experts, |expert| expert.min(n_experts));
    let mut next = vec![0i32; n_experts + 2];
    for &expert in experts {
        next[key(expert) + 1] += 1;
    }
    for i in 0..=n_experts {
        next[i + 1] += next[i];
    }
    let offsets = next[..=n_experts].to_vec();
    let (mut token, mut slot) = (vec![0; experts.len()], vec![0; experts.len()]);
    let place = |(s, &expert): (usize, &i32)| {
        let at = next[key(expert)];
        next[key(expert)] += 1;
        slot[at as usize] = s as i32;
        token[at as usize] = (s / k) as i32;
        at
    };
    let position = experts.iter().enumerate().map(place).collect();
    Sorted { token, slot, position, offsets }
}

/// Copies the rows of `x [n, d]` by token into the first rows of `out [n·k, d]`, which is zero.
pub(crate) fn gather(x: &[f32], token: &[i32], live: usize, out: &mut [f32], d: usize) {
    let rows = rows_per_task(d);
    tasks1((&mut out[..live * d], rows * d), |task, out| {
        for (out, &token) in out.chunks_mut(d).zip(&token[task * rows..]) {
            out.copy_from_slice(&x[token as usize * d..][..d]);
        }
    });
}

/// Weighted sums of each token's rows of `y [n·k, d]` into `out [n, d]`, which is zero; without weights, plain sums.
pub(crate) fn combine(
    y: &[f32],
    weights: Option<&[f32]>,
    position: &[i32],
    live: usize,
    out: &mut [f32],
    [k, d]: [usize; 2],
) {
    let rows = rows_per_task(k * d);
    tasks1((out, rows * d), |task, out| {
        for (i, out) in out.chunks_mut(d).enumerate() {
            let first = (task * rows + i) * k;
            for slot in (first..first + k).filter(|&slot| (position[slot] as usize) < live) {
                let y = &y[position[slot] as usize * d..][..d];
                match weights {
                    Some(weights) => add_scaled(out, y, weights[slot]),
                    None => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
                }
            }
        }
    });
}

/// Writes the gradient of the sorted rows into the first ones of `dy [n·k, d]`, which is zero.
pub(crate) fn combine_backward_y(dout: &[f32], weights: &[f32], slot: &[i32], live: usize, dy: &mut [f32], k: usize) {
    let d = dy.len().checked_div(slot.len()).unwrap_or(0);
    let rows = rows_per_task(d);
    tasks1((&mut dy[..live * d], rows * d), |task, dy| {
        for (dy, &slot) in dy.chunks_mut(d).zip(&slot[task * rows..]) {
            let (slot, dout) = (slot as usize, &dout[slot as usize / k * d..][..d]);
            dy.iter_mut().zip(dout).for_each(|(dy, dout)| *dy = weights[slot] * dout);
        }
    });
}

/// Writes the gradient of the weights into `dweights [n·k]`, which is zero.
pub(crate) fn combine_backward_weights(
    dout: &[f32],
    y: &[f32],
    position: &[i32],
    live: usize,
    dweights: &mut [f32],
    [k, d]: [usize; 2],
) {
    let slots = rows_per_task(d);
    tasks1((dweights, slots), |task, dweights| {
        for (i, dweight) in dweights.iter_mut().enumerate() {
            let slot = task * slots + i;
            let row = position[slot] as usize;
            if row < live {
                *dweight = dot(&y[row * d..][..d], &dout[slot / k * d..][..d]);
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_scaled(out: &mut [f32], y: &[f32], weight: f32) {
    out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
}

/// A sum of products in 32 interleaved parts, which are added in their order.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const PARTS: usize = 32;
    let mut parts = [0.0f32; PARTS];
    let (a, b) = (a.chunks_exact(PARTS), b.chunks_exact(PARTS));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..PARTS {
            parts[i] += a[i] * b[i];
        }
    }
    parts.iter().sum::<f32>() + rest
}
