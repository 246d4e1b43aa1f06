//! A linear layer per expert with a frozen weight in MXFP4.
//!
//! The maths is that of [`super::grouped_linear`] with `w = decode(codes, scales)`:
//! ```text
//! w[r, 32·b + j] = e2m1(code[r, 32·b + j])·2^(scale[r, b] − 127)
//! ```
//! The weight has no gradient; those of rows and biases are as there.
//!
//! # Shapes
//! `x [m, i]`, the weight of the dimensions `[e·o, i]` with `i` a multiple of 32, `y [m, o]`.
//!
//! # Numerics
//! Decoding is exact in f32 and in bf16. The scale 255 makes its block NaN, as the format says. At most one expert is decoded at
//! a time.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
