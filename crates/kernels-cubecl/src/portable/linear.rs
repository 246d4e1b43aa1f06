//! Portable linear layer: one matrix product per pass.

use burn::tensor::{Shape, TensorMetadata, backend::Backend, ops::FloatTensor};

use super::{down, meta, rows, up, with_last};

/// Portable `x · wᵀ`.
pub(crate) fn linear<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let ((dtype, shape), o) = (meta(&x), weight.shape()[0]);
    let (m, i) = rows(&shape);
    down(up::<B, 2>(x, [m, i]).matmul(up::<B, 2>(weight, [o, i]).transpose()), dtype, with_last(&shape, o))
}

/// Portable `dy · w`.
pub(crate) fn linear_dx<B: Backend>(dy: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let ((dtype, shape), i) = (meta(&dy), weight.shape()[1]);
    let (m, o) = rows(&shape);
    down(up::<B, 2>(dy, [m, o]).matmul(up::<B, 2>(weight, [o, i])), dtype, with_last(&shape, i))
}

/// Portable `dyᵀ · x`.
pub(crate) fn linear_dw<B: Backend>(dy: FloatTensor<B>, x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = dy.dtype();
    let ((m, o), (_, i)) = (rows(&dy.shape()), rows(&x.shape()));
    down(up::<B, 2>(dy, [m, o]).transpose().matmul(up::<B, 2>(x, [m, i])), dtype, Shape::new([o, i]))
}
