//! Linear layer without bias: `y = x·Wᵀ`.
//!
//! ```text
//! y[m,o]  = Σ_i x[m,i]·w[o,i]
//! dx[m,i] = Σ_o dy[m,o]·w[o,i]
//! dw[o,i] = Σ_m dy[m,o]·x[m,i]
//! ```
//! # Shapes
//! `x [.., i]`, `w [o, i]`, `y [.., o]`; the leading axes count as one of `m` rows.
//!
//! # Numerics
//! f32 products and sums. The sums run in blocks whose borders depend on the shape alone, so results do not depend on the
//! number of threads. [`crate::linear_f32`] gives the sums of bf16 operands without rounding them to bf16.

pub mod cases;
pub(crate) mod cpu;
pub mod reference;
