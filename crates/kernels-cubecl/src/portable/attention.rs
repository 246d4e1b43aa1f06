//! Portable attention: whole score matrices, masked by the spans.

use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorMetadata, backend::Backend};
use burn::tensor::{
    TensorPrimitive,
    ops::{FloatTensor, IntTensor},
};

use super::{down, ints, meta, up};
use crate::HeadLayout;

/// Splits a fused row into q `[b, n, t, h]` and k, v `[b, k, t, h]`.
fn split<B: Backend>(qkv: FloatTensor<B>, heads: HeadLayout) -> [Tensor<B, 4>; 3] {
    let (shape, HeadLayout { n_heads, n_kv_heads, d_head }) = (qkv.shape(), heads);
    let x = up::<B, 4>(qkv, [shape[0], shape[1], n_heads + 2 * n_kv_heads, d_head]).swap_dims(1, 2);
    [(0, n_heads), (n_heads, n_kv_heads), (n_heads + n_kv_heads, n_kv_heads)].map(|(at, n)| x.clone().narrow(1, at, n))
}

/// Repeats each key head for the query heads that share it.
fn repeat<B: Backend>(x: Tensor<B, 4>, heads: HeadLayout) -> Tensor<B, 4> {
    let [b, k, s, h] = x.dims();
    x.reshape([b * k, 1, s, h]).repeat_dim(1, heads.group()).reshape([b, heads.n_heads, s, h])
}

/// Sums over the query heads that share a key head: the transpose of [`repeat`].
fn reduce<B: Backend>(x: Tensor<B, 4>, heads: HeadLayout) -> Tensor<B, 4> {
    let [b, _, s, h] = x.dims();
    let k = heads.n_kv_heads;
    x.reshape([b * k, heads.group(), s, h]).sum_dim(1).reshape([b, k, s, h])
}

/// True where key `s` is hidden from query `t`: `[b, n, t, s]`.
fn hidden<B: Backend>(start: IntTensor<B>, end: IntTensor<B>, n: usize, s: usize) -> Tensor<B, 4, Bool> {
    let shape = start.shape();
    let (b, t) = (shape[0], shape[1]);
    let key =
        Tensor::<B, 1, Int>::arange(0..s as i64, &B::int_device(&start)).reshape([1, 1, 1, s]).expand([b, n, t, s]);
    let start = ints::<B, 4>(start, [b, 1, t, 1]).expand([b, n, t, s]);
    let end = ints::<B, 4>(end, [b, 1, t, 1]).expand([b, n, t, s]);
    key.clone().lower(start).bool_or(key.greater_equal(end))
}

/// Probabilities `[b, n, t, s]` and log-sum-exp `[b, n, t, 1]`; a query that sees nothing has an all-zero row.
fn probabilities<B: Backend>(
    scores: Tensor<B, 4>,
    hidden: Tensor<B, 4, Bool>,
    sinks: Option<Tensor<B, 1>>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let n = scores.dims()[1];
    let masked = scores.mask_fill(hidden.clone(), f32::MIN);
    let mut max = masked.clone().max_dim(3);
    let sinks = sinks.map(|sinks| sinks.reshape([1, n, 1, 1]).expand(max.shape()));
    if let Some(sinks) = &sinks {
        max = max.max_pair(sinks.clone());
    }
    let mut total = (masked.clone() - max.clone()).exp().mask_fill(hidden.clone(), 0.0).sum_dim(3);
    if let Some(sinks) = sinks {
        total = total + (sinks - max.clone()).exp();
    }
    let lse = total.log() + max;
    ((masked - lse.clone()).exp().mask_fill(hidden, 0.0), lse)
}

