//! Portable routing, dispatch and combination of experts, and their gated unit: nothing is read back.

use burn::tensor::{Bool, DType, IndexingUpdateOp, Int, Shape, Tensor, TensorMetadata, activation, backend::Backend};
use burn::tensor::{
    IntDType,
    ops::{FloatTensor, IntTensor},
};

use super::{down, ints, meta, rows, up, with_last, zeros};
use crate::{Dispatch, Tracked};

/// Most pairs of logits that are compared at a time.
const PAIRS: usize = 1 << 22;

/// `n` neighbouring whole numbers from 0 on.
fn count<B: Backend>(n: usize, device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::arange(0..n as i64, (device, DType::I32))
}

fn no_ints<B: Backend, const D: usize>(dims: [usize; D], device: &B::Device) -> Tensor<B, D, Int> {
    Tensor::empty(dims, (device, DType::I32))
}

/// Portable choice of experts.
pub(crate) fn route<B: Backend>(logits: FloatTensor<B>, top_k: usize) -> (FloatTensor<B>, IntTensor<B>) {
    let (shape, device) = (logits.shape(), B::float_device(&logits));
    let (n, e) = (shape[0], shape[1]);
    if n == 0 {
        let experts = no_ints::<B, 2>([0, top_k], &device).into_primitive();
        return (zeros::<B>(DType::F32, Shape::new([0, top_k]), &device), experts);
    }
    let logits = up::<B, 2>(logits, [n, e]);
    let step = (PAIRS / (e * e)).max(1);
    let chunk = |at: usize| chosen(logits.clone().narrow(0, at, step.min(n - at)), top_k);
    let experts = Tensor::cat((0..n).step_by(step).map(chunk).collect(), 0);
    let values = logits.gather(1, experts.clone());
    let exps = (values.clone() - values.max_dim(1)).exp();
    let weights = exps.clone() / exps.sum_dim(1);
    (down(weights, DType::F32, Shape::new([n, top_k])), experts.into_primitive())
}

/// Indices of the `top_k` largest logits of each row: an expert's rank is the number of those before it.
fn chosen<B: Backend>(logits: Tensor<B, 2>, top_k: usize) -> Tensor<B, 2, Int> {
    let ([n, e], device) = (logits.dims(), logits.device());
    let nan = logits.clone().is_nan();
    let key = logits.mask_fill(nan, f32::INFINITY);
    let own = key.clone().reshape([n, e, 1]).expand([n, e, e]);
    let other = key.reshape([n, 1, e]).expand([n, e, e]);
    let ids = count::<B>(e, &device);
    let lower: Tensor<B, 3, Bool> =
        ids.clone().reshape([1, 1, e]).expand([n, e, e]).lower(ids.clone().reshape([1, e, 1]).expand([n, e, e]));
    let before = other.clone().greater(own.clone()).bool_or(other.equal(own).bool_and(lower));
    let rank = before.int().cast(IntDType::I32).sum_dim(2).reshape([n, e]);
    let ids = ids.reshape([1, e]).expand([n, e]);
    let pick = |j: usize| {
        let others = rank.clone().equal_elem(j as i32).bool_not();
        ids.clone().mask_fill(others, 0).sum_dim(1)
    };
    Tensor::cat((0..top_k).map(pick).collect(), 1)
}

/// Portable gradient of the softmax over the chosen logits.
pub(crate) fn route_bwd<B: Backend>(
    dweights: FloatTensor<B>,
    weights: FloatTensor<B>,
    experts: IntTensor<B>,
    n_experts: usize,
    dtype: DType,
) -> FloatTensor<B> {
    let (shape, device) = (weights.shape(), B::float_device(&weights));
    let (n, k) = (shape[0], shape[1]);
    let out = Shape::new([n, n_experts]);
    if n == 0 {
        return zeros::<B>(dtype, out, &device);
    }
    let (dweights, weights) = (up::<B, 2>(dweights, [n, k]), up::<B, 2>(weights, [n, k]));
    let mean = (dweights.clone() * weights.clone()).sum_dim(1);
    let slopes = weights * (dweights - mean);
    let empty = Tensor::<B, 2>::zeros([n, n_experts], (&device, DType::F32));
    down(empty.scatter(1, ints(experts, [n, k]), slopes, IndexingUpdateOp::Add), dtype, out)
}

