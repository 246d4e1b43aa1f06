//! The overrides of linear layers with a bias and of the mixture of experts.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::ops::{FloatTensorOps, IntTensor};
use burn::tensor::{DType, FloatDType, Int, Shape, Tensor, TensorMetadata};
use burn_flex::FlexTensor;

use super::dense::{Dense, int_tensor, tensor, whole_numbers};
use super::{fast, with_last};
use crate::ops::grouped_linear::cpu::groups;
use crate::ops::{dispatch, grouped_fp8, grouped_linear, grouped_mxfp4, linear, linear_bias, route, swiglu_clamped};
use crate::{Dispatch, Fp8Rows, Mxfp4, Tracked, portable};

/// The sum of a fast path in the element type that was asked for.
fn narrowed(sums: FlexTensor, dtype: DType) -> FlexTensor {
    match dtype {
        DType::F32 => sums,
        dtype => <Flex as FloatTensorOps<Flex>>::float_cast(sums, FloatDType::from(dtype)),
    }
}

pub(super) fn linear_bias(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
    let [x, weight, bias] = [x, weight, bias].map(Dense::new);
    let ((m, i), o) = (x.rows(), weight.shape()[0]);
    let mut y = vec![0.0; m * o];
    linear::cpu::forward(x.get(), weight.get(), &mut y, [m, i, o]);
    linear_bias::cpu::add(&mut y, bias.get());
    tensor(y, with_last(&x.shape(), o))
}

pub(super) fn bias_grad(dy: FlexTensor, dtype: DType) -> FlexTensor {
    let dy = Dense::new(dy);
    let ((m, _), shape) = (dy.rows(), dy.shape());
    let o = shape[shape.num_dims() - 1];
    let mut sums = vec![0.0; o];
    linear_bias::cpu::column_sums(dy.get(), std::slice::from_ref(&(0..m)), &mut sums, o);
    narrowed(tensor(sums, Shape::new([o])), dtype)
}

pub(super) fn route(logits: FlexTensor, top_k: usize) -> (FlexTensor, FlexTensor) {
    let logits = Dense::new(logits);
    let (n, e) = (logits.shape()[0], logits.shape()[1]);
    let (weights, experts) = route::cpu::forward(logits.get(), e, top_k);
    let shape = Shape::new([n, top_k]);
    (tensor(weights, shape.clone()), int_tensor(experts, shape))
}

pub(super) fn route_bwd(
    dweights: FlexTensor,
    weights: FlexTensor,
    experts: &FlexTensor,
    n_experts: usize,
    dtype: DType,
) -> FlexTensor {
    let [dweights, weights] = [dweights, weights].map(Dense::new);
    let (n, k) = (weights.shape()[0], weights.shape()[1]);
    let mut dlogits = vec![0.0; n * n_experts];
    let experts = whole_numbers(experts);
    route::cpu::backward(dweights.get(), weights.get(), &experts, &mut dlogits, [n_experts, k]);
    narrowed(tensor(dlogits, Shape::new([n, n_experts])), dtype)
}

pub(super) fn dispatch(experts: &FlexTensor, n_experts: usize) -> Dispatch<Flex> {
    let k = experts.shape()[1];
    let sorted = dispatch::cpu::sort(&whole_numbers(experts), k, n_experts);
    let vector = |values: Vec<i32>| {
        let shape = Shape::new([values.len()]);
        Tensor::from_primitive(int_tensor(values, shape))
    };
    Dispatch {
        token: vector(sorted.token),
        slot: vector(sorted.slot),
        position: vector(sorted.position),
        offsets: vector(sorted.offsets),
    }
}

/// The whole numbers of one of a dispatch's fields.
fn numbers(field: &Tensor<Flex, 1, Int>) -> Vec<i32> {
    let primitive: IntTensor<Flex> = field.clone().into_primitive();
    whole_numbers(&primitive)
}

/// Number of sorted rows that belong to an expert.
fn live(at: &Dispatch<Flex>) -> usize {
    let end = numbers(&at.offsets).last().copied().unwrap_or(0);
    usize::try_from(end).expect("a dispatch's bounds are not negative")
}

pub(super) fn gather_tokens(x: FlexTensor, at: &Dispatch<Flex>) -> FlexTensor {
    let x = Dense::new(x);
    let (m, d) = (at.n_rows(), x.shape()[1]);
    let mut out = vec![0.0; m * d];
    dispatch::cpu::gather(x.get(), &numbers(&at.token), live(at), &mut out, d);
    tensor(out, Shape::new([m, d]))
}

