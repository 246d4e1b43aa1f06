//! The buffers of a training step, replayed on a pool that keeps every buffer for the next one of exactly its size.
//!
//! Such a pool ends at the sum over all sizes of the most buffers of that size that were alive at once, so that what a step
//! needs depends on which sizes happen to be equal: with as many tokens as the model is wide, a weight's gradient takes the
//! memory of an activation that was freed before it. That is replayed here, op by op in the order of the loop, with what each
//! node of the graph saves.

use std::collections::HashMap;

use kernels_cubecl::experts_decoded;
use kernels_cubecl::ops::linear_cross_entropy::device_chunk_rows;
use model_core::ModelConfig;
use model_core::hf::PackedExperts;

/// Bytes of an f32 or i32.
const FLOAT: u64 = 4;
/// Most rows of the partial sums of a norm's gradient.
const NORM_STRIPS: u64 = 264;

/// How the loss reads the hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Cross-entropy, whose gradients are made in the forward pass.
    CrossEntropy,
    /// Log-probabilities, whose logits are made again in the backward pass.
    Logprobs,
}

/// Low-rank adapters on every projection of the blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterShape {
    /// Rank of projections outside experts.
    pub rank: u64,
    /// Rank of projections of experts.
    pub expert_rank: u64,
    /// Whether elements are dropped in training, which keeps a mask and a masked copy of every input.
    pub dropout: bool,
    /// In which form the frozen weights of experts stay.
    pub packed_experts: PackedExperts,
}

impl AdapterShape {
    /// Rank of a projection.
    fn rank_of(&self, projection: &Projection) -> u64 {
        if projection.of_experts { self.expert_rank } else { self.rank }
    }
}

/// What decides the sizes of a step.
#[derive(Clone, Debug)]
pub(super) struct Shapes {
    /// Bytes of an element of weights and activations.
    pub(super) element: u64,
    /// Blocks' products in FP8.
    pub(super) fp8: bool,
    /// Tokens of a micro-batch.
    pub(super) tokens: u64,
    /// Blocks, counted from the first, that run again in the backward pass.
    pub(super) recomputed: u64,
    /// Blocks, counted from the first, whose inputs wait on the host; at most those that are recomputed.
    pub(super) offloaded: u64,
    /// More than one micro-batch a step.
    pub(super) accumulate: bool,
    pub(super) head: Head,
    pub(super) adapter: Option<AdapterShape>,
}

/// What the step of a model leaves in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepMemory {
    /// Summed gradients.
    pub(super) gradients: u64,
    /// What the graph keeps between forward and backward.
    pub(super) kept: u64,
    /// Everything, when gradients had a pool of their own.
    pub(super) apart: u64,
    /// Everything, as the pool shares it.
    pub(super) together: u64,
}

/// Replays a step.
pub(super) fn replay(model: &ModelConfig, shapes: &Shapes) -> StepMemory {
    let run = |apart| {
        let mut step = Step::new(model, shapes, apart);
        step.pass(true);
        if shapes.accumulate {
            step.pass(false);
        }
        step
    };
    let together = run(false);
    StepMemory {
        gradients: together.gradients,
        kept: together.kept,
        apart: run(true).pool.n_bytes(),
        together: together.pool.n_bytes(),
    }
}

/// A pool that keeps every buffer for the next one of its size.
#[derive(Default)]
struct Pool {
    /// By size, and whether it is a gradient of a pool of its own: alive now, and the most that were.
    sizes: HashMap<(u64, bool), (u64, u64)>,
    alive: u64,
}

impl Pool {
    fn take(&mut self, size: u64, apart: bool) {
        let (now, most) = self.sizes.entry((size, apart)).or_default();
        *now += 1;
        *most = (*most).max(*now);
        self.alive += size;
    }

    fn give(&mut self, size: u64) {
        let entry = self.sizes.get_mut(&(size, false)).filter(|(now, _)| *now > 0);
        let (now, _) = entry.unwrap_or_else(|| panic!("memory plan: no buffer of {size} bytes is alive"));
        *now -= 1;
        self.alive -= size;
    }

    fn n_bytes(&self) -> u64 {
        self.sizes.iter().map(|((size, _), (_, most))| size * most).sum()
    }
}

/// Which states the ops of a forward pass keep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Nothing,
}

/// A projection: output rows, inputs, parts with an adapter of their own, rows that go through it, and how many matrices
/// share them: one, or one for each expert.
#[derive(Clone, Copy)]
struct Projection {
    out: u64,
    input: u64,
    parts: u64,
    rows: u64,
    matrices: u64,
    of_experts: bool,
}

