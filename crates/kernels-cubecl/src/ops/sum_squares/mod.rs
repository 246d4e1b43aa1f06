//! Sum of squares of a tensor: the piece of the global gradient norm.
//!
//! ```text
//! s = Σ x²
//! ```
//! # Shapes
//! `x [..]`, `s [1]`. No backward pass: it is used on gradients.
//!
//! # Numerics
//! Squares and sums in f64, over pieces of fixed length whose sums are added in order; rounded to f32 at the end.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
