//! Head and cross-entropy by their definition: plain loops in f64, a whole row of logits at a time.

use super::Operands;

/// Both sums of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sums {
    /// Σ w·(nll + z·L²).
    pub loss: f64,
    /// Σ w·nll.
    pub nll: f64,
}

/// Logits of row `m`.
pub(crate) fn logits(x: &Operands<f64>, m: usize) -> Vec<f64> {
    let row = x.row(m);
    (0..x.v).map(|v| (0..x.d).map(|i| row[i] * x.weight[v * x.d + i]).sum()).collect()
}

/// ln Σ exp of the logits; −∞ where each of them is.
pub(crate) fn log_sum_exp(logits: &[f64]) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &l| if l > max { l } else { max });
    let shift = if max == f64::NEG_INFINITY { 0.0 } else { max };
    shift + logits.iter().map(|l| (l - shift).exp()).sum::<f64>().ln()
}

/// Rows that take part.
fn active(x: &Operands<f64>, weights: &[f64]) -> Vec<(usize, usize)> {
    let rows = (0..x.m()).filter(|&m| weights[m] != 0.0);
    rows.filter_map(|m| x.target(m).map(|target| (m, target))).collect()
}

/// The two sums; `weights` is `[m]`.
pub fn forward(x: &Operands<f64>, weights: &[f64], z_loss: f64) -> Sums {
    let mut sums = Sums { loss: 0.0, nll: 0.0 };
    for (m, target) in active(x, weights) {
        let logits = logits(x, m);
        let lse = log_sum_exp(&logits);
        let nll = lse - logits[target];
        sums.nll += weights[m] * nll;
        sums.loss += weights[m] * (nll + z_loss * lse * lse);
    }
    sums
}

/// Gradients of the loss: `(dx [m,d], dw [v,d])`.
pub fn backward(x: &Operands<f64>, weights: &[f64], z_loss: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; x.x.len()], vec![0.0; x.weight.len()]);
    for (m, target) in active(x, weights) {
        let logits = logits(x, m);
        let lse = log_sum_exp(&logits);
        for (v, logit) in logits.iter().enumerate() {
            let hot = if v == target { 1.0 } else { 0.0 };
            let dl = weights[m] * ((1.0 + 2.0 * z_loss * lse) * (logit - lse).exp() - hot);
            for i in 0..x.d {
                dx[m * x.d + i] += dl * x.weight[v * x.d + i];
                dw[v * x.d + i] += dl * x.x[m * x.d + i];
            }
        }
    }
    (dx, dw)
}