struct Step<'a> {
    shapes: &'a Shapes,
    pool: Pool,
    /// Whether gradients have a pool of their own.
    apart: bool,
    /// Whether this pass makes the gradients; later ones add to them.
    first: bool,
    gradients: u64,
    kept: u64,
    n_layers: u64,
    tied: bool,
    vocab: u64,
    width: u64,
    /// Bytes of `[m, d]`, of the fused q, k, v rows, of attention's result, of gate and up, of their product.
    stream: u64,
    qkv: u64,
    mixed: u64,
    gate_up: u64,
    product: u64,
    /// Log-sum-exp of attention, one number per row of a norm.
    lse: u64,
    row: u64,
    projections: [Projection; 4],
    /// Bytes of the tokens' rows in the order of the experts; 0 for a plain MLP.
    routed: u64,
    /// Biases, sinks and the router of a block.
    beside: u64,
}

const QKV: usize = 0;
const OUTPUT: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

impl<'a> Step<'a> {
    fn new(model: &ModelConfig, shapes: &'a Shapes, apart: bool) -> Self {
        let heads = model.heads();
        let [d, f, q, w] = [model.d_model, model.d_ff, heads.q_width(), heads.width()].map(|n| n as u64);
        let (m, e) = (shapes.tokens, shapes.element);
        let experts = model.experts();
        let [n, top_k] = experts.map_or([1, 1], |experts| [experts.n as u64, experts.top_k as u64]);
        let projection = |out, input, parts| Projection { out, input, parts, rows: m, matrices: 1, of_experts: false };
        let expert = |out, input, parts| Projection {
            rows: m * top_k,
            matrices: n,
            of_experts: experts.is_some(),
            ..projection(out, input, parts)
        };
        // Experts have one adapter for gate and up together.
        let gate_up_parts = if experts.is_some() { 1 } else { 2 };
        Self {
            shapes,
            pool: Pool::default(),
            apart,
            first: true,
            gradients: 0,
            kept: 0,
            n_layers: model.n_layers as u64,
            tied: model.tied,
            vocab: model.vocab_size as u64,
            width: d,
            stream: m * d * e,
            qkv: m * w * e,
            mixed: m * q * e,
            gate_up: 2 * m * top_k * f * e,
            product: m * top_k * f * e,
            lse: m * model.n_heads as u64 * FLOAT,
            row: m * FLOAT,
            projections: [projection(w, d, 3), projection(d, q, 1), expert(2 * f, d, gate_up_parts), expert(d, f, 1)],
            routed: experts.map_or(0, |_| m * top_k * d * e),
            beside: experts.map_or(0, |_| w + d + model.n_heads as u64 + n * (d + 1) + n * (2 * f + d)),
        }
    }

    fn take<const N: usize>(&mut self, sizes: [u64; N]) {
        sizes.into_iter().for_each(|size| self.pool.take(size, false));
    }

    fn give<const N: usize>(&mut self, sizes: [u64; N]) {
        sizes.into_iter().for_each(|size| self.pool.give(size));
    }

    /// Takes and gives buffers that live for one op.
    fn passing<const N: usize>(&mut self, sizes: [u64; N]) {
        self.take(sizes);
        self.give(sizes);
    }

    /// The gradient of a parameter, which stays until the optimizer's step.
    fn gradient(&mut self, n: u64) {
        if self.first {
            let bytes = n * self.shapes.element;
            self.pool.take(bytes, self.apart);
            self.gradients += bytes;
        }
    }

    fn full(&self) -> bool {
        self.shapes.adapter.is_none()
    }

    /// Forward and backward of one micro-batch.
    fn pass(&mut self, first: bool) {
        self.first = first;
        let before = self.pool.alive;
        self.take([self.stream]);
        for block in 0..self.n_layers {
            if block < self.shapes.recomputed {
                self.forward(Keep::Nothing, true);
                self.close_recomputed();
                if block < self.shapes.offloaded {
                    self.give([self.stream]);
                }
            } else {
                self.forward(Keep::All, block == self.shapes.recomputed);
            }
        }
        self.final_norm();
        self.head_forward();
        self.kept = self.pool.alive - before - if first { self.gradients } else { 0 };
        self.head_backward();
        self.norm_backward();
        for block in (0..self.n_layers).rev() {
            if block < self.shapes.recomputed {
                self.fetch(block);
                self.forward(Keep::All, true);
                self.passing([self.stream]);
                self.give([self.stream]);
            }
            self.backward();
        }
        self.embedding_backward();
    }

