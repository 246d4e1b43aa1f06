//! Adding a gradient to what is there, and scaling one by a number.
//!
//! ```text
//! add_assign: acc ← acc + x
//! scale:      x   ← factor·x      factor is a tensor of one element
//! ```
//! # Shapes
//! Any; both operands of the sum have one shape.
//!
//! # Numerics
//! One rounding per element, so the result is exact to the last bit on every backend that computes in f32.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
