//! Sum of squares by its definition.

/// `Σ x²`, element after element.
pub fn forward(x: &[f64]) -> f64 {
    let mut sum = 0.0;
    for x in x {
        sum += x * x;
    }
    sum
}
