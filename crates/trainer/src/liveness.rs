//! The proof that an adapter trains: over the first two updates every matrix of it gets a gradient and moves.
//!
//! B begins at zero, so A gets no gradient in the first update of any healthy adapter: B is looked at in every watched
//! update, A wherever its B is no longer zero. Of experts each one is looked at that a labelled token went through; what an
//! expert did to other tokens need not reach the loss. An adapter that is attached by name and does nothing ends the run.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Leaf, LmBackend};
use model_core::{Decoder, ModelError, NamedLeaf, Replay};

use crate::batch::MicroBatch;
use crate::config::Arithmetic;
use crate::optim::{GradientSum, Optimizer};
use crate::state::TrainState;
use crate::train::Parts;
use crate::{TrainConfig, TrainError};

/// Updates that are watched: the second is the first in which A has a gradient.
const WATCHED_UPDATES: u64 = 2;
/// Labelled tokens of an expert from which on it must have a gradient. With FP8 a token near the margin of two experts can go
/// another way in the pass that counts.
const LEAST_TOKENS: u64 = 1;
const LEAST_TOKENS_FP8: u64 = 16;
/// How many names an error lists.
const N_NAMES: usize = 6;

/// An update that is watched: what the adapter was before it, and its gradients.
#[derive(Debug)]
pub(crate) struct Watch {
    matrices: Vec<Watched>,
}

/// One leaf of the adapter; of experts it has a matrix for each.
#[derive(Debug)]
struct Watched {
    /// Place among the model's leaves.
    leaf: usize,
    name: String,
    /// By matrix: whether it must get a gradient in this update.
    expected: Vec<bool>,
    /// By matrix: hash of the values before.
    before: Vec<blake3::Hash>,
    /// Hash of what the leaf's exact values have beyond their bf16 ones.
    remainder: Option<blake3::Hash>,
    /// By matrix: the gradient's sum of squares.
    gradients: Vec<f64>,
}

impl Watch {
    /// Looks at the adapter before an update; `None` where there is none, or the watched updates are over.
    pub(crate) fn begin<B: LmBackend>(
        parts: &Parts<B>,
        batches: &[MicroBatch],
        state: &TrainState,
        config: &TrainConfig,
    ) -> Option<Self> {
        if state.updates >= WATCHED_UPDATES || !parts.model.has_adapter() {
            return None;
        }
        let leaves = parts.model.leaves();
        let tokens = labelled_tokens(parts, batches, config, &leaves);
        let least = if config.precision == Arithmetic::Fp8 { LEAST_TOKENS_FP8 } else { LEAST_TOKENS };
        let watched = |(at, named): (usize, &NamedLeaf<B>)| {
            let prefix = tokens.keys().find(|prefix| named.name.starts_with(prefix.as_str()));
            let enough = prefix.map_or(vec![true], |prefix| tokens[prefix].iter().map(|n| *n >= least).collect());
            let n = enough.len();
            let before = by_matrix(&data(&named.leaf), n).map(blake3::hash).collect();
            Watched {
                leaf: at,
                name: named.name.clone(),
                expected: enough,
                before,
                remainder: parts.optimizer.remainder(at).map(|data| blake3::hash(data.as_bytes())),
                gradients: vec![0.0; n],
            }
        };
        let mut matrices: Vec<Watched> =
            leaves.iter().enumerate().filter(|(_, named)| named.is_adapter()).map(watched).collect();
        // The values of B say whether A can have a gradient; A stands before its B.
        for pair in matrices.chunks_mut(2) {
            let [a, b] = pair else { unreachable!("an adapter has two leaves for each projection") };
            let moved = data(&leaves[b.leaf].leaf);
            let moved = by_matrix(&moved, b.before.len()).map(|bytes| bytes.iter().any(|byte| *byte != 0));
            a.expected.iter_mut().zip(moved).for_each(|(expected, moved)| *expected &= moved);
        }
        Some(Self { matrices })
    }

    /// Notes the gradients of the update.
    pub(crate) fn gradients<B: LmBackend>(mut self, gradients: &GradientSum<B>) -> Self {
        for watched in &mut self.matrices {
            let Some(gradient) = gradients.leaf(watched.leaf) else { continue };
            let values = gradient.clone().into_data().convert::<f32>().into_vec::<f32>().expect("converted to f32");
            let n = watched.gradients.len();
            for (sum, part) in watched.gradients.iter_mut().zip(values.chunks((values.len() / n).max(1))) {
                *sum = part.iter().map(|g| f64::from(*g).powi(2)).sum();
            }
        }
        self
    }

