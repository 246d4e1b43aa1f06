//! The backward step of each op.

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::node::Var;
use super::replay::Saved;
use super::sums;
use crate::{Fp8, Fp8Saved, HeadLayout, LmBackend, Rotation, Tracked};

/// `step!(Name, parents, state type, |grads, dy, state, parents| body)`: a backward step with its saved state.
macro_rules! step {
    ($(#[$doc:meta])* $name:ident, $n:literal, $state:ty, |$grads:ident, $dy:ident, $saved:pat_param, $parents:pat_param| $body:block) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;

        impl<B: LmBackend> Backward<B, $n> for $name {
            type State = Saved<$state>;

            fn backward(self, ops: Ops<Self::State, $n>, $grads: &mut Gradients, _: &mut Checkpointer) {
                let $dy = $grads.consume::<B>(&ops.node);
                let $saved = ops.state.take();
                let $parents = ops.parents;
                $body
            }
        }
    };
}

pub(super) use step;

/// The gradients of a product's operands: that of the weight from `x`, that of `x` from the weight.
pub(super) fn linear_gradients<B: LmBackend>(
    grads: &mut Gradients,
    dy: FloatTensor<B>,
    (x, weight): (Option<FloatTensor<B>>, Option<FloatTensor<B>>),
    [x_node, w_node]: [Option<NodeId>; 2],
) {
    if let (Some(node), Some(x)) = (w_node, x) {
        sums::accumulate::<B>(grads, node, |sum| match sum {
            Some(sum) => B::lm_linear_dw_acc(dy.clone(), x, sum),
            None => B::lm_linear_dw(dy.clone(), x),
        });
    }
    if let (Some(node), Some(weight)) = (x_node, weight) {
        grads.register::<B>(node, B::lm_linear_dx(dy, weight));
    }
}

step!(
    /// `x` is saved when the weight is tracked, the weight when `x` is.
    LinearBackward, 2, (Option<FloatTensor<B>>, Option<FloatTensor<B>>), |grads, dy, saved, nodes| {
        linear_gradients::<B>(grads, dy, saved, nodes.map(|node| node.map(|node| node.id)));
    }
);

step!(
    /// The gradient that already reached `x` on another way is added inside the kernel.
    RmsNormBackward, 2, (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Option<B::Peaks>), |grads, dy, (x, gamma, rstd, peaks), [x_node, g_node]| {
        let carry = x_node.as_ref().and_then(|node| {
            let mut probe: Var<B> = <Autodiff<B> as AutodiffBackend>::from_inner(x.clone());
            probe.node = node.clone();
            grads.remove::<B>(&probe)
        });
        let (dx, dgamma) = B::lm_rms_norm_bwd(dy, x, gamma, rstd, carry, peaks.as_ref());
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = g_node {
            sums::register::<B>(grads, node.id, dgamma);
        }
    }
);

step!(
    /// Both summands get the gradient as it is.
    AddBackward, 2, (), |grads, dy, (), parents| {
        for node in parents.into_iter().flatten() {
            grads.register::<B>(node.id, dy.clone());
        }
    }
);

step!(
    /// The transpose of a rotation is the rotation back.
    RopeBackward, 1, (FloatTensor<B>, FloatTensor<B>, HeadLayout, Rotation, Option<B::Peaks>), |grads, dy, (cos, sin, heads, rotation, peaks), [node]| {
        let back = match rotation {
            Rotation::Forward => Rotation::Backward,
            Rotation::Backward => Rotation::Forward,
        };
        if let Some(node) = node {
            grads.register::<B>(node.id, B::lm_rope_qkv(dy, cos, sin, heads, back, peaks.as_ref()));
        }
    }
);

/// qkv, out, lse, start, end, heads, scale.
type AttentionState<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, IntTensor<B>, IntTensor<B>, HeadLayout, f32);

step!(
    /// Attention without sinks.
    AttentionBackward, 1, AttentionState<B>, |grads, dy, (qkv, out, lse, start, end, heads, scale), [node]| {
        if let Some(node) = node {
            let (dqkv, _) = B::lm_attention_bwd(dy, qkv, out, lse, start, end, None, heads, scale);
            grads.register::<B>(node.id, dqkv);
        }
    }
);

