//! Sum of squares by its definition.

/// `Σ x²`, element after element.
pub fn forward(x: &[f64]) -> f64 {
    let mut sum = 0.0;
    for x in x {
        sum += x * x;
    }
    sum
}

/// Factor of a summed gradient.
pub fn clip_scale(squares: f64, units: f64, max_norm: f64) -> f64 {
    let norm = squares.sqrt() / units;
    if units == 0.0 || !(norm as f32).is_finite() {
        return 0.0;
    }
    (max_norm / norm).min(1.0) / units
}
