//! Rotary position embedding on the query and key heads of a fused row, rotate-half convention.
//!
//! Each head of width `h` is split into halves `lo` and `hi`; pair `i` is turned by the angle of its position:
//! ```text
//! lo' = lo·cos − hi·sin
//! hi' = hi·cos + lo·sin
//! ```
//! The value heads stay as they are. A rotation's transpose is the rotation back, which is the whole backward pass.
//!
//! # Shapes
//! `qkv [b, t, (n + 2k)·h]`, `cos` and `sin` `[b, t, h/2]`.
//!
//! # Numerics
//! f32, element by element. The tables are made elsewhere; scaled ones (YaRN) need not be true rotations, so the backward
//! pass uses the transpose and not the inverse.
//!
//! # Source
//! Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", in the half-split layout of LLaMA checkpoints
//! in the Hugging Face format.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
