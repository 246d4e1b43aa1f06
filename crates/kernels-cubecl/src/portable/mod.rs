//! Portable bodies of the ops: burn tensor operations, f32 inside, whatever the backend.
//!
//! They are correct everywhere and fast nowhere; a backend overrides what it has a kernel for.

mod attention;
mod elementwise;
mod experts;
mod grouped;
mod head;
mod linear;
mod linear_fp8;
mod optimizer;

pub(crate) use attention::{attention_bwd, attention_cached, attention_fwd};
pub(crate) use elementwise::{
    embedding, embedding_bwd, rms_norm_bwd, rms_norm_fwd, rope_qkv, scale, sum_squares, swiglu, swiglu_bwd,
};
pub(crate) use experts::{
    combine, combine_bwd, dispatch, gather_tokens, gather_tokens_bwd, route, route_bwd, swiglu_clamped,
    swiglu_clamped_bwd,
};
pub(crate) use grouped::{
    fp8_decode, grouped_bias_grad, grouped_fp8, grouped_fp8_dx, grouped_linear, grouped_linear_dw, grouped_linear_dx,
    grouped_mxfp4, grouped_mxfp4_dx, grouped_sum, grouped_sum_dx, mxfp4_decode, scaled,
};
pub(crate) use head::{linear_cross_entropy_fwd, token_logprobs_bwd, token_stats};
pub(crate) use linear::{bias_grad, linear, linear_bias, linear_dw, linear_dx};
pub(crate) use linear_fp8::{linear_fp8_bwd, linear_fp8_fwd};
pub(crate) use optimizer::{adamw_step, clip_scale, sum_parts, sum_squares_into};

use burn::tensor::{DType, FloatDType, Int, Shape, Tensor, TensorPrimitive, backend::Backend};
use burn::tensor::{
    TensorMetadata,
    ops::{FloatTensor, IntTensor},
};

/// The primitive as an f32 tensor of the given shape.
fn up<B: Backend, const D: usize>(primitive: FloatTensor<B>, shape: [usize; D]) -> Tensor<B, D> {
    let tensor = B::float_reshape(primitive, Shape::new(shape));
    Tensor::<B, D>::from_primitive(TensorPrimitive::Float(tensor)).cast(FloatDType::F32)
}

/// The tensor as a primitive of the given element type and shape.
fn down<B: Backend, const D: usize>(tensor: Tensor<B, D>, dtype: DType, shape: Shape) -> FloatTensor<B> {
    B::float_reshape(tensor.cast::<FloatDType>(dtype.into()).into_primitive().tensor(), shape)
}

/// The integer primitive as a tensor of the given shape. Not `Tensor::reshape`, which reads a 0 as "keep this axis".
fn ints<B: Backend, const D: usize>(primitive: IntTensor<B>, shape: [usize; D]) -> Tensor<B, D, Int> {
    Tensor::from_primitive(B::int_reshape(primitive, Shape::new(shape)))
}

/// A tensor of zeros, or without elements.
fn zeros<B: Backend>(dtype: DType, shape: Shape, device: &B::Device) -> FloatTensor<B> {
    let float = FloatDType::from(dtype);
    match shape.num_elements() {
        // Not every backend fills nothing.
        0 => B::float_empty(shape, device, float),
        _ => B::float_zeros(shape, device, float),
    }
}

/// `[.., k]` as `(rows, k)`; an empty tensor has no rows.
fn rows(shape: &Shape) -> (usize, usize) {
    let k = shape[shape.num_dims() - 1];
    (shape.num_elements().checked_div(k).unwrap_or(0), k)
}

/// The shape with another last axis.
fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    if let Some(slot) = dims.last_mut() {
        *slot = last;
    }
    Shape::from(dims)
}

/// Element type and shape of a primitive.
fn meta<T: TensorMetadata>(primitive: &T) -> (DType, Shape) {
    (primitive.dtype(), primitive.shape())
}
