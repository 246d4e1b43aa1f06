//! Routing: the `k` experts with the largest logits of each token, and the softmax over these alone.
//!
//! ```text
//! c[n, 0..k]  = indices of the k largest of l[n, 0..e], the largest first; equal ones by index
//! w[n,j]      = exp(l[n,c[n,j]]) / Σ_i exp(l[n,c[n,i]])
//! dl[n,c[n,j]] = w[n,j]·(dw[n,j] − Σ_i w[n,i]·dw[n,i]),   0 elsewhere
//! ```
//! # Shapes
//! `l [n, e]`, `w` and `c` `[n, k]`.
//!
//! # Numerics
//! f32 inside, whatever the type of the logits; the weights are f32. The largest logit is subtracted first. In the order NaN
//! counts as +∞, so that a broken router shows in the weights and does not pass for an expert's.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
