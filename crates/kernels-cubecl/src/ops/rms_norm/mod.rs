//! Root-mean-square norm over the last axis, alone and fused with the residual add before it.
//!
//! With `r = 1/√(mean(x²) + eps)` and `x̂ = r·x`:
//! ```text
//! y  = x̂·γ
//! dγ = Σ_m dy·x̂
//! dx = r·(dy·γ − x̂·mean(dy·γ·x̂))  [+ carry]
//! ```
//! The fused form first makes `x ← x + residual` and also returns that sum. `carry` is the gradient that reached `x` on
//! another way, usually along the residual stream; adding it here saves a pass over memory.
//!
//! # Shapes
//! `x [.., d]`, `γ [d]`, `r [m]`.
//!
//! # Numerics
//! f32; a row's sums run over 16 lanes that are folded in a fixed order, `dγ` over fixed groups of rows.
//!
//! # Source
//! Zhang and Sennrich, "Root Mean Square Layer Normalization".

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
