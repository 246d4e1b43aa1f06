//! From tokens to experts and back: sorting the slots of a routing, gathering tokens, combining what the experts made.
//!
//! Slot `s = token·k + j` is the `j`-th choice of a token. With `p(s)` the place of slot `s` in a stable sort by expert:
//! ```text
//! slot[p(s)] = s,   token[p(s)] = s / k,   position[s] = p(s)
//! offsets[e] = number of slots of experts before e
//! gather:   xs[p(s)] = x[s / k]                                dx[n] = Σ_j dxs[p(n·k + j)]
//! combine:  out[n] = Σ_j w[n,j]·y[p(n·k + j)]
//!           dy[p(s)] = w[s]·dout[s / k]                        dw[s] = Σ_d y[p(s),d]·dout[s / k,d]
//! ```
//! A slot whose expert is not in `0..n_experts` stands behind all others. It is no part of any sum: `xs` is zero there, and so
//! are its gradients, whatever stands in `y`.
//!
//! # Shapes
//! `experts [n, k]`, `x [n, d]`, `xs` and `y` `[n·k, d]`, `w [n, k]`, `out [n, d]`, `offsets [n_experts + 1]`.
//!
//! # Numerics
//! Gathering moves elements. Sums over the slots of a token are in f32 in the order of `j`; nothing is added atomically.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
