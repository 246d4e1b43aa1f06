//! The backward pass of every op: `LmBackend` for `Autodiff<B>`.
//!
//! Each op runs the inner backend's `_fwd` piece and makes one graph node whose state is what the `_bwd` piece needs.

mod experts;
mod node;
mod ops;
mod replay;
mod shelf;
mod sums;

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::Backward;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{
    DType, Tensor, TensorMetadata, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
};

use crate::functions::unwrap;
use crate::{
    Dispatch, ExpertWeight, Fp8, Fp8Known, Fp8Rows, Gathered, HeadLayout, Leaf, LmBackend, LoraParts, Mxfp4, Rotation,
    Tracked, backend::StatsParts, portable,
};
use experts::{
    CombineBackward, GatherBackward, GroupedBackward, GroupedBiasBackward, GroupedFp8Backward, GroupedLoraBackward,
    GroupedMxfp4Backward, GroupedMxfp4BiasBackward, LinearBiasBackward, LoraState, RouteBackward,
    SwigluClampedBackward,
};
use node::open;
use ops::{
    AddBackward, AttentionBackward, AttentionSinksBackward, CrossEntropyBackward, EmbeddingBackward, LinearBackward,
    LinearFp8Backward, LinearFp8HistoryBackward, LogprobsBackward, RmsNormBackward, RopeBackward, SwigluBackward,
};
use replay::Segment;
use shelf::Stored;

pub use burn::backend::autodiff::grads::Gradients;
pub use shelf::{Shelf, Traffic};
pub use sums::backward_into;

/// A block of layers as a function of its input and its parameters.
pub type Block<B> = Arc<dyn Fn(Tensor<B, 3>, Vec<Leaf<B>>) -> Tensor<B, 3> + Send + Sync>;

/// Runs `f(x, leaves)` without keeping its activations; the backward pass runs `f` again.
///
/// The gradients are bit-equal to those of plain `f(x, leaves)`, which is what a backend without autodiff runs.
/// `f` must do the same ops each time it is called, and everything that wants a gradient must come in through `x` and
/// `leaves`. Only the ops of this crate are recomputed: state that plain burn ops save stays in memory. With a `shelf` even
/// `x` does not stay on the device: it waits in the host's memory.
pub fn recompute<B: LmBackend>(
    x: Tensor<B, 3>,
    leaves: Vec<Leaf<B>>,
    shelf: Option<&Shelf>,
    f: Block<B>,
) -> Tensor<B, 3> {
    B::lm_recompute(x, leaves, shelf, f)
}

/// Where the input of a recomputed block is until the backward pass.
enum Input<B: LmBackend> {
    Kept(Tensor<B, 3>),
    Stored(Stored<B>),
}

fn constant<B: LmBackend, C: CheckpointStrategy>(out: FloatTensor<B>) -> FloatTensor<Autodiff<B, C>> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(out)
}

impl<B: LmBackend, C: CheckpointStrategy> LmBackend for Autodiff<B, C> {
    type Peaks = B::Peaks;

    fn lm_gathers(device: &Self::Device) -> bool {
        B::lm_gathers(device)
    }

    fn lm_take_peaks(peaks: &Self::Peaks) -> Option<FloatTensor<Self>> {
        B::lm_take_peaks(peaks).map(constant::<B, C>)
    }

