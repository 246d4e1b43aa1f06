//! The clamped gated unit by its definition: plain loops in f64.

/// Clamped gate and up, and the logistic function of the gate.
fn parts(pair: &[f64], alpha: f64, limit: f64) -> [f64; 3] {
    let gate = if pair[0] > limit { limit } else { pair[0] };
    let up = if pair[1].is_nan() { pair[1] } else { pair[1].clamp(-limit, limit) };
    [gate, up, 1.0 / (1.0 + (-alpha * gate).exp())]
}

/// `y` with an element per pair of `gate_up`.
pub fn forward(gate_up: &[f64], alpha: f64, limit: f64) -> Vec<f64> {
    let one = |pair: &[f64]| {
        let [gate, up, sigma] = parts(pair, alpha, limit);
        (up + 1.0) * gate * sigma
    };
    gate_up.chunks(2).map(one).collect()
}

/// Gradient of `gate_up`.
pub fn backward(dy: &[f64], gate_up: &[f64], alpha: f64, limit: f64) -> Vec<f64> {
    let one = |(pair, dy): (&[f64], &f64)| {
        let [gate, up, sigma] = parts(pair, alpha, limit);
        let dgate = dy * (up + 1.0) * sigma * (1.0 + alpha * gate * (1.0 - sigma));
        let dup = dy * gate * sigma;
        [if pair[0] > limit { 0.0 } else { dgate }, if pair[1].abs() > limit { 0.0 } else { dup }]
    };
    gate_up.chunks(2).zip(dy).flat_map(one).collect()
}
