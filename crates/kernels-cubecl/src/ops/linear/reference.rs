//! Linear layer by its definition: plain loops in f64.

/// `y [m, o]` from `x [m, i]` and `w [o, i]`.
pub fn forward(x: &[f64], w: &[f64], [m, i, o]: [usize; 3]) -> Vec<f64> {
    let mut y = vec![0.0; m * o];
    for row in 0..m {
        for out in 0..o {
            for k in 0..i {
                y[row * o + out] += x[row * i + k] * w[out * i + k];
            }
        }
    }
    y
}

/// `(dx [m, i], dw [o, i])` for the upstream gradient `dy [m, o]`.
pub fn backward(dy: &[f64], x: &[f64], w: &[f64], [m, i, o]: [usize; 3]) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; m * i], vec![0.0; o * i]);
    for row in 0..m {
        for out in 0..o {
            for k in 0..i {
                dx[row * i + k] += dy[row * o + out] * w[out * i + k];
                dw[out * i + k] += dy[row * o + out] * x[row * i + k];
            }
        }
    }
    (dx, dw)
}