    /// Takes an offloaded input back, where it is the last one and nobody has fetched it, and fetches the one before it.
    fn fetch(&mut self, block: u64) {
        if block + 1 == self.shapes.offloaded {
            self.take([self.stream]);
        }
        if block > 0 && block < self.shapes.offloaded {
            self.take([self.stream]);
        }
    }

    /// The sum that a recomputed block ends with.
    fn close_recomputed(&mut self) {
        self.take([self.stream]);
        self.give([self.stream, self.stream]);
    }

    /// One block; `start` where the stream is one tensor and somebody else's.
    fn forward(&mut self, keep: Keep, start: bool) {
        let all = keep == Keep::All;
        self.take([self.stream, self.row]);
        if !start {
            // The sum of both parts of the stream; the last layer's result goes.
            self.take([self.stream]);
            self.give([self.stream]);
        }
        self.linear(QKV, self.qkv, keep);
        self.release_of(QKV, self.stream, all);
        self.take([self.mixed, self.lse]);
        if !all {
            self.give([self.qkv, self.lse]);
        }
        self.linear(OUTPUT, self.stream, keep);
        if !all {
            self.give([self.mixed]);
        }
        self.take([self.stream, self.stream, self.row]);
        self.give([self.stream]);
        if !all {
            self.give([self.row, self.row]);
        }
        let [input, output] = if self.routed > 0 { [self.routed; 2] } else { [self.stream; 2] };
        if self.routed > 0 {
            self.take([self.routed]);
            // A router that trains keeps what it read.
            if !all || !self.full() {
                self.give([self.stream]);
            }
        }
        self.linear(GATE_UP, self.gate_up, keep);
        self.release_of(GATE_UP, input, all);
        self.take([self.product]);
        if !all {
            self.give([self.gate_up]);
        }
        self.linear(DOWN, output, keep);
        self.release_of(DOWN, self.product, all);
        if self.routed > 0 {
            // The weighted sum keeps what it sums.
            self.take([self.stream]);
            if !all {
                self.give([self.routed]);
            }
        }
    }

    /// Lets the input of a projection go, unless the projection keeps it as it is; experts are never in FP8.
    fn release_of(&mut self, which: usize, input: u64, keep: bool) {
        if !keep || (self.shapes.fp8 && self.projections[which].matrices == 1) {
            self.give([input]);
        }
    }

    /// A projection of the blocks with the result `y`.
    fn linear(&mut self, which: usize, y: u64, keep: Keep) {
        let projection = self.projections[which];
        let Projection { out, input, parts, rows: m, matrices, .. } = projection;
        if self.shapes.fp8 && matrices == 1 {
            self.take([m * input, m * input, out * input, y]);
            self.give([m * input, out * input]);
            if keep == Keep::Nothing {
                self.give([m * input]);
            }
        } else {
            self.take([y]);
        }
        let Some(adapter) = self.shapes.adapter else { return };
        self.decoded(&projection, adapter);
        let (rank, dropout) = (adapter.rank_of(&projection), adapter.dropout);
        // What the adapters add, joined, and the sum.
        self.passing([y, y]);
        for size in adapter_states(m, input, rank, self.shapes.element, dropout) {
            for _ in 0..parts {
                self.take([size]);
                if keep == Keep::Nothing {
                    self.give([size]);
                }
            }
        }
    }

    /// The packed weights of experts that are decoded at a time.
    fn decoded(&mut self, projection: &Projection, adapter: AdapterShape) {
        if projection.of_experts && adapter.packed_experts != PackedExperts::No {
            let one = projection.out * projection.input;
            let n = match self.shapes.element {
                FLOAT => 1,
                element => experts_decoded(projection.matrices as usize, (one * element) as usize) as u64,
            };
            self.passing([n * one * self.shapes.element]);
        }
    }

    fn final_norm(&mut self) {
        if self.shapes.recomputed < self.n_layers {
            self.take([self.stream]);
            self.take([self.stream, self.row]);
            self.give([self.stream]);
        } else {
            self.take([self.stream, self.row]);
        }
    }

    /// Rows of a chunk, bytes of its logits and of their gradient.
    fn chunk(&self) -> (u64, u64, u64) {
        let rows = (device_chunk_rows(self.vocab as usize) as u64).min(self.shapes.tokens);
        (rows, rows * self.vocab * FLOAT, rows * self.vocab * self.shapes.element)
    }

