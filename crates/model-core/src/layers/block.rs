//! One transformer block: attention and a mixer of channels, each behind a normalisation and added to the residual stream.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Gathered, Leaf, LmBackend, Packed};

use super::attention::{Attention, Normed};
use super::feed_forward::FeedForward;
use super::linear::{Linear, Segment};
use super::moe::Routing;
use super::norm::RmsNorm;
use crate::config::ModelConfig;
use crate::leaves::{LeafReader, NamedLeaf};

/// A pre-norm transformer block.
#[derive(Clone, Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub attention_norm: RmsNorm<B>,
    /// Mixes positions.
    pub attention: Attention<B>,
    /// Before the mixer of channels.
    pub mlp_norm: RmsNorm<B>,
    /// Mixes channels.
    pub mlp: FeedForward<B>,
}

/// What flows between blocks: the last layer's output and the residual stream that it still has to be added to.
///
/// The sum is left to the next normalisation, which adds and normalises in one pass.
#[derive(Clone, Debug)]
pub struct Flow<B: LmBackend> {
    /// Output of the last layer, `[b, t, d_model]`.
    pub x: Tensor<B, 3>,
    /// The stream before that output; `None` right after the embedding.
    pub residual: Option<Tensor<B, 3>>,
    /// The slot for what is seen of the gradient of `x`, where the last layer has one.
    pub peaks: Option<B::Peaks>,
    /// Where mixtures of experts have sent the tokens, block by block; empty without experts.
    pub routed: Vec<Routing<B>>,
}

impl<B: LmBackend> Flow<B> {
    /// A stream that begins with `x`.
    pub fn start(x: Tensor<B, 3>) -> Self {
        Flow { x, residual: None, peaks: None, routed: Vec::new() }
    }

    /// The stream as one tensor, and where its tokens were sent.
    pub fn sum(self) -> (Tensor<B, 3>, Vec<Routing<B>>) {
        let sum = match self.residual {
            Some(residual) => self.x + residual,
            None => self.x,
        };
        (sum, self.routed)
    }

    /// The stream so far and its normalised rows; what is seen of these is left in the slot.
    pub fn normalise(self, norm: &RmsNorm<B>, peaks: Option<B::Peaks>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        match self.residual {
            Some(residual) => norm.forward_add(self.x, residual, Gathered { forward: peaks, backward: self.peaks }),
            None => (self.x.clone(), norm.forward(self.x, peaks.as_ref())),
        }
    }
}

impl<B: LmBackend> Block<B> {
    /// Runs the block; `attend` is how positions are mixed, so that a cache can take the place of whole rows.
    pub fn forward<F>(&self, mut flow: Flow<B>, attend: F) -> Flow<B>
    where
        F: FnOnce(&Attention<B>, Normed<B>) -> Tensor<B, 3>,
    {
        let mut routed = std::mem::take(&mut flow.routed);
        let (peaks, mlp_peaks) = (self.attention.slots(), self.mlp.slots());
        let (residual, x) = flow.normalise(&self.attention_norm, peaks.forward.clone());
        let mixed = attend(&self.attention, Normed { x, peaks: peaks.clone() });
        let around = Gathered { forward: mlp_peaks.forward.clone(), backward: peaks.backward };
        let (residual, normed) = self.mlp_norm.forward_add(mixed, residual, around);
        let (x, routing) = self.mlp.forward(normed, mlp_peaks.clone());
        routed.extend(routing);
        Flow { x, residual: Some(residual), peaks: mlp_peaks.backward, routed }
    }

    /// The projections with the part of the block they live in, for adapters; experts are not among them.
    pub fn linears(&self) -> Vec<(&'static str, &Linear<B>)> {
        let mut out = vec![("self_attn", &self.attention.qkv), ("self_attn", &self.attention.output)];
        if let FeedForward::Dense(mlp) = &self.mlp {
            out.extend([("mlp", &mlp.gate_up), ("mlp", &mlp.down)]);
        }
        out
    }