pub(super) fn gather_tokens_bwd(dy: FlexTensor, at: &Dispatch<Flex>, n: usize) -> FlexTensor {
    let dy = Dense::new(dy);
    let (m, d) = (at.n_rows(), dy.shape()[1]);
    let k = m.checked_div(n).unwrap_or(0);
    let mut dx = vec![0.0; n * d];
    dispatch::cpu::combine(dy.get(), None, &numbers(&at.position), live(at), &mut dx, [k, d]);
    tensor(dx, Shape::new([n, d]))
}

pub(super) fn combine(y: FlexTensor, weights: FlexTensor, at: &Dispatch<Flex>) -> FlexTensor {
    let [y, weights] = [y, weights].map(Dense::new);
    let ([n, k], d) = ([weights.shape()[0], weights.shape()[1]], y.shape()[1]);
    let mut out = vec![0.0; n * d];
    let position = numbers(&at.position);
    dispatch::cpu::combine(y.get(), Some(weights.get()), &position, live(at), &mut out, [k, d]);
    tensor(out, Shape::new([n, d]))
}

pub(super) fn combine_bwd(
    dout: FlexTensor,
    y: FlexTensor,
    weights: FlexTensor,
    at: &Dispatch<Flex>,
    want: Tracked,
) -> (Option<FlexTensor>, Option<FlexTensor>) {
    let [dout, y, weights] = [dout, y, weights].map(Dense::new);
    let (k, live) = (weights.shape()[1], live(at));
    let dy = want.x.then(|| {
        let mut dy = vec![0.0; y.get().len()];
        dispatch::cpu::combine_backward_y(dout.get(), weights.get(), &numbers(&at.slot), live, &mut dy, k);
        tensor(dy, y.shape())
    });
    let dweights = want.weight.then(|| {
        let (mut dweights, d) = (vec![0.0; weights.get().len()], y.shape()[1]);
        let position = numbers(&at.position);
        dispatch::cpu::combine_backward_weights(dout.get(), y.get(), &position, live, &mut dweights, [k, d]);
        tensor(dweights, weights.shape())
    });
    (dy, dweights)
}

pub(super) fn swiglu_clamped(gate_up: FlexTensor, alpha: f32, limit: f32) -> FlexTensor {
    let gate_up = Dense::new(gate_up);
    let shape = gate_up.shape();
    let mut y = vec![0.0; shape.num_elements() / 2];
    swiglu_clamped::cpu::forward(gate_up.get(), &mut y, alpha, limit);
    tensor(y, with_last(&shape, shape[shape.num_dims() - 1] / 2))
}

pub(super) fn swiglu_clamped_bwd(dy: FlexTensor, gate_up: FlexTensor, alpha: f32, limit: f32) -> FlexTensor {
    let dy = Dense::new(dy);
    Dense::new(gate_up).update(|gate_up| swiglu_clamped::cpu::backward(dy.get(), gate_up, alpha, limit))
}

/// Rows of each expert and the height of an expert's part of `rows` rows of a weight.
fn experts(offsets: &FlexTensor, m: usize, rows: usize) -> (Vec<Range<usize>>, usize) {
    let groups = groups(&whole_numbers(offsets), m);
    let o = rows / groups.len();
    (groups, o)
}

pub(super) fn grouped(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, offsets: &FlexTensor) -> FlexTensor {
    let (x, weight, bias) = (Dense::new(x), Dense::new(weight), bias.map(Dense::new));
    let (m, i) = (x.shape()[0], x.shape()[1]);
    let (groups, o) = experts(offsets, m, weight.shape()[0]);
    let mut y = vec![0.0; m * o];
    grouped_linear::cpu::forward(x.get(), weight.get(), bias.as_ref().map(Dense::get), &groups, &mut y, [i, o]);
    tensor(y, Shape::new([m, o]))
}

pub(super) fn grouped_dx(dy: FlexTensor, weight: FlexTensor, offsets: &FlexTensor) -> FlexTensor {
    let [dy, weight] = [dy, weight].map(Dense::new);
    let (m, i) = (dy.shape()[0], weight.shape()[1]);
    let (groups, o) = experts(offsets, m, weight.shape()[0]);
    let mut dx = vec![0.0; m * i];
    grouped_linear::cpu::backward_x(dy.get(), weight.get(), &groups, &mut dx, [i, o]);
    tensor(dx, Shape::new([m, i]))
}

pub(super) fn grouped_dw(dy: FlexTensor, x: FlexTensor, offsets: &FlexTensor) -> FlexTensor {
    let (rows, i) = ((offsets.shape()[0] - 1) * dy.shape()[1], x.shape()[1]);
    let dw = tensor(vec![0.0; rows * i], Shape::new([rows, i]));
    grouped_dw_acc(dy, x, offsets, dw)
}

