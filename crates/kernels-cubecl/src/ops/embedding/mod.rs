//! Embedding: rows of a table by id.
//!
//! ```text
//! y[m]  = w[id[m]]
//! dw[v] = Σ_{m: id[m] = v} dy[m]     in the order of m
//! ```
//! # Shapes
//! `w [v, d]`, `id [b, t]`, `y [b, t, d]`.
//!
//! # Numerics
//! The forward pass moves elements. The gradient adds the rows of an id in the order in which they stand in the batch, in
//! f32, whatever the number of threads: each task owns a range of the table's rows.
//!
//! # Panics
//! An id outside the table is a programmer's error: batches are checked where they are made.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