/// Portable counting sort of the slots.
pub(crate) fn dispatch<B: Backend>(experts: IntTensor<B>, n_experts: usize) -> Dispatch<B> {
    let (shape, device) = (experts.shape(), B::int_device(&experts));
    let (slots, k) = (shape.num_elements(), shape[1]);
    if slots == 0 {
        let none = || no_ints::<B, 1>([0], &device);
        let offsets = Tensor::zeros([n_experts + 1], (&device, DType::I32));
        return Dispatch { token: none(), slot: none(), position: none(), offsets };
    }
    let key = ints::<B, 1>(experts, [slots]).cast(IntDType::I32);
    let outside = key.clone().lower_elem(0).bool_or(key.clone().greater_equal_elem(n_experts as i32));
    let key = key.mask_fill(outside, n_experts as i32);
    // Masked slots are those of one more expert.
    let groups = n_experts + 1;
    let ids = count::<B>(groups, &device).reshape([1, groups]).expand([slots, groups]);
    let hot = ids.equal(key.clone().reshape([slots, 1]).expand([slots, groups])).int().cast(IntDType::I32);
    let so_far = hot.cumsum(0);
    let ends = so_far.clone().narrow(0, slots - 1, 1).reshape([groups]).cumsum(0);
    let offsets = Tensor::cat(vec![Tensor::zeros([1], (&device, DType::I32)), ends.narrow(0, 0, n_experts)], 0);
    let among = so_far.gather(1, key.clone().reshape([slots, 1])).reshape([slots]) - 1;
    let position = offsets.clone().select(0, key) + among;
    let zeros = Tensor::<B, 1, Int>::zeros([slots], (&device, DType::I32));
    let slot = zeros.select_assign(0, position.clone(), count::<B>(slots, &device), IndexingUpdateOp::Add);
    Dispatch { token: slot.clone() / k as i32, slot, position, offsets }
}

/// Which of these sorted rows belong to no expert, `[len, 1]`.
fn outside<B: Backend>(rows: Tensor<B, 1, Int>, at: &Dispatch<B>) -> Tensor<B, 2, Bool> {
    let n = rows.dims()[0];
    let end = at.offsets.clone().narrow(0, at.n_experts(), 1).expand([n]);
    rows.greater_equal(end).reshape([n, 1])
}

/// The sorted rows put back in the order of the slots, `[n·k, d]`; zeros where a slot has no expert.
fn by_slot<B: Backend>(sorted: Tensor<B, 2>, at: &Dispatch<B>) -> Tensor<B, 2> {
    let dims = sorted.dims();
    let masked = outside(at.position.clone(), at).expand(dims);
    sorted.select(0, at.position.clone()).mask_fill(masked, 0.0)
}

/// Portable lookup of tokens.
pub(crate) fn gather_tokens<B: Backend>(x: FloatTensor<B>, at: &Dispatch<B>) -> FloatTensor<B> {
    let ((dtype, shape), m) = (meta(&x), at.n_rows());
    let (n, d) = (shape[0], shape[1]);
    if m * d == 0 {
        return zeros::<B>(dtype, Shape::new([m, d]), &B::float_device(&x));
    }
    let masked = outside(count::<B>(m, &B::float_device(&x)), at).expand([m, d]);
    let picked = up::<B, 2>(x, [n, d]).select(0, at.token.clone()).mask_fill(masked, 0.0);
    down(picked, dtype, Shape::new([m, d]))
}

/// Portable sum of the gradients of a token's slots.
pub(crate) fn gather_tokens_bwd<B: Backend>(dy: FloatTensor<B>, at: &Dispatch<B>, n: usize) -> FloatTensor<B> {
    let (dtype, shape) = meta(&dy);
    let (m, d) = (shape[0], shape[1]);
    if m * d == 0 {
        return zeros::<B>(dtype, Shape::new([n, d]), &B::float_device(&dy));
    }
    let slots = by_slot(up::<B, 2>(dy, [m, d]), at).reshape([n, m / n, d]);
    down(ordered_sum(slots), dtype, Shape::new([n, d]))
}

/// `Σ_j x[n, j, d]`, one after the other.
fn ordered_sum<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    let [n, k, d] = x.dims();
    let part = |j| x.clone().narrow(1, j, 1).reshape([n, d]);
    (1..k).fold(part(0), |sum, j| sum + part(j))
}

/// Portable weighted sum of a token's slots.
pub(crate) fn combine<B: Backend>(y: FloatTensor<B>, weights: FloatTensor<B>, at: &Dispatch<B>) -> FloatTensor<B> {
    let ((dtype, shape), w_shape) = (meta(&y), weights.shape());
    let ([m, d], [n, k]) = ([shape[0], shape[1]], [w_shape[0], w_shape[1]]);
    if m * d == 0 {
        return zeros::<B>(dtype, Shape::new([n, d]), &B::float_device(&y));
    }
    let (y, weights) = (by_slot(up::<B, 2>(y, [m, d]), at), kept_weights(weights, at));
    down(ordered_sum((y * weights).reshape([n, k, d])), dtype, Shape::new([n, d]))
}

/// Weights of the slots `[n·k, 1]`, 0 where a slot has no expert.
fn kept_weights<B: Backend>(weights: FloatTensor<B>, at: &Dispatch<B>) -> Tensor<B, 2> {
    let m = at.n_rows();
    up::<B, 2>(weights, [m, 1]).mask_fill(outside(at.position.clone(), at), 0.0)
}