/// Portable attention with its log-sum-exp.
pub(crate) fn attention_fwd<B: Backend>(
    qkv: FloatTensor<B>,
    start: IntTensor<B>,
    end: IntTensor<B>,
    sinks: Option<FloatTensor<B>>,
    heads: HeadLayout,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (dtype, shape) = meta(&qkv);
    let (b, t, n) = (shape[0], shape[1], heads.n_heads);
    if b * t == 0 {
        let device = B::float_device(&qkv);
        let empty = |dims| B::float_zeros(Shape::new(dims), &device, dtype.into());
        return (empty([b, t, heads.q_width()]), empty([b, n, t]));
    }
    let [q, k, v] = split::<B>(qkv, heads);
    let scores = q.matmul(repeat(k, heads).swap_dims(2, 3)).mul_scalar(scale);
    let sinks = sinks.map(|sinks| up::<B, 1>(sinks, [n]));
    let (p, lse) = probabilities(scores, hidden::<B>(start, end, n, t), sinks);
    let out = p.matmul(repeat(v, heads)).swap_dims(1, 2);
    (down(out, dtype, Shape::new([b, t, heads.q_width()])), down(lse, DType::F32, Shape::new([b, n, t])))
}

/// Portable gradient of the attention.
#[expect(clippy::too_many_arguments, reason = "everything the forward pass saved")]
pub(crate) fn attention_bwd<B: Backend>(
    dout: FloatTensor<B>,
    qkv: FloatTensor<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    start: IntTensor<B>,
    end: IntTensor<B>,
    sinks: Option<FloatTensor<B>>,
    heads: HeadLayout,
    scale: f32,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (dtype, shape) = meta(&qkv);
    let (b, t, n, h) = (shape[0], shape[1], heads.n_heads, heads.d_head);
    if b * t == 0 {
        return (qkv, sinks.map(|sinks| B::float_zeros(sinks.shape(), &B::float_device(&sinks), sinks.dtype().into())));
    }
    let [q, k, v] = split::<B>(qkv, heads);
    let (k, v) = (repeat(k, heads), repeat(v, heads));
    let dout = up::<B, 4>(dout, [b, t, n, h]).swap_dims(1, 2);
    let out = up::<B, 4>(out, [b, t, n, h]).swap_dims(1, 2);
    let lse = up::<B, 4>(lse, [b, n, t, 1]);
    let hidden = hidden::<B>(start, end, n, t);
    let scores = q.clone().matmul(k.clone().swap_dims(2, 3)).mul_scalar(scale);
    let p = (scores - lse.clone()).exp().mask_fill(hidden.clone(), 0.0);
    let delta = (dout.clone() * out).sum_dim(3);
    let ds = p.clone() * (dout.clone().matmul(v.swap_dims(2, 3)) - delta.clone()).mul_scalar(scale);
    let dv = reduce(p.swap_dims(2, 3).matmul(dout), heads);
    let dk = reduce(ds.clone().swap_dims(2, 3).matmul(q), heads);
    let dqkv = Tensor::cat(vec![ds.matmul(k), dk, dv], 1).swap_dims(1, 2);
    let dsinks = sinks.map(|sinks| {
        let sinks_dtype = sinks.dtype();
        let p_sink = (up::<B, 4>(sinks, [1, n, 1, 1]).expand(lse.shape()) - lse).exp();
        let blind = hidden.all_dim(3);
        let each = (p_sink * delta).mask_fill(blind, 0.0);
        let sum = each.neg().swap_dims(0, 1).reshape([n, b * t]).sum_dim(1);
        down(sum, sinks_dtype, Shape::new([n]))
    });
    (down(dqkv, dtype, shape), dsinks)
}

/// Portable attention over a cache.
#[expect(clippy::too_many_arguments, reason = "queries, keys and values come apart")]
pub(crate) fn attention_cached<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    start: IntTensor<B>,
    end: IntTensor<B>,
    sinks: Option<FloatTensor<B>>,
    heads: HeadLayout,
    scale: f32,
) -> FloatTensor<B> {
    let ((dtype, shape), s) = (meta(&q), k.shape()[1]);
    let (b, t, n, h) = (shape[0], shape[1], heads.n_heads, heads.d_head);
    if b * t == 0 {
        return q;
    }
    let q = up::<B, 4>(q, [b, t, n, h]).swap_dims(1, 2);
    let [k, v] = [k, v].map(|x| repeat(up::<B, 4>(x, [b, s, heads.n_kv_heads, h]).swap_dims(1, 2), heads));
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale);
    let sinks = sinks.map(|sinks| Tensor::from_primitive(TensorPrimitive::Float(sinks)));
    let (p, _) = probabilities(scores, hidden::<B>(start, end, n, s), sinks);
    down(p.matmul(v).swap_dims(1, 2), dtype, shape)
}