    /// Buffers that make the head's gradients; leaves that of the stream and of the weight.
    fn head_gradients(&mut self) {
        let (rows, _, dlogits) = self.chunk();
        let table = self.vocab * self.width;
        self.take([dlogits, self.stream]);
        if self.full() {
            self.take([table * FLOAT]);
            self.passing([rows * self.width * self.shapes.element]);
            if self.shapes.element != FLOAT {
                self.take([table * self.shapes.element]);
                self.give([table * FLOAT]);
            }
        }
        self.give([dlogits]);
    }

    fn head_forward(&mut self) {
        let (_, logits, _) = self.chunk();
        self.take([logits]);
        if self.shapes.head == Head::CrossEntropy {
            self.head_gradients();
            self.give([logits, self.stream]);
        } else {
            self.give([logits]);
        }
    }

    fn head_backward(&mut self) {
        if self.shapes.head == Head::Logprobs {
            let (_, logits, _) = self.chunk();
            self.take([logits]);
            self.head_gradients();
            self.give([logits, self.stream]);
        }
        if self.full() {
            let table = self.vocab * self.width;
            // The first gradient becomes the sum.
            self.gradient(table);
            self.give([table * self.shapes.element]);
        }
    }

    /// The gradient of a normalisation takes the place of the one that came, and what was saved goes.
    fn norm_backward(&mut self) {
        self.take([self.stream]);
        self.passing([self.shapes.tokens.min(NORM_STRIPS) * self.width * FLOAT]);
        self.give([self.stream, self.stream, self.row]);
        if self.full() {
            self.gradient(self.width);
        }
    }

    /// One block, from the gradient of its result to that of its input.
    fn backward(&mut self) {
        if self.routed > 0 {
            self.take([self.routed]);
            self.give([self.routed]);
        }
        self.linear_backward(DOWN, self.product, true);
        self.take([self.gate_up]);
        self.give([self.gate_up, self.product]);
        if self.routed > 0 {
            self.give([self.routed]);
            self.linear_backward(GATE_UP, self.routed, true);
            self.take([self.stream]);
            self.give([self.routed]);
            if self.full() {
                self.give([self.stream]);
            }
        } else {
            self.linear_backward(GATE_UP, self.stream, true);
        }
        self.give([self.gate_up]);
        if self.full() {
            self.gradient(self.beside);
        }
        // The gradient that came is the carry.
        self.norm_backward();
        self.give([self.stream]);
        self.linear_backward(OUTPUT, self.mixed, false);
        self.take([self.qkv, self.lse]);
        self.give([self.lse, self.lse, self.qkv, self.mixed, self.mixed]);
        self.linear_backward(QKV, self.stream, true);
        self.give([self.qkv]);
        self.norm_backward();
        self.give([self.stream]);
    }

    /// Gradients of a projection; `own` where the saved input is nobody else's.
    fn linear_backward(&mut self, which: usize, dx: u64, own: bool) {
        let projection = self.projections[which];
        let Projection { out, input, parts, rows: m, matrices, .. } = projection;
        if let Some(adapter) = self.shapes.adapter {
            self.decoded(&projection, adapter);
            let (rank, dropout) = (adapter.rank_of(&projection), adapter.dropout);
            self.passing([m * out * self.shapes.element, dx]);
            for size in adapter_states(m, input, rank, self.shapes.element, dropout) {
                (0..parts).for_each(|_| self.give([size]));
            }
            self.gradient(rank * input * parts * matrices);
            self.gradient(rank * out * matrices);
        }
        if self.shapes.fp8 && matrices == 1 {
            self.take([m * out, m * out, out * input, dx]);
            self.give([out * input]);
            if self.full() {
                self.gradient(out * input);
            }
            self.give([m * input, m * out, m * out]);
            return;
        }
        if self.full() {
            self.gradient(out * input * matrices);
        }
        if own {
            self.give([m * input * self.shapes.element]);
        }
        self.take([dx]);
    }

    fn embedding_backward(&mut self) {
        if self.full() {
            if !self.tied {
                self.gradient(self.vocab * self.width);
            }
            self.passing([3 * self.vocab * FLOAT]);
        }
        self.give([self.stream]);
    }
}

/// What one adapter keeps: the low-rank rows and, with dropout, the mask and the masked input.
fn adapter_states(m: u64, input: u64, rank: u64, element: u64, dropout: bool) -> Vec<u64> {
    let mut sizes = vec![m * rank * element];
    if dropout {
        sizes.extend([m * input * element; 2]);
    }
    sizes
}
