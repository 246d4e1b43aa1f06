//! Linear layer with bias by its definition: plain loops in f64.

use crate::ops::linear::reference as linear;

/// `y [m, o]` from `x [m, i]`, `w [o, i]` and `b [o]`.
pub fn forward(x: &[f64], w: &[f64], b: &[f64], dims: [usize; 3]) -> Vec<f64> {
    let mut y = linear::forward(x, w, dims);
    for (i, y) in y.iter_mut().enumerate() {
        *y += b[i % dims[2]];
    }
    y
}

/// `(dx [m, i], dw [o, i], db [o])` for the upstream gradient `dy [m, o]`.
pub fn backward(dy: &[f64], x: &[f64], w: &[f64], dims: [usize; 3]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (dx, dw) = linear::backward(dy, x, w, dims);
    let mut db = vec![0.0; dims[2]];
    for (i, dy) in dy.iter().enumerate() {
        db[i % dims[2]] += dy;
    }
    (dx, dw, db)
}
