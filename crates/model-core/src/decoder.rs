//! The decoder: embedding, blocks, final normalisation and output head, on one screen.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Fp8, Leaf, LmBackend, Packed, Shelf, embedding, recompute};

use crate::config::ModelConfig;
use crate::layers::block::Flow;
use crate::layers::{Attention, Block, Linear, Moe, Normed, RmsNorm, Routing};
use crate::leaves::{LeafReader, NamedLeaf};
use crate::rows::Input;

/// Which blocks run again in the backward pass, and where their inputs wait for it.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// So many blocks, counted from the first.
    pub blocks: usize,
    /// So many of them, counted from the first, have their inputs in the host's memory.
    pub offloaded: usize,
    /// Where those inputs are.
    pub shelf: Shelf,
}

impl Replay {
    /// The first `blocks` blocks, with their inputs on the device.
    pub fn first(blocks: usize) -> Self {
        Self { blocks, ..Self::default() }
    }
}

/// A decoder-only transformer of one of the families of [`crate::config::Family`].
#[derive(Clone, Debug)]
pub struct Decoder<B: Backend> {
    /// Its architecture.
    pub config: ModelConfig,
    /// `[vocab_size, d_model]`.
    pub embedding: Tensor<B, 2>,
    /// The blocks, first to last.
    pub blocks: Vec<Block<B>>,
    /// After the last block.
    pub final_norm: RmsNorm<B>,
    /// Output head `[vocab_size, d_model]`; `None` when it is the embedding.
    pub own_head: Option<Tensor<B, 2>>,
}

impl<B: LmBackend> Decoder<B> {
    /// Hidden states after the final normalisation.
    ///
    /// With `recompute` no block keeps its activations, the backward pass runs it again; results and gradients are the
    /// same bit for bit.
    ///
    /// # Shapes
    /// `[b, t, d_model]`.
    pub fn hidden(&self, input: &Input<B>, recompute: bool) -> Tensor<B, 3> {
        if recompute {
            return self.hidden_recomputed(input, &Replay::first(self.blocks.len()));
        }
        self.hidden_with(input.ids_bt.clone(), |_, attention, x| attend(attention, x, input))
    }

    /// As [`Decoder::hidden`], with `mix` in the place of attention over whole rows: it gets the block's number, its
    /// attention layer and the normalised rows, and returns what the layer adds to the stream. Caches enter here.
    pub fn hidden_with<F>(&self, ids_bt: Tensor<B, 2, burn::tensor::Int>, mut mix: F) -> Tensor<B, 3>
    where
        F: FnMut(usize, &Attention<B>, Normed<B>) -> Tensor<B, 3>,
    {
        let mut flow = Flow::start(embedding(self.embedding.clone(), ids_bt));
        for (i, block) in self.blocks.iter().enumerate() {
            flow = block.forward(flow, |attention, x| mix(i, attention, x));
        }
        flow.normalise(&self.final_norm, None).1
    }

    /// As [`Decoder::hidden`], with the first blocks recomputed and the activations of the others kept.
    ///
    /// Between recomputed blocks the stream is one tensor, so that one tensor per block is all that is kept of them, and on
    /// the device not even that where they are offloaded.
    pub fn hidden_recomputed(&self, input: &Input<B>, replay: &Replay) -> Tensor<B, 3> {
        self.hidden_routed(input, replay).0
    }

    /// As [`Decoder::hidden_recomputed`], with where each mixture of experts sent the tokens, block by block; see
    /// [`crate::router`] for what to make of it.
    pub fn hidden_routed(&self, input: &Input<B>, replay: &Replay) -> (Tensor<B, 3>, Vec<Routing<B>>) {
        let (again, kept) = self.blocks.split_at(replay.blocks.min(self.blocks.len()));
        let mut flow = Flow::start(embedding(self.embedding.clone(), input.ids_bt.clone()));
        for (i, block) in again.iter().enumerate() {
            let mut routed = std::mem::take(&mut flow.routed);
            let shelf = (i < replay.offloaded).then_some(&replay.shelf);
            let (x, more) = recomputed(block, flow.sum().0, input, shelf);
            routed.extend(more);
            flow = Flow { routed, ..Flow::start(x) };
        }
        let forward = |flow, block: &Block<B>| block.forward(flow, |attention, x| attend(attention, x, input));
        let mut flow = kept.iter().fold(flow, forward);
        let routed = std::mem::take(&mut flow.routed);
        (flow.normalise(&self.final_norm, None).1, routed)
    }

    /// Weight of the output head, `[vocab_size, d_model]`; the embedding when tied.
    pub fn head(&self) -> Tensor<B, 2> {
        self.own_head.as_ref().unwrap_or(&self.embedding).clone()
    }

