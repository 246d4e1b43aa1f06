//! Gated unit by its definition: plain loops in f64.

/// `y [m, f]` from rows `[gate | up]` of width `2f`.
pub fn forward(gate_up: &[f64], f: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for row in gate_up.chunks(2 * f.max(1)) {
        for i in 0..f {
            y.push(row[i] / (1.0 + (-row[i]).exp()) * row[f + i]);
        }
    }
    y
}

/// Gradient of `gate_up` for the upstream gradient `dy`.
pub fn backward(dy: &[f64], gate_up: &[f64], f: usize) -> Vec<f64> {
    let mut grad = vec![0.0; gate_up.len()];
    for (m, row) in gate_up.chunks(2 * f.max(1)).enumerate() {
        for i in 0..f {
            let (gate, up, dy) = (row[i], row[f + i], dy[m * f + i]);
            let sigma = 1.0 / (1.0 + (-gate).exp());
            grad[m * 2 * f + i] = dy * up * sigma * (1.0 + gate * (1.0 - sigma));
            grad[m * 2 * f + f + i] = dy * gate * sigma;
        }
    }
    grad
}