    fn lm_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = open!(LinearBackward, C, [x, weight]);
        let [x_tracked, w_tracked] = node.tracked;
        let out = B::lm_linear(x.primitive.clone(), weight.primitive.clone());
        node.close(out, || (w_tracked.then_some(x.primitive), x_tracked.then_some(weight.primitive)))
    }

    fn lm_linear_fp8(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        known: Fp8Known<Self>,
        mode: Fp8,
        peaks: Gathered<Self::Peaks>,
    ) -> FloatTensor<Self> {
        let Gathered { forward: of_x, backward: of_dy } = peaks;
        let of_weight = known.weight.map(|peaks| peaks.primitive);
        let forward = |want, history| {
            let (x, weight) = (x.primitive.clone(), weight.primitive.clone());
            let known = Fp8Known { history, weight: of_weight };
            B::lm_linear_fp8_fwd(x, weight, known, mode, want, of_x.as_ref())
        };
        match known.history {
            None => {
                let node = open!(LinearFp8Backward, C, [x, weight]);
                let want = Tracked { x: node.tracked[0], weight: node.tracked[1] };
                let (out, saved) = forward(want, None);
                node.close(out, || (weight.primitive.clone(), saved, mode, want, of_dy))
            }
            Some(history) => {
                let node = open!(LinearFp8HistoryBackward, C, [x, weight, history]);
                let want = Tracked { x: node.tracked[0], weight: node.tracked[1] };
                let (out, saved) = forward(want, Some(history.primitive));
                node.close(out, || (weight.primitive.clone(), saved, mode, want, of_dy))
            }
        }
    }

    fn lm_rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        let node = open!(RmsNormBackward, C, [x, gamma]);
        let (y, rstd) = B::lm_rms_norm_fwd(x.primitive.clone(), gamma.primitive.clone(), eps, peaks);
        node.close(y, || (x.primitive, gamma.primitive, rstd, None))
    }

    /// One fused forward, two nodes: the sum has further users, so it is a node of its own.
    fn lm_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Gathered<Self::Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let Gathered { forward: of_y, backward: of_dsum } = peaks;
        let node = open!(AddBackward, C, [x, residual]);
        let (x, residual) = (x.primitive, residual.primitive);
        let (sum, y, rstd) = B::lm_add_rms_norm_fwd(x, residual, gamma.primitive.clone(), eps, of_y.as_ref());
        let sum: FloatTensor<Self> = node.close(sum, || ());
        let node = open!(RmsNormBackward, C, [sum, gamma]);
        let y = node.close(y, || (sum.primitive.clone(), gamma.primitive, rstd, of_dsum));
        (sum, y)
    }

    fn lm_rope_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: HeadLayout,
        rotation: Rotation,
        peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        let node = open!(RopeBackward, C, [qkv]);
        let (cos, sin) = (cos.primitive, sin.primitive);
        let out = B::lm_rope_qkv(qkv.primitive, cos.clone(), sin.clone(), heads, rotation, None);
        node.close(out, || (cos, sin, heads, rotation, peaks.cloned()))
    }

    fn lm_attention(
        qkv: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
        peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        let forward = |qkv: &FloatTensor<Self>, sinks| {
            B::lm_attention_fwd(qkv.primitive.clone(), start.clone(), end.clone(), sinks, heads, scale, peaks)
        };
        match sinks {
            None => {
                let node = open!(AttentionBackward, C, [qkv]);
                let (out, lse) = forward(&qkv, None);
                node.close(out.clone(), || (qkv.primitive, out, lse, start, end, heads, scale))
            }
            Some(sinks) => {
                let node = open!(AttentionSinksBackward, C, [qkv, sinks]);
                let (out, lse) = forward(&qkv, Some(sinks.primitive.clone()));
                node.close(out.clone(), || ((qkv.primitive, out, lse, start, end, heads, scale), sinks.primitive))
            }
        }
    }

    fn lm_attention_cached(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
    ) -> FloatTensor<Self> {
        let (q, k, v, sinks) = (q.primitive, k.primitive, v.primitive, sinks.map(|sinks| sinks.primitive));
        constant::<B, C>(B::lm_attention_cached(q, k, v, start, end, sinks, heads, scale))
    }

    fn lm_swiglu(gate_up: FloatTensor<Self>, peaks: Gathered<Self::Peaks>) -> FloatTensor<Self> {
        let node = open!(SwigluBackward, C, [gate_up]);
        let Gathered { forward, backward } = peaks;
        let out = B::lm_swiglu(gate_up.primitive.clone(), Gathered { forward, backward: None });
        node.close(out, || (gate_up.primitive, backward))
    }

    fn lm_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let node = open!(EmbeddingBackward, C, [weight]);
        let n_rows = weight.shape()[0];
        let out = B::lm_embedding(weight.primitive, ids.clone());
        node.close(out, || (ids, n_rows))
    }

    fn lm_linear_cross_entropy(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: FloatTensor<Self>,
        z_loss: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let node = open!(CrossEntropyBackward, C, [x, weight]);
        let want = Tracked { x: node.tracked[0], weight: node.tracked[1] };
        let (x, weight, weights) = (x.primitive, weight.primitive, weights.primitive);
        let parts = B::lm_linear_cross_entropy_fwd(x, weight, targets, weights, z_loss, want);
        let loss = node.close(parts.loss, || (parts.dx, parts.dw));
        (loss, constant::<B, C>(parts.nll))
    }

    fn lm_token_logprobs(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let node = open!(LogprobsBackward, C, [x, weight]);
        let want = Tracked { x: node.tracked[0], weight: node.tracked[1] };
        let (x, weight) = (x.primitive, weight.primitive);
        let (out, lse) = B::lm_token_logprobs_fwd(x.clone(), weight.clone(), targets.clone());
        node.close(out, || (x, weight, targets, lse, want))
    }

    fn lm_token_stats(x: FloatTensor<Self>, weight: FloatTensor<Self>, targets: IntTensor<Self>) -> StatsParts<Self> {
        let (logprob, lse, argmax) = B::lm_token_stats(x.primitive, weight.primitive, targets);
        (constant::<B, C>(logprob), constant::<B, C>(lse), argmax)
    }

    fn lm_linear_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        linear_bias::<B, C>([x, weight, bias], B::lm_linear_bias)
    }

    fn lm_linear_bias_f32(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear_bias::<B, C>([x, weight, bias], B::lm_linear_bias_f32)
    }

    fn lm_route(logits: FloatTensor<Self>, top_k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        let node = open!(RouteBackward, C, [logits]);
        let (n_experts, dtype) = (logits.shape()[1], logits.dtype());
        let (weights, experts) = B::lm_route(logits.primitive, top_k);
        let kept = experts.clone();
        (node.close(weights.clone(), || (weights, kept, n_experts, dtype)), experts)
    }

    fn lm_dispatch(experts: IntTensor<Self>, n_experts: usize) -> Dispatch<Self> {
        B::lm_dispatch(experts, n_experts).map(Tensor::from_inner)
    }

    fn lm_gather_tokens(x: FloatTensor<Self>, at: &Dispatch<Self>) -> FloatTensor<Self> {
        let node = open!(GatherBackward, C, [x]);
        let (at, n) = (at.clone().map(Tensor::inner), x.shape()[0]);
        let out = B::lm_gather_tokens(x.primitive, &at);
        node.close(out, || (at, n))
    }

    fn lm_combine(y: FloatTensor<Self>, weights: FloatTensor<Self>, at: &Dispatch<Self>) -> FloatTensor<Self> {
        let node = open!(CombineBackward, C, [y, weights]);
        let want = Tracked { x: node.tracked[0], weight: node.tracked[1] };
        let at = at.clone().map(Tensor::inner);
        let out = B::lm_combine(y.primitive.clone(), weights.primitive.clone(), &at);
        node.close(out, || (y.primitive, weights.primitive, at, want))
    }

    fn lm_swiglu_clamped(gate_up: FloatTensor<Self>, alpha: f32, limit: f32) -> FloatTensor<Self> {
        let node = open!(SwigluClampedBackward, C, [gate_up]);
        let out = B::lm_swiglu_clamped(gate_up.primitive.clone(), alpha, limit);
        node.close(out, || (gate_up.primitive, alpha, limit))
    }

    fn lm_grouped_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let forward = |bias| B::lm_grouped_linear(x.primitive.clone(), weight.primitive.clone(), bias, offsets.clone());
        let kept = |x_tracked: bool, w_tracked: bool| {
            let (x, weight) = (x.primitive.clone(), weight.primitive.clone());
            (w_tracked.then_some(x), x_tracked.then_some(weight), offsets.clone())
        };
        match bias {
            None => {
                let node = open!(GroupedBackward, C, [x, weight]);
                let [x_tracked, w_tracked] = node.tracked;
                node.close(forward(None), || kept(x_tracked, w_tracked))
            }
            Some(bias) => {
                let node = open!(GroupedBiasBackward, C, [x, weight, bias]);
                let ([x_tracked, w_tracked, _], dtype) = (node.tracked, bias.dtype());
                node.close(forward(Some(bias.primitive)), || (kept(x_tracked, w_tracked), dtype))
            }
        }
    }

    fn lm_mxfp4_decode(matrix: &Mxfp4<Self>, dtype: DType) -> FloatTensor<Self> {
        constant::<B, C>(B::lm_mxfp4_decode(&matrix.clone().map(Tensor::inner), dtype))
    }

    fn lm_grouped_mxfp4(
        x: FloatTensor<Self>,
        weight: &Mxfp4<Self>,
        bias: Option<FloatTensor<Self>>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let weight = weight.clone().map(Tensor::inner);
        match bias {
            None => {
                let node = open!(GroupedMxfp4Backward, C, [x]);
                let out = B::lm_grouped_mxfp4(x.primitive, &weight, None, offsets.clone());
                node.close(out, || (weight, offsets))
            }
            Some(bias) => {
                let node = open!(GroupedMxfp4BiasBackward, C, [x, bias]);
                let dtype = bias.dtype();
                let out = B::lm_grouped_mxfp4(x.primitive, &weight, Some(bias.primitive), offsets.clone());
                node.close(out, || (weight, offsets, dtype))
            }
        }
    }

    /// One node where the base is frozen; otherwise the base and the update have theirs.
    fn lm_grouped_lora(
        x: FloatTensor<Self>,
        weight: &ExpertWeight<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: LoraParts<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let trained = match weight {
            ExpertWeight::Dense(weight) => unwrap(weight.clone()).is_tracked(),
            ExpertWeight::Packed(_) => false,
        };
        if trained || bias.as_ref().is_some_and(|bias| bias.is_tracked()) {
            let low = Self::lm_grouped_linear(x.clone(), lora.a, None, offsets.clone());
            return portable::grouped_sum::<Self>(
                x,
                weight,
                bias,
                [portable::scaled::<Self>(low, lora.scale), lora.b],
                offsets,
            );
        }
        let node = open!(GroupedLoraBackward, C, [x, lora.a, lora.b]);
        let ([_, a_tracked, b_tracked], weight) = (node.tracked, weight.clone().map(Tensor::inner, Tensor::inner));
        let lora = LoraParts::<B> { a: lora.a.primitive, b: lora.b.primitive, scale: lora.scale };
        let (x, bias) = (x.primitive, bias.map(|bias| bias.primitive));
        let low = B::lm_grouped_linear(x.clone(), lora.a.clone(), None, offsets.clone());
        let low = portable::scaled::<B>(low, lora.scale);
        let out = B::lm_grouped_sum(x.clone(), &weight, bias, [low.clone(), lora.b.clone()], offsets.clone());
        node.close(out, || {
            let (x, low) = (a_tracked.then_some(x), b_tracked.then_some(low));
            LoraState { x, low, weight, lora, offsets }
        })
    }

    fn lm_fp8_decode(matrix: &Fp8Rows<Self>, dtype: DType) -> FloatTensor<Self> {
        constant::<B, C>(B::lm_fp8_decode(&matrix.clone().map(Tensor::inner), dtype))
    }

    fn lm_grouped_fp8(
        x: FloatTensor<Self>,
        weight: &Fp8Rows<Self>,
        bias: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let weight = weight.clone().map(Tensor::inner);
        let node = open!(GroupedFp8Backward, C, [x, bias]);
        let dtype = bias.dtype();
        let out = B::lm_grouped_fp8(x.primitive, &weight, bias.primitive, offsets.clone());
        node.close(out, || (weight, offsets, dtype))
    }

    fn lm_recompute(
        x: Tensor<Self, 3>,
        leaves: Vec<Leaf<Self>>,
        shelf: Option<&Shelf>,
        f: Block<Self>,
    ) -> Tensor<Self, 3> {
        let tracked = |primitive: FloatTensor<Self>| primitive.is_tracked();
        let wanted = tracked(primitive(&x))
            || leaves.iter().any(|leaf| match leaf {
                Leaf::Vector(tensor) => tracked(primitive(tensor)),
                Leaf::Matrix(tensor) => tracked(primitive(tensor)),
            });
        if Segment::active() || !wanted {
            return f(x, leaves);
        }
        let stored = shelf.map(|shelf| shelf.put(x.clone().inner()));
        let input = match &stored {
            Some(stored) => Input::Stored(stored.clone()),
            None => Input::Kept(x.clone().inner()),
        };
        let leaves_inner: Vec<Leaf<B>> =
            leaves.iter().map(|leaf| leaf.clone().map_primitive(<Self as AutodiffBackend>::inner)).collect();
        let again = f.clone();
        let segment = Segment::new(move || {
            let leaves = leaves_inner.into_iter().map(|leaf| leaf.map_primitive(constant::<B, C>)).collect();
            let x = match input {
                Input::Kept(x) => x,
                Input::Stored(stored) => stored.take(),
            };
            again(Tensor::from_inner(x), leaves);
        });
        let out = segment.record(|| f(x, leaves));
        if let Some(stored) = stored {
            stored.leave();
        }
        out
    }
}

/// A linear layer with a bias; `run` makes the result in the type it wants.
fn linear_bias<B: LmBackend, C: CheckpointStrategy>(
    [x, weight, bias]: [FloatTensor<Autodiff<B, C>>; 3],
    run: impl FnOnce(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let node = open!(LinearBiasBackward, C, [x, weight, bias]);
    let ([x_tracked, w_tracked, _], dtypes) = (node.tracked, [x.dtype(), bias.dtype()]);
    let out = run(x.primitive.clone(), weight.primitive.clone(), bias.primitive);
    node.close(out, || (w_tracked.then_some(x.primitive), x_tracked.then_some(weight.primitive), dtypes))
}

fn primitive<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> FloatTensor<B> {
    match tensor.clone().into_primitive() {
        TensorPrimitive::Float(primitive) => primitive,
        quantized @ TensorPrimitive::QFloat(_) => quantized.tensor(),
    }
}