    /// Every parameter in its fixed order: embedding, blocks, final norm, head.
    pub fn leaves(&self) -> Vec<NamedLeaf<B>> {
        let mut out = vec![NamedLeaf::matrix("model.embed_tokens.weight".to_owned(), &self.embedding)];
        for (i, block) in self.blocks.iter().enumerate() {
            block.collect(&format!("model.layers.{i}"), &mut out);
        }
        out.push(NamedLeaf::vector("model.norm.weight".to_owned(), &self.final_norm.gamma));
        out.extend(self.own_head.iter().map(|head| NamedLeaf::matrix("lm_head.weight".to_owned(), head)));
        if self.has_adapter() {
            out.iter_mut().for_each(|leaf| leaf.trainable = leaf.is_adapter());
        }
        out
    }

    /// The same model with other values, without FP8 histories and peaks of weights, in the order of [`Decoder::leaves`].
    ///
    /// # Panics
    /// When the number or the ranks of the leaves differ.
    pub fn with_leaves(&self, leaves: Vec<Leaf<B>>) -> Self {
        self.rebuild(leaves, self.packed().into_iter().map(|(_, packed)| packed.clone()).collect())
    }

    /// The same model on another backend, each leaf converted by `f` and each packed weight of experts by `packed`.
    pub fn map_backend<C: LmBackend>(
        &self,
        f: &mut dyn FnMut(&NamedLeaf<B>) -> Leaf<C>,
        packed: &mut dyn FnMut(&Packed<B>) -> Packed<C>,
    ) -> Decoder<C> {
        let packed = self.packed().into_iter().map(|(_, weight)| packed(weight)).collect();
        self.rebuild(self.leaves().iter().map(f).collect(), packed)
    }

    /// The same model under automatic differentiation, tracking the trainable leaves and the FP8 histories.
    pub fn to_autodiff(&self) -> Decoder<Autodiff<B>> {
        let mut model =
            self.map_backend(&mut |named| named.leaf.to_autodiff(named.trainable), &mut Packed::to_autodiff);
        let tracked = |history: &Tensor<B, 2>| Tensor::from_inner(history.clone()).require_grad();
        for ((_, linear), (_, before)) in model.linears_mut().into_iter().zip(self.linears()) {
            linear.history = before.history.as_ref().map(tracked);
            linear.weight_peaks = before.weight_peaks.clone().map(Tensor::from_inner);
        }
        model
    }

    /// A model without adapters from its leaves, in the order of [`Decoder::leaves`].
    ///
    /// # Panics
    /// When the number or the ranks of the leaves are not those of `config`.
    pub fn from_leaves(config: &ModelConfig, leaves: Vec<Leaf<B>>) -> Self {
        Self::from_packed(config, leaves, Vec::new())
    }

    /// As [`Decoder::from_leaves`], with the weights of experts packed, two for each block; they are then no leaves.
    ///
    /// # Panics
    /// When the number or the ranks of the leaves are not those of `config`.
    pub fn from_packed(config: &ModelConfig, leaves: Vec<Leaf<B>>, packed: Vec<Packed<B>>) -> Self {
        let mut leaves = LeafReader::new(leaves).with_packed(packed);
        let embedding = leaves.matrix();
        let blocks = (0..config.n_layers).map(|layer| Block::from_leaves(config, layer, &mut leaves)).collect();
        let final_norm = RmsNorm { gamma: leaves.vector(), eps: config.rms_norm_eps };
        let own_head = (!config.tied).then(|| leaves.matrix());
        leaves.finish();
        Decoder { config: config.clone(), embedding, blocks, final_norm, own_head }
    }

    /// Every projection with the name of the block part it lives in, for instance `model.layers.0.self_attn`; a
    /// segment's full name is that name, a dot and the segment's.
    pub fn linears(&self) -> Vec<(String, &Linear<B>)> {
        let of_block = |(i, block)| Block::linears(block).into_iter().map(move |l| (i, l));
        let parts = self.blocks.iter().enumerate().flat_map(of_block);
        parts.map(|(i, (part, linear))| (format!("model.layers.{i}.{part}"), linear)).collect()
    }

