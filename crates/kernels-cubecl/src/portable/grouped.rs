//! Portable linear layers per expert: one product of the backend for each expert that has rows.
//!
//! The bounds of the experts are read on the host; a backend that cannot afford the wait overrides these.

use std::ops::Range;

use burn::tensor::{
    DType, Int, Shape, Tensor, TensorData, TensorMetadata, TensorPrimitive,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

use super::{down, ints, zeros};
use crate::functions::unwrap;
use crate::mxfp4::{self, CODES, SCALES, TABLE};
use crate::packed::{self, FP8_CODES};
use crate::{ExpertWeight, Fp8Rows, LmBackend, MXFP4_BLOCK, Mxfp4, Packed};

/// Sorted rows of each expert, on the host.
fn groups<B: Backend>(offsets: IntTensor<B>) -> Vec<Range<usize>> {
    let n = offsets.shape()[0];
    let bounds: Vec<usize> =
        ints::<B, 1>(offsets, [n]).into_data().iter::<i64>().map(|at| usize::try_from(at).unwrap_or(0)).collect();
    bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// `n` rows of a matrix, or elements of a vector, from `at` on.
fn part<B: Backend, const D: usize>(tensor: &FloatTensor<B>, at: usize, n: usize) -> FloatTensor<B> {
    let tensor = Tensor::<B, D>::from_primitive(TensorPrimitive::Float(tensor.clone()));
    tensor.narrow(0, at, n).into_primitive().tensor()
}

/// Runs `f(expert, rows)` for each expert with rows and puts the results `[rows, width]` under each other, above zeros.
fn per_rows<B: Backend>(
    like: &FloatTensor<B>,
    offsets: IntTensor<B>,
    width: usize,
    mut f: impl FnMut(usize, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let (m, dtype, device) = (like.shape()[0], like.dtype(), B::float_device(like));
    if like.shape().num_elements() == 0 || width == 0 {
        return zeros::<B>(dtype, Shape::new([m, width]), &device);
    }
    let groups = groups::<B>(offsets);
    let end = groups.last().map_or(0, |group| group.end);
    let mut parts = Vec::new();
    for (expert, group) in groups.into_iter().enumerate().filter(|(_, group)| !group.is_empty()) {
        parts.push(f(expert, part::<B, 2>(like, group.start, group.len())));
    }
    if end < m {
        parts.push(zeros::<B>(dtype, Shape::new([m - end, width]), &device));
    }
    B::float_cat(parts, 0)
}

/// Portable linear layer per expert.
pub(crate) fn grouped_linear<B: LmBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let o = weight.shape()[0] / (offsets.shape()[0] - 1);
    per_rows::<B>(&x, offsets, o, |e, x| {
        let weight = part::<B, 2>(&weight, e * o, o);
        match &bias {
            Some(bias) => B::lm_linear_bias(x, weight, part::<B, 1>(bias, e * o, o)),
            None => B::lm_linear(x, weight),
        }
    })
}

/// Portable gradient of the rows.
pub(crate) fn grouped_linear_dx<B: LmBackend>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let (shape, n_experts) = (weight.shape(), offsets.shape()[0] - 1);
    let (o, i) = (shape[0] / n_experts, shape[1]);
    per_rows::<B>(&dy, offsets, i, |e, dy| B::lm_linear_dx(dy, part::<B, 2>(&weight, e * o, o)))
}

/// Portable gradient of the weight.
pub(crate) fn grouped_linear_dw<B: LmBackend>(
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let (dtype, device, n_experts) = (dy.dtype(), B::float_device(&dy), offsets.shape()[0] - 1);
    let (m, o, i) = (dy.shape()[0], dy.shape()[1], x.shape()[1]);
    if m * o * i == 0 {
        return zeros::<B>(dtype, Shape::new([n_experts * o, i]), &device);
    }
    let one = |group: Range<usize>| match group.is_empty() {
        true => zeros::<B>(dtype, Shape::new([o, i]), &device),
        false => {
            B::lm_linear_dw(part::<B, 2>(&dy, group.start, group.len()), part::<B, 2>(&x, group.start, group.len()))
        }
    };
    B::float_cat(groups::<B>(offsets).into_iter().map(one).collect(), 0)
}

/// Portable gradient of the biases.
pub(crate) fn grouped_bias_grad<B: LmBackend>(
    dy: FloatTensor<B>,
    offsets: IntTensor<B>,
    dtype: DType,
) -> FloatTensor<B> {
    let (device, n_experts) = (B::float_device(&dy), offsets.shape()[0] - 1);
    let (m, o) = (dy.shape()[0], dy.shape()[1]);
    if m * o == 0 {
        return zeros::<B>(dtype, Shape::new([n_experts * o]), &device);
    }
    let one = |group: Range<usize>| match group.is_empty() {
        true => zeros::<B>(dtype, Shape::new([o]), &device),
        false => B::lm_bias_grad(part::<B, 2>(&dy, group.start, group.len()), dtype),
    };
    B::float_cat(groups::<B>(offsets).into_iter().map(one).collect(), 0)
}

/// Portable MXFP4 decoder: codes and scales are looked up in tables.
pub(crate) fn mxfp4_decode<B: Backend>(matrix: &Mxfp4<B>, dtype: DType) -> FloatTensor<B> {
    let ([rows, i], device) = (matrix.dims(), matrix.codes.device());
    let shape = Shape::new([rows, i]);
    if rows * i == 0 {
        return zeros::<B>(dtype, shape, &device);
    }
    let n_blocks = i / MXFP4_BLOCK;
    let table = |values: Vec<f32>| {
        let n = values.len();
        Tensor::<B, 1>::from_data(TensorData::new(values, [n]), (&device, DType::F32))
    };
    let numbers = table(TABLE.to_vec()).select(0, unpacked(&matrix.codes, CODES));
    let scales = unpacked(&matrix.scales, SCALES).reshape([rows, matrix.scales.dims()[1] * SCALES]);
    let scales = scales.narrow(1, 0, n_blocks).reshape([rows * n_blocks]);
    let powers = table((0..=u8::MAX).map(mxfp4::power).collect()).select(0, scales);
    let numbers = numbers.reshape([rows * n_blocks, MXFP4_BLOCK]) * powers.reshape([rows * n_blocks, 1]);
    down(numbers, dtype, shape)
}

/// The `n` fields of each word, the lowest first.
fn unpacked<B: Backend>(words: &Tensor<B, 2, Int>, n: usize) -> Tensor<B, 1, Int> {
    let ([rows, width], bits, device) = (words.dims(), 32 / n, words.device());
    let len = rows * width;
    let shifts: Vec<i32> = (0..n).map(|i| (i * bits) as i32).collect();
    let shifts = Tensor::<B, 1, Int>::from_data(TensorData::new(shifts, [n]), (&device, DType::I32));
    let shifted = words.clone().reshape([len, 1]).expand([len, n]);
    let shifted = shifted.bitwise_right_shift(shifts.reshape([1, n]).expand([len, n]));
    let mask = Tensor::<B, 2, Int>::full([len, n], (1i32 << bits) - 1, (&device, DType::I32));
    shifted.bitwise_and(mask).reshape([len * n])
}

/// Portable linear layer per expert in MXFP4: one expert is decoded at a time.
pub(crate) fn grouped_mxfp4<B: LmBackend>(
    x: FloatTensor<B>,
    weight: &Mxfp4<B>,
    bias: Option<FloatTensor<B>>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let o = weight.dims()[0] / (offsets.shape()[0] - 1);
    let dtype = x.dtype();
    per_rows::<B>(&x, offsets, o, |e, x| {
        let weight = B::lm_mxfp4_decode(&weight.rows(e * o, o), dtype);
        match &bias {
            Some(bias) => B::lm_linear_bias(x, weight, part::<B, 1>(bias, e * o, o)),
            None => B::lm_linear(x, weight),
        }
    })
}

/// Portable gradient of the rows in MXFP4.
pub(crate) fn grouped_mxfp4_dx<B: LmBackend>(
    dy: FloatTensor<B>,
    weight: &Mxfp4<B>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let [rows, i] = weight.dims();
    let (o, dtype) = (rows / (offsets.shape()[0] - 1), dy.dtype());
    per_rows::<B>(&dy, offsets, i, |e, dy| B::lm_linear_dx(dy, B::lm_mxfp4_decode(&weight.rows(e * o, o), dtype)))
}

/// The tensor times a number that is often one.
pub(crate) fn scaled<B: Backend>(x: FloatTensor<B>, factor: f32) -> FloatTensor<B> {
    if factor == 1.0 || x.shape().num_elements() == 0 { x } else { B::float_mul_scalar(x, factor.into()) }
}

/// The sum of two tensors, which may be empty: not every backend adds nothing.
fn sum<B: Backend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    if x.shape().num_elements() == 0 { x } else { B::float_add(x, y) }
}

