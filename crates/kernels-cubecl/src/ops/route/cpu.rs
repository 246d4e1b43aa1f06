//! Routing on the CPU: threads over groups of rows.

use rayon::prelude::*;

use crate::cpu::parallel::{rows_per_task, tasks1};
use crate::simd_math::exp;

/// `(weights, experts)`, both `[n, k]`, from `logits [n, e]`.
pub(crate) fn forward(logits: &[f32], e: usize, k: usize) -> (Vec<f32>, Vec<i32>) {
    let n = logits.len() / e;
    let (mut weights, mut experts) = (vec![0.0; n * k], vec![0; n * k]);
    let rows = rows_per_task(e * k);
    let tasks = weights.par_chunks_mut(rows * k).zip(experts.par_chunks_mut(rows * k)).zip(logits.par_chunks(rows * e));
    tasks.for_each(|((weights, experts), logits)| {
        for ((weights, experts), row) in weights.chunks_mut(k).zip(experts.chunks_mut(k)).zip(logits.chunks(e)) {
            choose(row, experts);
            softmax(row, experts, weights);
        }
    });
    (weights, experts)
}

/// The largest logits of a row, the largest first, equal ones by index: insertion into a short list.
fn choose(row: &[f32], experts: &mut [i32]) {
    let key = |x: f32| if x.is_nan() { f32::INFINITY } else { x };
    let mut n = 0;
    for (i, &x) in row.iter().enumerate() {
        let mut at = n;
        while at > 0 && key(x) > key(row[experts[at - 1] as usize]) {
            at -= 1;
        }
        if at < experts.len() {
            n = (n + 1).min(experts.len());
            experts.copy_within(at..n - 1, at + 1);
            experts[at] = i as i32;
        }
    }
}

fn softmax(row: &[f32], experts: &[i32], weights: &mut [f32]) {
    let largest = row[experts[0] as usize];
    let mut sum = 0.0;
    for (weight, &expert) in weights.iter_mut().zip(experts) {
        *weight = exp(row[expert as usize] - largest);
        sum += *weight;
    }
    weights.iter_mut().for_each(|weight| *weight /= sum);
}

/// Writes the gradient of the chosen logits into `dlogits [n, e]`, which is zero.
pub(crate) fn backward(dweights: &[f32], weights: &[f32], experts: &[i32], dlogits: &mut [f32], [e, k]: [usize; 2]) {
    let rows = rows_per_task(e);
    tasks1((dlogits, rows * e), |task, dlogits| {
        for (i, dlogits) in dlogits.chunks_mut(e).enumerate() {
            let at = (task * rows + i) * k..(task * rows + i + 1) * k;
            let (dweights, weights) = (&dweights[at.clone()], &weights[at.clone()]);
            let mean: f32 = weights.iter().zip(dweights).map(|(w, dw)| w * dw).sum();
            for ((w, dw), &expert) in weights.iter().zip(dweights).zip(&experts[at]) {
                dlogits[expert as usize] = w * (dw - mean);
            }
        }
    });
}
