//! RMS norm by its definition: plain loops in f64.

/// `(y, r)`: normalised rows and the reciprocal root of each row.
pub fn forward(x: &[f64], gamma: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = gamma.len();
    let (mut y, mut rstd) = (Vec::new(), Vec::new());
    for row in x.chunks(d) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / d as f64;
        let r = 1.0 / (mean + eps).sqrt();
        y.extend(row.iter().zip(gamma).map(|(x, g)| x * r * g));
        rstd.push(r);
    }
    (y, rstd)
}

/// `(dx, dγ)` for the upstream gradient `dy`.
pub fn backward(dy: &[f64], x: &[f64], gamma: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = gamma.len();
    let (_, rstd) = forward(x, gamma, eps);
    let (mut dx, mut dgamma) = (Vec::new(), vec![0.0; d]);
    for ((dy, x), r) in dy.chunks(d).zip(x.chunks(d)).zip(rstd) {
        let mean = (0..d).map(|i| dy[i] * gamma[i] * x[i] * r).sum::<f64>() / d as f64;
        for i in 0..d {
            dgamma[i] += dy[i] * x[i] * r;
            dx.push(r * (dy[i] * gamma[i] - x[i] * r * mean));
        }
    }
    (dx, dgamma)
}