/// Portable linear layer per expert with a second product.
pub(crate) fn grouped_sum<B: LmBackend>(
    x: FloatTensor<B>,
    weight: &ExpertWeight<B>,
    bias: Option<FloatTensor<B>>,
    [low, up]: [FloatTensor<B>; 2],
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let y = match weight {
        ExpertWeight::Dense(weight) => B::lm_grouped_linear(x, unwrap(weight.clone()), bias, offsets.clone()),
        ExpertWeight::Packed(Packed::Mxfp4(weight)) => B::lm_grouped_mxfp4(x, weight, bias, offsets.clone()),
        ExpertWeight::Packed(Packed::Fp8(weight)) => match bias {
            Some(bias) => B::lm_grouped_fp8(x, weight, bias, offsets.clone()),
            None => {
                let dtype = x.dtype();
                B::lm_grouped_linear(x, B::lm_fp8_decode(weight, dtype), None, offsets.clone())
            }
        },
    };
    sum::<B>(y, B::lm_grouped_linear(low, up, None, offsets))
}

/// Portable gradient of the rows with a second product.
pub(crate) fn grouped_sum_dx<B: LmBackend>(
    dy: FloatTensor<B>,
    weight: &ExpertWeight<B>,
    [dlow, down]: [FloatTensor<B>; 2],
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let dx = match weight {
        ExpertWeight::Dense(weight) => B::lm_grouped_linear_dx(dy, unwrap(weight.clone()), offsets.clone()),
        ExpertWeight::Packed(Packed::Mxfp4(weight)) => B::lm_grouped_mxfp4_dx(dy, weight, offsets.clone()),
        ExpertWeight::Packed(Packed::Fp8(weight)) => B::lm_grouped_fp8_dx(dy, weight, offsets.clone()),
    };
    sum::<B>(dx, B::lm_grouped_linear_dx(dlow, down, offsets))
}

