//! Portable norms, rotary embedding, gated unit and embedding.

use burn::tensor::{DType, Shape, Tensor, TensorMetadata, activation, backend::Backend};
use burn::tensor::{
    IndexingUpdateOp,
    ops::{FloatTensor, IntTensor},
};

use super::{down, ints, meta, rows, up, with_last};
use crate::{HeadLayout, Rotation};

/// Portable RMS norm with the reciprocal root of each row.
pub(crate) fn rms_norm_fwd<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    eps: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (dtype, shape) = meta(&x);
    let (m, d) = rows(&shape);
    let (x, gamma) = (up::<B, 2>(x, [m, d]), up::<B, 2>(gamma, [1, d]));
    let rstd = (x.clone() * x.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    (down(x * rstd.clone() * gamma, dtype, shape), down(rstd, DType::F32, Shape::new([m])))
}

/// Portable gradient of the RMS norm.
pub(crate) fn rms_norm_bwd<B: Backend>(
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    rstd: FloatTensor<B>,
    carry: Option<FloatTensor<B>>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let ((dtype, shape), gamma_dtype) = (meta(&x), gamma.dtype());
    let (m, d) = rows(&shape);
    let (dy, x) = (up::<B, 2>(dy, [m, d]), up::<B, 2>(x, [m, d]));
    let (gamma, rstd) = (up::<B, 2>(gamma, [1, d]), up::<B, 2>(rstd, [m, 1]));
    let x_hat = x * rstd.clone();
    let dgamma = (dy.clone() * x_hat.clone()).sum_dim(0);
    let dx_hat = dy * gamma;
    let mut dx = (dx_hat.clone() - x_hat.clone() * (dx_hat * x_hat).mean_dim(1)) * rstd;
    if let Some(carry) = carry {
        dx = dx + up::<B, 2>(carry, [m, d]);
    }
    (down(dx, dtype, shape), down(dgamma, gamma_dtype, Shape::new([d])))
}

/// Portable rotary embedding.
pub(crate) fn rope_qkv<B: Backend>(
    qkv: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    heads: HeadLayout,
    rotation: Rotation,
) -> FloatTensor<B> {
    let (dtype, shape) = meta(&qkv);
    let (b, t, half) = (shape[0], shape[1], heads.d_head / 2);
    let x = up::<B, 4>(qkv, [b, t, heads.n_heads + 2 * heads.n_kv_heads, heads.d_head]);
    let (cos, sin) = (up::<B, 4>(cos, [b, t, 1, half]), up::<B, 4>(sin, [b, t, 1, half]));
    let sin = match rotation {
        Rotation::Forward => sin,
        Rotation::Backward => sin.neg(),
    };
    let n_rotated = heads.n_heads + heads.n_kv_heads;
    let (rotated, v) = (x.clone().narrow(2, 0, n_rotated), x.narrow(2, n_rotated, heads.n_kv_heads));
    let (lo, hi) = (rotated.clone().narrow(3, 0, half), rotated.narrow(3, half, half));
    let new_lo = lo.clone() * cos.clone() - hi.clone() * sin.clone();
    let rotated = Tensor::cat(vec![new_lo, hi * cos + lo * sin], 3);
    down(Tensor::cat(vec![rotated, v], 2), dtype, shape)
}

fn gate_and_up<B: Backend>(gate_up: FloatTensor<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let (m, width) = rows(&gate_up.shape());
    let gate_up = up::<B, 2>(gate_up, [m, width]);
    (gate_up.clone().narrow(1, 0, width / 2), gate_up.narrow(1, width / 2, width / 2))
}

/// Portable gated unit.
pub(crate) fn swiglu<B: Backend>(gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let (dtype, shape) = meta(&gate_up);
    let f = rows(&shape).1 / 2;
    let (gate, up) = gate_and_up::<B>(gate_up);
    down(activation::silu(gate) * up, dtype, with_last(&shape, f))
}

/// Portable gradient of the gated unit.
pub(crate) fn swiglu_bwd<B: Backend>(dy: FloatTensor<B>, gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let (dtype, shape) = meta(&gate_up);
    let (m, width) = rows(&shape);
    let dy = up::<B, 2>(dy, [m, width / 2]);
    let (gate, up) = gate_and_up::<B>(gate_up);
    let sigma = activation::sigmoid(gate.clone());
    let slope = sigma.clone() * (gate.clone() * sigma.clone().neg().add_scalar(1.0)).add_scalar(1.0);
    let (dgate, dup) = (dy.clone() * up * slope, dy * gate * sigma);
    down(Tensor::cat(vec![dgate, dup], 1), dtype, shape)
}

/// Portable row lookup.
pub(crate) fn embedding<B: Backend>(weight: FloatTensor<B>, ids: IntTensor<B>) -> FloatTensor<B> {
    let ((dtype, shape), [b, t]) = (meta(&weight), [ids.shape()[0], ids.shape()[1]]);
    let (v, d) = (shape[0], shape[1]);
    let picked = up::<B, 2>(weight, [v, d]).select(0, ints(ids, [b * t]));
    down(picked, dtype, Shape::new([b, t, d]))
}

/// Portable gradient of the row lookup.
pub(crate) fn embedding_bwd<B: Backend>(dy: FloatTensor<B>, ids: IntTensor<B>, n_rows: usize) -> FloatTensor<B> {
    let (dtype, shape) = meta(&dy);
    let (m, d) = rows(&shape);
    let dy = up::<B, 2>(dy, [m, d]);
    let table = Tensor::<B, 2>::zeros([n_rows, d], &dy.device());
    let ids = ints::<B, 1>(ids, [m]);
    down(table.select_assign(0, ids, dy, IndexingUpdateOp::Add), dtype, Shape::new([n_rows, d]))
}

/// Portable sum of squares.
pub(crate) fn sum_squares<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    let x = up::<B, 1>(x, [n]);
    down((x.clone() * x).sum(), DType::F32, Shape::new([1]))
}

/// Portable product with a one-element factor.
pub(crate) fn scale<B: Backend>(x: FloatTensor<B>, factor: FloatTensor<B>) -> FloatTensor<B> {
    let (dtype, shape) = meta(&x);
    let n = shape.num_elements();
    down(up::<B, 1>(x, [n]) * up::<B, 1>(factor, [1]), dtype, shape)
}
