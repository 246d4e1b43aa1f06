//! What mixes channels in a block: one gated MLP, or a mixture of experts.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Gathered, LmBackend};

use super::linear::{Linear, Segment};
use super::mlp::Mlp;
use super::moe::{Moe, Routing};
use crate::config::ModelConfig;
use crate::leaves::{LeafReader, NamedLeaf};

/// The channel mixer of a block.
#[derive(Clone, Debug)]
pub enum FeedForward<B: Backend> {
    /// Every token goes through the same MLP.
    Dense(Mlp<B>),
    /// Every token goes through some of many.
    Experts(Moe<B>),
}

impl<B: LmBackend> FeedForward<B> {
    /// Applies the layer; a mixture also says where it sent the tokens. The slots are those of [`FeedForward::slots`].
    ///
    /// # Shapes
    /// `x` and the result are `[b, t, d_model]`.
    pub fn forward(&self, x: Tensor<B, 3>, peaks: Gathered<B::Peaks>) -> (Tensor<B, 3>, Option<Routing<B>>) {
        match self {
            FeedForward::Dense(mlp) => (mlp.forward(x, peaks), None),
            FeedForward::Experts(moe) => {
                let (y, routing) = moe.forward(x);
                (y, Some(routing))
            }
        }
    }

    /// Empty slots for what is seen of the input and of the gradient of the result, where the layer can use them.
    pub fn slots(&self) -> Gathered<B::Peaks> {
        match self {
            FeedForward::Dense(mlp) => Gathered { forward: mlp.gate_up.slot(), backward: mlp.down.slot() },
            FeedForward::Experts(_) => Gathered::default(),
        }
    }

    /// The mixture, where it is one.
    pub fn moe(&self) -> Option<&Moe<B>> {
        match self {
            FeedForward::Dense(_) => None,
            FeedForward::Experts(moe) => Some(moe),
        }
    }

    /// As [`FeedForward::moe`], to change it.
    pub fn moe_mut(&mut self) -> Option<&mut Moe<B>> {
        match self {
            FeedForward::Dense(_) => None,
            FeedForward::Experts(moe) => Some(moe),
        }
    }

    /// Reads in the order of [`FeedForward::collect`].
    pub(crate) fn from_leaves(config: &ModelConfig, leaves: &mut LeafReader<B>) -> Self {
        if let Some(experts) = config.experts() {
            return FeedForward::Experts(Moe::from_leaves(*experts, leaves));
        }
        let gate_up = vec![Segment::new("gate_proj", config.d_ff), Segment::new("up_proj", config.d_ff)];
        let down = vec![Segment::new("down_proj", config.d_model)];
        FeedForward::Dense(Mlp {
            gate_up: Linear::new(leaves.matrix(), None, gate_up),
            down: Linear::new(leaves.matrix(), None, down),
        })
    }

    /// Appends the parameters; `prefix` is the layer's own name.
    pub(crate) fn collect(&self, prefix: &str, out: &mut Vec<NamedLeaf<B>>) {
        match self {
            FeedForward::Dense(mlp) => {
                mlp.gate_up.collect(prefix, "gate_up_proj", out);
                mlp.down.collect(prefix, "down_proj", out);
            }
            FeedForward::Experts(moe) => moe.collect(prefix, out),
        }
    }

    /// The same layer with other values, possibly on another backend; reads in the order of [`FeedForward::collect`].
    pub(crate) fn rebuild<C: LmBackend>(&self, leaves: &mut LeafReader<C>) -> FeedForward<C> {
        match self {
            FeedForward::Dense(mlp) => {
                FeedForward::Dense(Mlp { gate_up: mlp.gate_up.rebuild(leaves), down: mlp.down.rebuild(leaves) })
            }
            FeedForward::Experts(moe) => FeedForward::Experts(moe.rebuild(leaves)),
        }
    }
}