    /// Looks at the adapter after the update.
    ///
    /// # Errors
    /// [`ModelError::AdapterInert`] names what got no gradient or did not move.
    pub(crate) fn check<B: LmBackend>(self, model: &Decoder<B>, optimizer: &Optimizer<B>) -> Result<(), TrainError> {
        let leaves = model.leaves();
        let (mut without_gradient, mut still) = (Vec::new(), Vec::new());
        for watched in &self.matrices {
            let n = watched.expected.len();
            let after = data(&leaves[watched.leaf].leaf);
            let same: Vec<bool> =
                by_matrix(&after, n).zip(&watched.before).map(|(now, before)| blake3::hash(now) == *before).collect();
            let remainder = optimizer.remainder(watched.leaf).map(|data| blake3::hash(data.as_bytes()));
            let asleep = same.iter().all(|same| *same) && remainder == watched.remainder;
            let is_b = watched.name.ends_with(".lora_B.weight");
            for matrix in (0..n).filter(|&matrix| watched.expected[matrix]) {
                let gradient = watched.gradients[matrix];
                if !(gradient.is_finite() && gradient > 0.0) {
                    without_gradient.push(watched.name_of(matrix));
                } else if asleep || (is_b && same[matrix]) {
                    still.push(watched.name_of(matrix));
                }
            }
        }
        report("expected every adapter matrix to get a finite gradient that is not zero", &without_gradient)?;
        report("expected every adapter matrix with a gradient to change", &still)
    }
}

impl Watched {
    fn name_of(&self, matrix: usize) -> String {
        if self.expected.len() == 1 { self.name.clone() } else { format!("{} (expert {matrix})", self.name) }
    }
}

/// By the name of each mixture with adapters: how many labelled tokens each expert gets, in a pass without a gradient.
fn labelled_tokens<B: LmBackend>(
    parts: &Parts<B>,
    batches: &[MicroBatch],
    config: &TrainConfig,
    leaves: &[NamedLeaf<B>],
) -> BTreeMap<String, Vec<u64>> {
    let mixtures: Vec<(String, usize)> =
        parts.model.mixtures().into_iter().map(|(name, moe)| (format!("{name}."), moe.experts.n)).collect();
    let adapted = |(name, _): &(String, usize)| {
        leaves.iter().any(|leaf| leaf.is_adapter() && leaf.name.starts_with(name.as_str()))
    };
    if !mixtures.iter().any(adapted) {
        return BTreeMap::new();
    }
    let mut frame = parts.model.clone();
    frame.set_fp8(config.precision.fp8());
    frame.set_histories(&parts.scaling.histories);
    let mut counts: Vec<Vec<u64>> = mixtures.iter().map(|(_, n)| vec![0; *n]).collect();
    for batch in batches {
        let (_, weights) = batch.targets();
        let input = batch.rows.to_input::<B>(&frame.config, &parts.device);
        let (_, routed) = frame.hidden_routed(&input, &Replay::default());
        for (counts, routing) in counts.iter_mut().zip(routed) {
            let [_, top_k] = routing.experts.dims();
            let experts = routing.experts.into_data().convert::<i32>().into_vec::<i32>().expect("converted to i32");
            for (token, _) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                experts[token * top_k..(token + 1) * top_k].iter().for_each(|&e| counts[e as usize] += 1);
            }
        }
    }
    mixtures.into_iter().zip(counts).map(|((name, _), counts)| (name, counts)).collect()
}

fn data<B: Backend>(leaf: &Leaf<B>) -> TensorData {
    leaf.clone().into_data()
}

/// The bytes of each of `n` matrices that follow each other.
fn by_matrix(data: &TensorData, n: usize) -> impl Iterator<Item = &[u8]> {
    let bytes = data.as_bytes();
    bytes.chunks((bytes.len() / n).max(1))
}

fn report(expected: &'static str, names: &[String]) -> Result<(), TrainError> {
    if names.is_empty() {
        return Ok(());
    }
    let shown = names[..names.len().min(N_NAMES)].join(", ");
    Err(ModelError::AdapterInert { expected, n_leaves: names.len(), names: shown }.into())
}
