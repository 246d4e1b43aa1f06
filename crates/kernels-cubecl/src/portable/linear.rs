//! Portable linear layer: one matrix product per pass.

use burn::tensor::{DType, Shape, TensorMetadata, backend::Backend, ops::FloatTensor};

use super::{down, meta, rows, up, with_last, zeros};

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

/// Portable `x · wᵀ + b`, rounded once.
pub(crate) fn linear_bias<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    dtype: DType,
) -> FloatTensor<B> {
    let (shape, o) = (x.shape(), weight.shape()[0]);
    let (m, i) = rows(&shape);
    if m * o == 0 {
        return zeros::<B>(dtype, with_last(&shape, o), &B::float_device(&x));
    }
    let y = up::<B, 2>(x, [m, i]).matmul(up::<B, 2>(weight, [o, i]).transpose());
    down(y + up::<B, 2>(bias, [1, o]), dtype, with_last(&shape, o))
}

/// Portable sums of columns.
pub(crate) fn bias_grad<B: Backend>(dy: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    let shape = dy.shape();
    let (m, o) = (rows(&shape).0, shape[shape.num_dims() - 1]);
    if m * o == 0 {
        return zeros::<B>(dtype, Shape::new([o]), &B::float_device(&dy));
    }
    down(up::<B, 2>(dy, [m, o]).sum_dim(0), dtype, Shape::new([o]))
}
