//! Log-probability of one token per row under the output head, with log-sum-exp and arg-max on the way.
//!
//! With the logits `l[m,v] = x[m]·W[v]` and `L[m] = ln Σ_v exp l[m,v]`:
//! ```text
//! logp[m] = l[m, target[m]] − L[m]          0 where the target is ignored
//! argmax[m] = the first v with the largest l[m,v]
//! ```
//! and backward, for an upstream gradient `g` of `logp`:
//! ```text
//! dl[m,v] = g[m]·( [v = target[m]] − exp(l[m,v] − L[m]) )          dx = dl·W          dW = dlᵀ·x
//! ```
//! Ignored rows and rows with `g = 0` have no gradient.
//!
//! # Shapes
//! `x [m,d]`, `W [v,d]`, targets, `logp`, `L`, `argmax` and `g` `[m]`.
//!
//! # Numerics
//! As in [`super::linear_cross_entropy`], whose chunks and blocks this op uses: products in f32, blocks combined in f64,
//! independent of the number of threads. The backward pass makes the logits again and takes `L` from the forward pass.

pub mod cases;
pub mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub use super::linear_cross_entropy::{IGNORED, Operands};