    /// As [`Decoder::linears`], to change them.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear<B>)> {
        let of_block = |(i, block)| Block::linears_mut(block).into_iter().map(move |l| (i, l));
        let parts = self.blocks.iter_mut().enumerate().flat_map(of_block);
        parts.map(|(i, (part, linear))| (format!("model.layers.{i}.{part}"), linear)).collect()
    }

    /// Every mixture of experts with the name of its experts, for instance `model.layers.0.mlp.experts`; the full name of
    /// a projection is that name, a dot and its own.
    pub fn mixtures(&self) -> Vec<(String, &Moe<B>)> {
        self.blocks.iter().enumerate().filter_map(|(i, block)| Some((experts_name(i), block.mlp.moe()?))).collect()
    }

    /// As [`Decoder::mixtures`], to change them.
    pub fn mixtures_mut(&mut self) -> Vec<(String, &mut Moe<B>)> {
        let blocks = self.blocks.iter_mut().enumerate();
        blocks.filter_map(|(i, block)| Some((experts_name(i), block.mlp.moe_mut()?))).collect()
    }

    /// The weights of experts that are packed, under the names that they would have as leaves.
    pub fn packed(&self) -> Vec<(String, &Packed<B>)> {
        let mut out = Vec::new();
        for (prefix, moe) in self.mixtures() {
            for experts in [&moe.gate_up, &moe.down] {
                out.extend(experts.packed().map(|weight| (format!("{prefix}.{}", experts.name), weight)));
            }
        }
        out
    }

    /// Does the products of all projections of the blocks in FP8, or no longer; embedding and head stay as they are.
    pub fn set_fp8(&mut self, mode: Option<Fp8>) {
        self.linears_mut().into_iter().for_each(|(_, linear)| linear.fp8 = mode);
    }

    /// Gives every projection of the blocks its FP8 history, in the order of [`Decoder::linears`]; an empty list takes them away.
    ///
    /// # Panics
    /// When there are some, but not one for each projection.
    pub fn set_histories(&mut self, histories: &[Tensor<B, 2>]) {
        let linears = self.linears_mut();
        let (n, wanted) = (histories.len(), linears.len());
        assert!(n == 0 || n == wanted, "set_histories: expected none or {wanted} histories, got {n}");
        for (i, (_, linear)) in linears.into_iter().enumerate() {
            linear.history = histories.get(i).cloned();
        }
    }

    /// Gives every projection of the blocks the peaks of its weight as it is now, in the order of [`Decoder::linears`].
    ///
    /// # Panics
    /// When there is not one entry for each projection.
    pub fn set_weight_peaks(&mut self, peaks: Vec<Option<Tensor<B, 1>>>) {
        let linears = self.linears_mut();
        let (n, wanted) = (peaks.len(), linears.len());
        assert!(n == wanted, "set_weight_peaks: expected peaks of {wanted} projections, got {n}");
        for ((_, linear), peaks) in linears.into_iter().zip(peaks) {
            linear.weight_peaks = peaks;
        }
    }

    /// The FP8 histories of the projections that have one, in the order of [`Decoder::linears`].
    pub fn histories(&self) -> Vec<Tensor<B, 2>> {
        self.linears().into_iter().filter_map(|(_, linear)| linear.history.clone()).collect()
    }

    /// Whether any projection carries an adapter, of experts or not.
    pub fn has_adapter(&self) -> bool {
        let of_experts = |moe: &Moe<B>| moe.gate_up.adapter.is_some() || moe.down.adapter.is_some();
        self.linears().iter().any(|(_, linear)| linear.has_adapter())
            || self.mixtures().iter().any(|(_, moe)| of_experts(moe))
    }

    fn rebuild<C: LmBackend>(&self, leaves: Vec<Leaf<C>>, packed: Vec<Packed<C>>) -> Decoder<C> {
        let mut leaves = LeafReader::new(leaves).with_packed(packed);
        let embedding = leaves.matrix();
        let blocks = self.blocks.iter().map(|block| block.rebuild(&mut leaves)).collect();
        let final_norm = RmsNorm { gamma: leaves.vector(), eps: self.final_norm.eps };
        let own_head = self.own_head.as_ref().map(|_| leaves.matrix());
        leaves.finish();
        Decoder { config: self.config.clone(), embedding, blocks, final_norm, own_head }
    }
}

fn experts_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.experts")
}

fn attend<B: LmBackend>(attention: &Attention<B>, normed: Normed<B>, input: &Input<B>) -> Tensor<B, 3> {
    attention.forward(normed, input.cos.clone(), input.sin.clone(), input.spans_of(attention))
}

/// One block that keeps no activations, as one tensor, and where it sent the tokens.
fn recomputed<B: LmBackend>(
    block: &Block<B>,
    x: Tensor<B, 3>,
    input: &Input<B>,
    shelf: Option<&Shelf>,
) -> (Tensor<B, 3>, Vec<Routing<B>>) {
    let leaves = block.tracked_leaves();
    let frame = block.with_tracked_leaves(leaves.iter().map(detached).collect());
    let input = input.clone();
    // The first run tells where the tokens went and is in the graph like the block's result; later runs tell nobody.
    let told = Arc::new(Mutex::new(Some(Vec::new())));
    let listener = told.clone();
    let run = move |x: Tensor<B, 3>, leaves: Vec<Leaf<B>>| {
        let block = frame.with_tracked_leaves(leaves);
        let (sum, routed) = block.forward(Flow::start(x), |attention, x| attend(attention, x, &input)).sum();
        if let Some(told) = listener.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            told.extend(routed);
        }
        sum
    };
    let x = recompute(x, leaves, shelf, Arc::new(run));
    let routed = told.lock().unwrap_or_else(PoisonError::into_inner).take();
    (x, routed.unwrap_or_default())
}

/// The same value outside the graph: what a recomputed block keeps as its frame must not hold the graph alive.
fn detached<B: Backend>(leaf: &Leaf<B>) -> Leaf<B> {
    match leaf {
        Leaf::Vector(value) => Leaf::Vector(value.clone().detach()),
        Leaf::Matrix(value) => Leaf::Matrix(value.clone().detach()),
    }
}
