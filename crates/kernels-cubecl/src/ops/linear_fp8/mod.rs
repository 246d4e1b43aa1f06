//! Linear layer with FP8 operands: `y = q(x)·q(W)ᵀ`.
//!
//! ```text
//! q(x)    = round(x·s) / s              s = 2ⁿ, the largest that keeps the peak in the format
//! y[m,o]  = Σ_i q(x)[m,i]·q(w)[o,i]     both e4m3
//! dx[m,i] = Σ_o q(dy)[m,o]·q(w)[o,i]    dy in e5m2
//! dw[o,i] = Σ_m q(dy)[m,o]·q(x)[m,i]
//! ```
//! # Shapes
//! `x [.., i]`, `w [o, i]`, `y [.., o]`, history `[3, n]`; the leading axes count as one of `m` rows. The matrix units take
//! `m`, `i` and `o` in groups of 16; a layer with another shape is computed as a plain linear layer throughout.
//!
//! # Numerics
//! One scale per tensor. Without a history its peak is the abs-max of the tensor itself. With one, it is the largest entry of
//! the tensor's row (x, w, dy), and numbers beyond it are rounded to the largest of the format; a row of zeros knows nothing
//! and counts as no history. The gradient of the history is the next one: this pass's abs-max in column 0, the others one
//! column on. Scales are powers of two, so that `q(x)` is exact in bf16. Numbers that are not finite take no part in the peak
//! and become NaN. The kernels that write `x` and `dy` may leave the peak in a slot ([`crate::Gathered`]), which saves a pass over
//! them and changes no bit. On CUDA, operands in bf16 meet in FP8 on the matrix units; others are rounded on the host, slowly.
//!
//! # Source
//! Micikevicius et al., FP8 Formats for Deep Learning, 2022.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod gathered;
pub mod reference;
#[cfg(test)]
mod tests;
