//! Gated unit: `silu(gate)·up`, where a row is `[gate | up]`.
//!
//! With `σ = 1/(1 + exp(−gate))`:
//! ```text
//! y     = gate·σ·up
//! dgate = dy·up·σ·(1 + gate·(1 − σ))
//! dup   = dy·gate·σ
//! ```
//! # Shapes
//! `gate_up [.., 2f]`, `y [.., f]`.
//!
//! # Numerics
//! f32 with the vectorised exponential of this crate. `gate·σ` is computed as `gate/(1 + exp(−gate))`, which is right for
//! every finite gate; at −∞ it is NaN, as in the definition.
//!
//! # Source
//! Shazeer, "GLU Variants Improve Transformer".

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
