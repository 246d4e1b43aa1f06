//! GPT-OSS's gated unit: interleaved rows, clamped gate and up, one added to up.
//!
//! With `g = min(gate, limit)`, `u = clamp(up, −limit, limit)` and `σ = 1/(1 + exp(−alpha·g))`:
//! ```text
//! y     = (u + 1)·g·σ
//! dgate = dy·(u + 1)·σ·(1 + alpha·g·(1 − σ))   where gate ≤ limit, else 0
//! dup   = dy·g·σ                               where |up| ≤ limit, else 0
//! ```
//! # Shapes
//! `gate_up [.., 2f]` with gates in even and ups in odd columns, `y [.., f]`.
//!
//! # Numerics
//! f32 inside. At the limit itself the gradient passes, as torch's clamp has it. NaN stays NaN.
//!
//! # Source
//! The published GPT-OSS models; the gate has no lower bound.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