    /// As [`Block::linears`], to change them.
    pub fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear<B>)> {
        let mut out = vec![("self_attn", &mut self.attention.qkv), ("self_attn", &mut self.attention.output)];
        if let FeedForward::Dense(mlp) = &mut self.mlp {
            out.extend([("mlp", &mut mlp.gate_up), ("mlp", &mut mlp.down)]);
        }
        out
    }

    /// The weights of experts that are packed, in the order in which a [`LeafReader`] hands them out.
    pub fn packed(&self) -> Vec<&Packed<B>> {
        let experts = self.mlp.moe().map(|moe| [&moe.gate_up, &moe.down]);
        experts.into_iter().flatten().filter_map(|experts| experts.packed()).collect()
    }

    /// Block `layer` without adapters, from leaves in the order of [`Block::collect`].
    pub(crate) fn from_leaves(config: &ModelConfig, layer: usize, leaves: &mut LeafReader<B>) -> Self {
        let (heads, eps) = (config.heads(), config.rms_norm_eps);
        let (q_rows, kv_rows) = (heads.q_width(), heads.kv_width());
        let qkv =
            vec![Segment::new("q_proj", q_rows), Segment::new("k_proj", kv_rows), Segment::new("v_proj", kv_rows)];
        let biased = config.as_gpt_oss().is_some();
        let linear = |leaves: &mut LeafReader<B>, segments| {
            let weight = leaves.matrix();
            Linear::new(weight, biased.then(|| leaves.vector()), segments)
        };
        Block {
            attention_norm: RmsNorm { gamma: leaves.vector(), eps },
            attention: Attention {
                qkv: linear(leaves, qkv),
                output: linear(leaves, vec![Segment::new("o_proj", config.d_model)]),
                sinks: biased.then(|| leaves.vector()),
                window: config.window(layer),
                heads,
                scale: config.attention_scale(),
            },
            mlp_norm: RmsNorm { gamma: leaves.vector(), eps },
            mlp: FeedForward::from_leaves(config, leaves),
        }
    }

    /// Appends the parameters; `prefix` is the block's own name.
    pub(crate) fn collect(&self, prefix: &str, out: &mut Vec<NamedLeaf<B>>) {
        let (attention, mlp) = (format!("{prefix}.self_attn"), format!("{prefix}.mlp"));
        out.push(NamedLeaf::vector(format!("{prefix}.input_layernorm.weight"), &self.attention_norm.gamma));
        self.attention.qkv.collect(&attention, "qkv_proj", out);
        self.attention.output.collect(&attention, "o_proj", out);
        out.extend(self.attention.sinks.iter().map(|sinks| NamedLeaf::vector(format!("{attention}.sinks"), sinks)));
        out.push(NamedLeaf::vector(format!("{prefix}.post_attention_layernorm.weight"), &self.mlp_norm.gamma));
        self.mlp.collect(&mlp, out);
    }

    /// Everything that a pass over the block hands gradients to: the parameters in the order of [`Block::collect`], then the
    /// FP8 histories of its projections.
    pub(crate) fn tracked_leaves(&self) -> Vec<Leaf<B>> {
        let mut named = Vec::new();
        self.collect("", &mut named);
        let histories = self.linears().into_iter().filter_map(|(_, linear)| linear.history.clone().map(Leaf::Matrix));
        named.into_iter().map(|named| named.leaf).chain(histories).collect()
    }

    /// The same block with other copies of its values; reads in the order of [`Block::tracked_leaves`].
    pub(crate) fn with_tracked_leaves(&self, leaves: Vec<Leaf<B>>) -> Self {
        let packed = self.packed().into_iter().cloned().collect();
        let mut leaves = LeafReader::new(leaves).with_packed(packed);
        let mut block = self.rebuild(&mut leaves);
        for ((_, linear), (_, before)) in block.linears_mut().into_iter().zip(self.linears()) {
            linear.history = before.history.as_ref().map(|_| leaves.matrix());
            linear.weight_peaks.clone_from(&before.weight_peaks);
        }
        leaves.finish();
        block
    }

    /// The same block with other values and no histories, possibly on another backend; reads in the order of
    /// [`Block::collect`].
    pub(crate) fn rebuild<C: LmBackend>(&self, leaves: &mut LeafReader<C>) -> Block<C> {
        Block {
            attention_norm: RmsNorm { gamma: leaves.vector(), eps: self.attention_norm.eps },
            attention: Attention {
                qkv: self.attention.qkv.rebuild(leaves),
                output: self.attention.output.rebuild(leaves),
                sinks: self.attention.sinks.as_ref().map(|_| leaves.vector()),
                window: self.attention.window,
                heads: self.attention.heads,
                scale: self.attention.scale,
            },
            mlp_norm: RmsNorm { gamma: leaves.vector(), eps: self.mlp_norm.eps },
            mlp: self.mlp.rebuild(leaves),
        }
    }
}
