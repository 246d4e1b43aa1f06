//! A linear layer per expert by its definition: plain loops in f64.

/// `y [m, o]` from `x [m, i]`, `w [e·o, i]` and `b [e·o]`.
pub fn forward(x: &[f64], w: &[f64], b: Option<&[f64]>, offsets: &[usize], [m, i, o]: [usize; 3]) -> Vec<f64> {
    let mut y = vec![0.0; m * o];
    for (e, rows) in offsets.windows(2).enumerate() {
        for row in rows[0]..rows[1] {
            for out in 0..o {
                let sum: f64 = (0..i).map(|k| x[row * i + k] * w[(e * o + out) * i + k]).sum();
                y[row * o + out] = sum + b.map_or(0.0, |b| b[e * o + out]);
            }
        }
    }
    y
}

/// `(dx [m, i], dw [e·o, i], db [e·o])` for the upstream gradient `dy [m, o]`.
pub fn backward(
    dy: &[f64],
    x: &[f64],
    w: &[f64],
    offsets: &[usize],
    [m, i, o]: [usize; 3],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw, mut db) = (vec![0.0; m * i], vec![0.0; w.len()], vec![0.0; (offsets.len() - 1) * o]);
    for (e, rows) in offsets.windows(2).enumerate() {
        for row in rows[0]..rows[1] {
            for out in 0..o {
                let (dy, w_row) = (dy[row * o + out], e * o + out);
                db[w_row] += dy;
                for k in 0..i {
                    dx[row * i + k] += dy * w[w_row * i + k];
                    dw[w_row * i + k] += dy * x[row * i + k];
                }
            }
        }
    }
    (dx, dw, db)
}
