//! Linear layer with bias: `y = x·Wᵀ + b`.
//!
//! ```text
//! y[m,o] = Σ_i x[m,i]·w[o,i] + b[o]
//! db[o]  = Σ_m dy[m,o]
//! ```
//! The gradients of `x` and `w` are those of [`super::linear`].
//!
//! # Shapes
//! `x [.., i]`, `w [o, i]`, `b [o]`, `y [.., o]`; the leading axes count as one of `m` rows.
//!
//! # Numerics
//! Products and sums as in [`super::linear`]; the bias is added to the finished sum, which is rounded to the result's type
//! afterwards. On the CPU a bias's gradient is a sum in f64 over the rows in their order, on CUDA one in f32 over a fixed tree.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
