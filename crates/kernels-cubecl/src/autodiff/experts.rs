//! The backward steps of linear layers with a bias and of the mixture of experts.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, TensorMetadata};

use super::ops::{linear_gradients, step};
use super::replay::Saved;
use super::sums;
use crate::{Dispatch, ExpertWeight, Fp8Rows, LmBackend, LoraParts, Mxfp4, Tracked, portable};

step!(
    /// `x` is saved when the weight is tracked, the weight when `x` is; the gradient comes in the type of the result.
    LinearBiasBackward, 3, (Option<FloatTensor<B>>, Option<FloatTensor<B>>, [DType; 2]), |grads, dy, (x, weight, [dtype, bias_dtype]), [x_node, w_node, b_node]| {
        if let Some(node) = b_node {
            sums::register::<B>(grads, node.id, B::lm_bias_grad(dy.clone(), bias_dtype));
        }
        let dy = match dy.dtype() == dtype {
            true => dy,
            false => B::float_cast(dy, FloatDType::from(dtype)),
        };
        linear_gradients::<B>(grads, dy, (x, weight), [x_node, w_node].map(|node| node.map(|node| node.id)));
    }
);

step!(
    /// Keeps the weights and the choice; the gradient has as many logits as there are experts.
    RouteBackward, 1, (FloatTensor<B>, IntTensor<B>, usize, DType), |grads, dy, (weights, experts, n_experts, dtype), [node]| {
        if let Some(node) = node {
            grads.register::<B>(node.id, B::lm_route_bwd(dy, weights, experts, n_experts, dtype));
        }
    }
);

step!(
    /// Keeps the dispatch and the number of tokens.
    GatherBackward, 1, (Dispatch<B>, usize), |grads, dy, (at, n), [node]| {
        if let Some(node) = node {
            grads.register::<B>(node.id, B::lm_gather_tokens_bwd(dy, &at, n));
        }
    }
);

step!(
    /// Keeps the outputs of the experts and their weights.
    CombineBackward, 2, (FloatTensor<B>, FloatTensor<B>, Dispatch<B>, Tracked), |grads, dy, (y, weights, at, want), parents| {
        let (dy, dweights) = B::lm_combine_bwd(dy, y, weights, &at, want);
        for (node, gradient) in parents.into_iter().zip([dy, dweights]) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
);

step!(
    /// Keeps gate and up, as the plain gated unit does.
    SwigluClampedBackward, 1, (FloatTensor<B>, f32, f32), |grads, dy, (gate_up, alpha, limit), [node]| {
        if let Some(node) = node {
            grads.register::<B>(node.id, B::lm_swiglu_clamped_bwd(dy, gate_up, alpha, limit));
        }
    }
);

/// `x` when the weight is tracked, the weight when `x` is, and the bounds of the experts.
type GroupedState<B> = (Option<FloatTensor<B>>, Option<FloatTensor<B>>, IntTensor<B>);

/// Adds the gradient of a weight.
fn weight_gradient<B: LmBackend>(
    grads: &mut Gradients,
    node: NodeId,
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
    offsets: IntTensor<B>,
) {
    sums::accumulate::<B>(grads, node, |sum| match sum {
        Some(sum) => B::lm_grouped_linear_dw_acc(dy, x, offsets, sum),
        None => B::lm_grouped_linear_dw(dy, x, offsets),
    });
}

/// Gradients of rows and weight.
fn grouped<B: LmBackend>(
    grads: &mut Gradients,
    dy: FloatTensor<B>,
    (x, weight, offsets): GroupedState<B>,
    [x_node, w_node]: [Option<NodeId>; 2],
) {
    if let (Some(node), Some(x)) = (w_node, x) {
        weight_gradient::<B>(grads, node, dy.clone(), x, offsets.clone());
    }
    if let (Some(node), Some(weight)) = (x_node, weight) {
        grads.register::<B>(node, B::lm_grouped_linear_dx(dy, weight, offsets));
    }
}

step!(
    /// Experts without biases.
    GroupedBackward, 2, GroupedState<B>, |grads, dy, state, parents| {
        grouped::<B>(grads, dy, state, parents.map(|node| node.map(|node| node.id)));
    }
);

step!(
    /// Experts with biases.
    GroupedBiasBackward, 3, (GroupedState<B>, DType), |grads, dy, (state, dtype), [x_node, w_node, b_node]| {
        if let Some(node) = b_node {
            sums::register::<B>(grads, node.id, B::lm_grouped_bias_grad(dy.clone(), state.2.clone(), dtype));
        }
        grouped::<B>(grads, dy, state, [x_node, w_node].map(|node| node.map(|node| node.id)));
    }
);

step!(
    /// Frozen experts without biases.
    GroupedMxfp4Backward, 1, (Mxfp4<B>, IntTensor<B>), |grads, dy, (weight, offsets), [node]| {
        if let Some(node) = node {
            grads.register::<B>(node.id, B::lm_grouped_mxfp4_dx(dy, &weight, offsets));
        }
    }
);

step!(
    /// Frozen experts with biases.
    GroupedMxfp4BiasBackward, 2, (Mxfp4<B>, IntTensor<B>, DType), |grads, dy, (weight, offsets, dtype), [x_node, b_node]| {
        if let Some(node) = b_node {
            sums::register::<B>(grads, node.id, B::lm_grouped_bias_grad(dy.clone(), offsets.clone(), dtype));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::lm_grouped_mxfp4_dx(dy, &weight, offsets));
        }
    }
);

/// What the gradients of a low-rank update beside a frozen weight are made of.
#[derive(Clone, Debug)]
pub(super) struct LoraState<B: LmBackend> {
    /// When `a` is tracked.
    pub(super) x: Option<FloatTensor<B>>,
    /// `scale·x·aᵀ`, when `b` is tracked.
    pub(super) low: Option<FloatTensor<B>>,
    pub(super) weight: ExpertWeight<B>,
    pub(super) lora: LoraParts<B>,
    pub(super) offsets: IntTensor<B>,
}

step!(
    /// Experts with a low-rank update; nothing of the base is tracked.
    GroupedLoraBackward, 3, LoraState<B>, |grads, dy, state, [x_node, a_node, b_node]| {
        let LoraState { x, low, weight, lora, offsets } = state;
        if let (Some(node), Some(low)) = (b_node, low) {
            weight_gradient::<B>(grads, node.id, dy.clone(), low, offsets.clone());
        }
        if x_node.is_some() || a_node.is_some() {
            let dlow = B::lm_grouped_linear_dx(dy.clone(), lora.b, offsets.clone());
            let dlow = portable::scaled::<B>(dlow, lora.scale);
            if let (Some(node), Some(x)) = (a_node, x) {
                weight_gradient::<B>(grads, node.id, dlow.clone(), x, offsets.clone());
            }
            if let Some(node) = x_node {
                grads.register::<B>(node.id, B::lm_grouped_sum_dx(dy, &weight, [dlow, lora.a], offsets));
            }
        }
    }
);

step!(
    /// Frozen experts in FP8, with biases.
    GroupedFp8Backward, 2, (Fp8Rows<B>, IntTensor<B>, DType), |grads, dy, (weight, offsets, dtype), [x_node, b_node]| {
        if let Some(node) = b_node {
            sums::register::<B>(grads, node.id, B::lm_grouped_bias_grad(dy.clone(), offsets.clone(), dtype));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::lm_grouped_fp8_dx(dy, &weight, offsets));
        }
    }
);
