//! Embedding by its definition: plain loops in f64.

/// `y [m, d]`: the table's rows by id.
pub fn forward(w: &[f64], ids: &[i32], d: usize) -> Vec<f64> {
    ids.iter().flat_map(|&id| w[id as usize * d..][..d].iter().copied()).collect()
}

/// Gradient of the table with `v` rows.
pub fn backward(dy: &[f64], ids: &[i32], [v, d]: [usize; 2]) -> Vec<f64> {
    let mut dw = vec![0.0; v * d];
    for (m, &id) in ids.iter().enumerate() {
        for i in 0..d {
            dw[id as usize * d + i] += dy[m * d + i];
        }
    }
    dw
}