/// Portable gradients of the weighted sum.
pub(crate) fn combine_bwd<B: Backend>(
    dout: FloatTensor<B>,
    y: FloatTensor<B>,
    weights: FloatTensor<B>,
    at: &Dispatch<B>,
    want: Tracked,
) -> (Option<FloatTensor<B>>, Option<FloatTensor<B>>) {
    let ((dtype, shape), (w_dtype, w_shape)) = (meta(&y), meta(&weights));
    let ([m, d], [n, k]) = ([shape[0], shape[1]], [w_shape[0], w_shape[1]]);
    if m * d == 0 {
        let device = B::float_device(&y);
        let none = |want: bool, dtype, shape| want.then(|| zeros::<B>(dtype, shape, &device));
        return (none(want.x, dtype, shape), none(want.weight, w_dtype, w_shape));
    }
    let dout = up::<B, 2>(dout, [n, d]);
    let dy = want.x.then(|| {
        let weights = kept_weights(weights, at).select(0, at.slot.clone());
        // Not a product: the gradient of a masked row is zero whatever came in.
        let masked = outside(count::<B>(m, &weights.device()), at).expand([m, d]);
        let dy = dout.clone().select(0, at.token.clone()) * weights;
        down(dy.mask_fill(masked, 0.0), dtype, shape)
    });
    let dweights = want.weight.then(|| {
        let y = by_slot(up::<B, 2>(y, [m, d]), at);
        let dout = dout.reshape([n, 1, d]).expand([n, k, d]).reshape([m, d]);
        let masked = outside(at.position.clone(), at);
        down((y * dout).sum_dim(1).mask_fill(masked, 0.0), w_dtype, w_shape)
    });
    (dy, dweights)
}

/// Gate and up of interleaved rows.
fn gate_and_up<B: Backend>(gate_up: FloatTensor<B>, m: usize, f: usize) -> [Tensor<B, 2>; 2] {
    let pairs = up::<B, 3>(gate_up, [m, f, 2]);
    [0, 1].map(|i| pairs.clone().narrow(2, i, 1).reshape([m, f]))
}

/// Portable clamped gated unit.
pub(crate) fn swiglu_clamped<B: Backend>(gate_up: FloatTensor<B>, alpha: f32, limit: f32) -> FloatTensor<B> {
    let (dtype, shape) = meta(&gate_up);
    let ((m, width), out) = (rows(&shape), with_last(&shape, shape[shape.num_dims() - 1] / 2));
    if m * width == 0 {
        return zeros::<B>(dtype, out, &B::float_device(&gate_up));
    }
    let [gate, up] = gate_and_up::<B>(gate_up, m, width / 2);
    let (gate, up) = (below(gate, limit), below(below(up, limit).neg(), limit).neg());
    let sigma = activation::sigmoid(gate.clone().mul_scalar(alpha));
    down(up.add_scalar(1.0) * gate * sigma, dtype, out)
}

/// `min(x, limit)`, NaN where `x` is.
fn below<B: Backend>(x: Tensor<B, 2>, limit: f32) -> Tensor<B, 2> {
    let above = x.clone().greater_elem(limit);
    x.mask_fill(above, limit)
}

/// Portable gradient of the clamped gated unit.
pub(crate) fn swiglu_clamped_bwd<B: Backend>(
    dy: FloatTensor<B>,
    gate_up: FloatTensor<B>,
    alpha: f32,
    limit: f32,
) -> FloatTensor<B> {
    let (dtype, shape) = meta(&gate_up);
    let (m, width) = rows(&shape);
    if m * width == 0 {
        return zeros::<B>(dtype, shape, &B::float_device(&gate_up));
    }
    let f = width / 2;
    let dy = up::<B, 2>(dy, [m, f]);
    let [gate, up] = gate_and_up::<B>(gate_up, m, f);
    let gate_cut = gate.clone().greater_elem(limit);
    let up_cut = up.clone().abs().greater_elem(limit);
    let (gate, up) = (below(gate, limit), below(below(up, limit).neg(), limit).neg());
    let sigma = activation::sigmoid(gate.clone().mul_scalar(alpha));
    let rest = sigma.clone().neg().add_scalar(1.0);
    let slope = sigma.clone() * (gate.clone().mul_scalar(alpha) * rest).add_scalar(1.0);
    let dgate = (dy.clone() * up.add_scalar(1.0) * slope).mask_fill(gate_cut, 0.0);
    let dup = (dy * gate * sigma).mask_fill(up_cut, 0.0);
    let pairs = Tensor::cat(vec![dgate.reshape([m, f, 1]), dup.reshape([m, f, 1])], 2);
    down(pairs, dtype, shape)
}
