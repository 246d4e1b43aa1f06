//! Accumulation by its definition, in f64.

/// `acc + x`.
pub fn add_assign(acc: &[f64], x: &[f64]) -> Vec<f64> {
    acc.iter().zip(x).map(|(acc, x)| acc + x).collect()
}

/// `factor·x`.
pub fn scale(x: &[f64], factor: f64) -> Vec<f64> {
    x.iter().map(|x| factor * x).collect()
}
