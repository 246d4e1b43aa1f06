//! Sum of squares of one tensor or of many: the global gradient norm, and the factor that clips it.
//!
//! ```text
//! s     = Σ x²
//! norm  = √s / units
//! scale = min(1, max_norm / norm) / units      0 where the norm is not finite or units is 0
//! ```
//! Over many tensors, each leaves partial sums in its row of `parts [n, SUM_PARTS]`, and one launch adds all of them, so that
//! neither the sum nor the factor visits the host.
//!
//! # Shapes
//! `x [..]`, `s [1]`, `scale [1]`. No backward pass: it is used on gradients.
//!
//! # Numerics
//! On the CPU squares and sums in f64, over pieces of fixed length whose sums are added in order; rounded to f32 at the end.
//! On CUDA in f32: a thread adds a few hundred squares at most, the rest is a tree of fixed shape.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;

/// Partial sums that a tensor may leave.
pub const SUM_PARTS: usize = 1024;

/// Factor of a gradient with this sum of squares; see the module.
pub(crate) fn clip_scale(squares: f32, units: f32, max_norm: f32) -> f32 {
    let norm = squares.sqrt() / units;
    match norm.is_finite() && units != 0.0 {
        true if norm > max_norm => max_norm / norm / units,
        true => 1.0 / units,
        false => 0.0,
    }
}