/// Portable FP8 decoder: codes and scales are looked up in tables.
pub(crate) fn fp8_decode<B: Backend>(matrix: &Fp8Rows<B>, dtype: DType) -> FloatTensor<B> {
    let ([rows, i], device) = (matrix.dims(), matrix.codes.device());
    let shape = Shape::new([rows, i]);
    if rows * i == 0 {
        return zeros::<B>(dtype, shape, &device);
    }
    let looked_up = |values: Vec<f32>, at: Tensor<B, 1, Int>| {
        let n = values.len();
        Tensor::<B, 1>::from_data(TensorData::new(values, [n]), (&device, DType::F32)).select(0, at)
    };
    let numbers = looked_up((0..=u8::MAX).map(packed::number).collect(), unpacked(&matrix.codes, FP8_CODES));
    let factors = looked_up((0..255).map(packed::factor).collect(), matrix.scales.clone().reshape([rows]));
    down(numbers.reshape([rows, i]) * factors.reshape([rows, 1]), dtype, shape)
}

/// Portable linear layer per expert in FP8: one expert is decoded at a time.
pub(crate) fn grouped_fp8<B: LmBackend>(
    x: FloatTensor<B>,
    weight: &Fp8Rows<B>,
    bias: FloatTensor<B>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let o = weight.dims()[0] / (offsets.shape()[0] - 1);
    let dtype = x.dtype();
    per_rows::<B>(&x, offsets, o, |e, x| {
        B::lm_linear_bias(x, B::lm_fp8_decode(&weight.rows(e * o, o), dtype), part::<B, 1>(&bias, e * o, o))
    })
}

/// Portable gradient of the rows in FP8.
pub(crate) fn grouped_fp8_dx<B: LmBackend>(
    dy: FloatTensor<B>,
    weight: &Fp8Rows<B>,
    offsets: IntTensor<B>,
) -> FloatTensor<B> {
    let [rows, i] = weight.dims();
    let (o, dtype) = (rows / (offsets.shape()[0] - 1), dy.dtype());
    per_rows::<B>(&dy, offsets, i, |e, dy| B::lm_linear_dx(dy, B::lm_fp8_decode(&weight.rows(e * o, o), dtype)))
}
