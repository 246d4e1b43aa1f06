//! Token log-probabilities by their definition: plain loops in f64, a whole row of logits at a time.

use super::super::linear_cross_entropy::reference::{log_sum_exp, logits};
use super::Operands;

/// Statistics of every row.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// `[m]`: log-probability of the target, 0 where it is ignored.
    pub logprob: Vec<f64>,
    /// `[m]`: log-sum-exp.
    pub lse: Vec<f64>,
    /// `[m]`: the first token with the largest logit.
    pub argmax: Vec<i32>,
}

/// Statistics of every row.
pub fn forward(x: &Operands<f64>) -> Stats {
    let mut stats = Stats { logprob: Vec::new(), lse: Vec::new(), argmax: Vec::new() };
    for m in 0..x.m() {
        let logits = logits(x, m);
        let lse = log_sum_exp(&logits);
        let mut best = 0;
        for v in 1..x.v {
            if logits[v] > logits[best] {
                best = v;
            }
        }
        stats.logprob.push(x.target(m).map_or(0.0, |target| logits[target] - lse));
        stats.lse.push(lse);
        stats.argmax.push(best as i32);
    }
    stats
}

/// Gradients for the upstream gradient `g [m]`: `(dx [m,d], dw [v,d])`.
pub fn backward(g: &[f64], x: &Operands<f64>) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; x.x.len()], vec![0.0; x.weight.len()]);
    for m in (0..x.m()).filter(|&m| g[m] != 0.0) {
        let Some(target) = x.target(m) else { continue };
        let logits = logits(x, m);
        let lse = log_sum_exp(&logits);
        for (v, logit) in logits.iter().enumerate() {
            let hot = if v == target { 1.0 } else { 0.0 };
            let dl = g[m] * (hot - (logit - lse).exp());
            for i in 0..x.d {
                dx[m * x.d + i] += dl * x.weight[v * x.d + i];
                dw[v * x.d + i] += dl * x.x[m * x.d + i];
            }
        }
    }
    (dx, dw)
}