pub(super) fn grouped_dw_acc(dy: FlexTensor, x: FlexTensor, offsets: &FlexTensor, acc: FlexTensor) -> FlexTensor {
    let [dy, x] = [dy, x].map(Dense::new);
    let (m, o, i) = (dy.shape()[0], dy.shape()[1], x.shape()[1]);
    let groups = groups(&whole_numbers(offsets), m);
    Dense::new(acc).update(|dw| grouped_linear::cpu::add_backward_w(dy.get(), x.get(), &groups, dw, [i, o]))
}

pub(super) fn grouped_bias_grad(dy: FlexTensor, offsets: &FlexTensor, dtype: DType) -> FlexTensor {
    let dy = Dense::new(dy);
    let (m, o) = (dy.shape()[0], dy.shape()[1]);
    let groups = groups(&whole_numbers(offsets), m);
    let mut sums = vec![0.0; groups.len() * o];
    linear_bias::cpu::column_sums(dy.get(), &groups, &mut sums, o);
    let shape = Shape::new([sums.len()]);
    narrowed(tensor(sums, shape), dtype)
}

/// An MXFP4 matrix on the host.
struct Packed {
    codes: FlexTensor,
    scales: FlexTensor,
    dims: [usize; 2],
}

impl Packed {
    fn new(matrix: &Mxfp4<Flex>) -> Self {
        // A range of rows is one run of words already; only something unusual is copied.
        let run = |words: &Tensor<Flex, 2, Int>| words.clone().into_primitive().to_contiguous();
        Self { codes: run(&matrix.codes), scales: run(&matrix.scales), dims: matrix.dims() }
    }

    fn words(&self) -> grouped_mxfp4::cpu::Words<'_> {
        let run = |tensor: &FlexTensor| tensor.layout().contiguous_offsets().map(|(at, end)| at..end);
        let get = |tensor| run(tensor).map(|range| &tensor.storage::<i32>()[range]).expect("one run, made so above");
        grouped_mxfp4::cpu::Words { codes: get(&self.codes), scales: get(&self.scales), i: self.dims[1] }
    }
}

pub(super) fn mxfp4_decode(matrix: &Mxfp4<Flex>, dtype: DType) -> FlexTensor {
    if dtype != DType::F32 {
        return portable::mxfp4_decode::<Flex>(matrix, dtype);
    }
    let [rows, i] = matrix.dims();
    let mut out = vec![0.0; rows * i];
    Packed::new(matrix).words().decode(0, &mut out);
    tensor(out, Shape::new([rows, i]))
}

pub(super) fn fp8_decode(matrix: &Fp8Rows<Flex>, dtype: DType) -> FlexTensor {
    if dtype != DType::F32 {
        return portable::fp8_decode::<Flex>(matrix, dtype);
    }
    let [rows, i] = matrix.dims();
    let mut out = vec![0.0; rows * i];
    if !out.is_empty() {
        let [codes, scales] =
            [&matrix.codes, &matrix.scales].map(|words| whole_numbers(&words.clone().into_primitive()));
        grouped_fp8::cpu::decode(&codes, &scales, i, &mut out);
    }
    tensor(out, Shape::new([rows, i]))
}

pub(super) fn grouped_mxfp4(
    x: FlexTensor,
    weight: &Mxfp4<Flex>,
    bias: Option<FlexTensor>,
    offsets: &FlexTensor,
) -> FlexTensor {
    let (x, bias, packed) = (Dense::new(x), bias.map(Dense::new), Packed::new(weight));
    let m = x.shape()[0];
    let (groups, o) = experts(offsets, m, weight.dims()[0]);
    let mut y = vec![0.0; m * o];
    grouped_mxfp4::cpu::forward(x.get(), packed.words(), bias.as_ref().map(Dense::get), &groups, &mut y, o);
    tensor(y, Shape::new([m, o]))
}

pub(super) fn grouped_mxfp4_dx(dy: FlexTensor, weight: &Mxfp4<Flex>, offsets: &FlexTensor) -> FlexTensor {
    let (dy, packed) = (Dense::new(dy), Packed::new(weight));
    let m = dy.shape()[0];
    let (groups, o) = experts(offsets, m, weight.dims()[0]);
    let mut dx = vec![0.0; m * weight.dims()[1]];
    grouped_mxfp4::cpu::backward_x(dy.get(), packed.words(), &groups, &mut dx, o);
    tensor(dx, Shape::new([m, weight.dims()[1]]))
}

/// True when every tensor that is there has a fast path.
pub(super) fn all_fast(tensors: &[&FlexTensor], bias: Option<&FlexTensor>) -> bool {
    fast(tensors) && bias.is_none_or(|bias| fast(&[bias]))
}