step!(
    /// Attention with sinks, which are a parameter.
    AttentionSinksBackward, 2, (AttentionState<B>, FloatTensor<B>), |grads, dy, (state, sinks), [qkv_node, sinks_node]| {
        let (qkv, out, lse, start, end, heads, scale) = state;
        let (dqkv, dsinks) = B::lm_attention_bwd(dy, qkv, out, lse, start, end, Some(sinks), heads, scale);
        if let Some(node) = qkv_node {
            grads.register::<B>(node.id, dqkv);
        }
        if let (Some(node), Some(dsinks)) = (sinks_node, dsinks) {
            sums::register::<B>(grads, node.id, dsinks);
        }
    }
);

step!(
    /// Keeps gate and up; the gated product is cheap to differentiate from them.
    SwigluBackward, 1, (FloatTensor<B>, Option<B::Peaks>), |grads, dy, (gate_up, peaks), [node]| {
        if let Some(node) = node {
            grads.register::<B>(node.id, B::lm_swiglu_bwd(dy, gate_up, peaks.as_ref()));
        }
    }
);

step!(
    /// Keeps the ids and the height of the table.
    EmbeddingBackward, 1, (IntTensor<B>, usize), |grads, dy, (ids, n_rows), [node]| {
        if let Some(node) = node {
            sums::accumulate::<B>(grads, node.id, |sum| match sum {
                Some(sum) => B::lm_embedding_bwd_acc(dy, ids, sum),
                None => B::lm_embedding_bwd(dy, ids, n_rows),
            });
        }
    }
);

step!(
    /// Keeps the finished gradients; the upstream gradient is one number.
    CrossEntropyBackward, 2, (Option<FloatTensor<B>>, Option<FloatTensor<B>>), |grads, dy, (dx, dw), parents| {
        for (node, gradient) in parents.into_iter().zip([dx, dw]) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                sums::register::<B>(grads, node.id, B::lm_scale(gradient, dy.clone()));
            }
        }
    }
);

step!(
    /// Keeps the operands; the logits are made again.
    LogprobsBackward, 2, (FloatTensor<B>, FloatTensor<B>, IntTensor<B>, FloatTensor<B>, Tracked), |grads, dy, (x, weight, targets, lse, want), parents| {
        let (dx, dw) = B::lm_token_logprobs_bwd(dy, x, weight, targets, lse, want);
        for (node, gradient) in parents.into_iter().zip([dx, dw]) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                sums::register::<B>(grads, node.id, gradient);
            }
        }
    }
);

/// Weight, what the forward pass saved, how products are summed, who wants a gradient, and the slot for peaks of `dy`.
type LinearFp8State<B> = (FloatTensor<B>, Fp8Saved<B>, Fp8, Tracked, Option<<B as LmBackend>::Peaks>);

/// Gradients of an FP8 linear layer; gives the next history where there is one.
fn linear_fp8<B: LmBackend>(
    grads: &mut Gradients,
    dy: FloatTensor<B>,
    (weight, saved, mode, want, peaks): LinearFp8State<B>,
    [x_node, w_node]: [Option<NodeId>; 2],
) -> Option<FloatTensor<B>> {
    let mut rest = (None, None);
    let run = |acc| {
        let all = B::lm_linear_fp8_bwd(dy, weight, saved, mode, want, acc, peaks.as_ref());
        rest = (all.dx, all.history);
        all.dw
    };
    match w_node.filter(|_| want.weight) {
        Some(node) => {
            sums::accumulate::<B>(grads, node, |sum| run(sum).expect("the weight's gradient was asked for"));
        }
        None => drop(run(None)),
    }
    let (dx, history) = rest;
    if let (Some(node), Some(dx)) = (x_node, dx) {
        grads.register::<B>(node, dx);
    }
    history
}

step!(
    /// Keeps `x` in FP8; the weight is rounded again.
    LinearFp8Backward, 2, LinearFp8State<B>, |grads, dy, state, parents| {
        linear_fp8::<B>(grads, dy, state, parents.map(|node| node.map(|node| node.id)));
    }
);

step!(
    /// The gradient of the history is the next one.
    LinearFp8HistoryBackward, 3, LinearFp8State<B>, |grads, dy, state, [x_node, w_node, history_node]| {
        let history = linear_fp8::<B>(grads, dy, state, [x_node, w_node].map(|node| node.map(|node| node.id)));
        if let (Some(node), Some(history)) = (history_node, history) {
            grads.register::<B>(node.id, history);
        }
    }
);
