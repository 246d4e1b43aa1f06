//! Linear layer on the CPU: one matrix product per pass, on all threads.

use crate::matrix::{Store, View, product};

/// `y [m, o]` from `x [m, i]` and `w [o, i]`; `y` is overwritten.
pub(crate) fn forward(x: &[f32], w: &[f32], y: &mut [f32], [m, i, o]: [usize; 3]) {
    product(y, o, Store::Replace, View::rows(x, m, i, i), View::rows(w, o, i, i).transposed());
}

/// `dx [m, i]` from `dy [m, o]` and `w [o, i]`; `dx` is overwritten.
pub(crate) fn backward_x(dy: &[f32], w: &[f32], dx: &mut [f32], [m, i, o]: [usize; 3]) {
    product(dx, i, Store::Replace, View::rows(dy, m, o, o), View::rows(w, o, i, i));
}

/// `dw [o, i]` from `dy [m, o]` and `x [m, i]`; `dw` is overwritten.
pub(crate) fn backward_w(dy: &[f32], x: &[f32], dw: &mut [f32], [m, i, o]: [usize; 3]) {
    product(dw, i, Store::Replace, View::rows(dy, m, o, o).transposed(), View::rows(x, m, i, i));
}
