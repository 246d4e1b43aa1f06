//! A linear layer per expert over rows that are sorted by expert.
//!
//! Expert `e` owns the rows `r` in `offsets[e]..offsets[e + 1]` and the rows `e·o..(e + 1)·o` of the weight, `w_e`:
//! ```text
//! y[r]  = x[r]·w_eᵀ + b_e          dx[r] = dy[r]·w_e
//! dw_e  = Σ_r dy[r]ᵀ·x[r]          db_e  = Σ_r dy[r]          over the rows of e, in their order
//! ```
//! Rows behind the last expert give zeros and have no part in any gradient; an expert without rows has a zero gradient.
//!
//! # Shapes
//! `x [m, i]`, `w [e·o, i]`, `b [e·o]`, `offsets [e + 1]` from [`crate::dispatch`], `y [m, o]`. An adapter of rank `r` is two of
//! these, `[e·r, i]` and `[e·o, r]`; their product is never made.
//!
//! # Numerics
//! As [`super::linear_bias`] for each expert: results do not depend on the other experts or on the number of threads.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod lora;
pub mod reference;
