//! A linear layer per expert with a frozen weight in FP8 by rows.
//!
//! The maths is that of [`super::grouped_linear`] with `w = decode(codes, scales)`:
//! ```text
//! w[r, j] = e4m3(code[r, j])·2^(scale[r] − 127)
//! ```
//! The weight has no gradient; those of rows and biases are as there.
//!
//! # Shapes
//! `x [m, i]`, the weight of the dimensions `[e·o, i]` with `i` a multiple of 4, `bias [e·o]`, `y [m, o]`.
//!
//! # Numerics
//! Decoding is exact in f32 and in bf16. Rounding to the format errs by up to a sixteenth of a number, where bf16 errs by up to a
//! 256th; a number below 2⁻¹⁴ of its row's largest loses more. On CUDA all experts are decoded before the products, elsewhere
//! one at a time.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
