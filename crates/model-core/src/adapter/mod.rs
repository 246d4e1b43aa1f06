//! Low-rank adapters: attaching, counting, saving, loading and merging them.
//!
//! An adapter is a slot in [`Linear`] and in [`ExpertLinear`], so an adapted model is the same [`Decoder`]; while one is
//! attached, only its own parameters train.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use kernels_cubecl::{Leaf, LmBackend};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::layers::{ExpertLinear, ExpertLora, Linear, Lora};
use crate::random::Stream;

mod folder;
mod liveness;
mod merge;
mod peft;
mod peft_tensor;
mod repack;
mod weights_hash;

pub use folder::{
    Heldout, MERGE_FILE, MergeInput, MergeLineage, MergeLosses, MergeSettings, MergedModel, adapter_hash, hash_file,
    loss_sum,
};
pub use liveness::{GradientNorms, check_liveness};
pub use merge::{MergeBounds, MergeReport, merge_check};
pub use peft::PeftAdapter;
pub use peft_tensor::PeftTensor;
pub use repack::Repacked;
pub use weights_hash::weights_hash;

/// Target that stands for every projection of the blocks, those of experts included. In a file of peft it stands for the
/// others alone.
pub const ALL_LINEAR: &str = "all-linear";

/// What an adapter looks like.
///
/// # Source
/// LoRA: Hu et al. 2021; rank-stabilised scale: Kalajdzievski 2023.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Probability that an input element is dropped in training.
    pub dropout: f32,
    /// Whether the scale is `alpha / √r` instead of `alpha / r`.
    pub rslora: bool,
    /// Projections by name or by the end of their full name; [`ALL_LINEAR`] stands for all.
    pub targets: Vec<String>,
    /// Other ranks of some projections, by name as in `targets`; the scale of each follows its own rank.
    pub rank_pattern: BTreeMap<String, usize>,
}

impl LoraConfig {
    /// Factor on an update of rank `r`.
    pub fn scale(&self, r: usize) -> f32 {
        let r = r as f64;
        (f64::from(self.alpha) / if self.rslora { r.sqrt() } else { r }) as f32
    }

    /// Checks the numbers; the targets are checked against a model.
    ///
    /// # Errors
    /// When a rank is 0, `alpha` is not finite and positive, or `dropout` is not in [0, 1).
    pub fn check(&self) -> Result<(), ModelError> {
        let invalid =
            |key, expected: &str, got: String| Err(ModelError::LoraInvalid { key, expected: expected.to_owned(), got });
        if self.r == 0 {
            return invalid("r", "a rank of at least 1", "0".to_owned());
        }
        if let Some((name, _)) = self.rank_pattern.iter().find(|(_, r)| **r == 0) {
            return invalid("rank_pattern", "ranks of at least 1", format!("0 for {name}"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return invalid("alpha", "a finite number above 0", self.alpha.to_string());
        }
        if !(self.dropout >= 0.0 && self.dropout < 1.0) {
            return invalid("dropout", "a probability of at least 0 and below 1", self.dropout.to_string());
        }
        if self.targets.is_empty() {
            return invalid("targets", "at least one projection", "an empty list".to_owned());
        }
        Ok(())
    }

    /// How many parameters this adapter trains on a model, without building either.
    ///
    /// # Errors
    /// As [`Self::check`], or when a target matches nothing.
    pub fn n_params(&self, model: &ModelConfig) -> Result<u64, ModelError> {
        self.check()?;
        let projections = projections(model);
        let names: Vec<String> = projections.iter().map(|p| p.name.clone()).collect();
        let chosen = self.choose(&names)?;
        let ranks = self.ranks(&chosen, &names)?;
        let sides = |p: &Projection| p.n_matrices * (p.rows + p.columns);
        Ok(std::iter::zip(chosen, ranks).map(|(at, r)| (sides(&projections[at]) * r) as u64).sum())
    }

    /// The largest rank on this model of a projection outside experts, and of one of experts; 0 where there is none.
    ///
    /// # Errors
    /// As [`Self::n_params`].
    pub fn largest_ranks(&self, model: &ModelConfig) -> Result<[usize; 2], ModelError> {
        self.check()?;
        let names: Vec<String> = projections(model).into_iter().map(|p| p.name).collect();
        let chosen = self.choose(&names)?;
        let mut largest = [0; 2];
        for (at, r) in std::iter::zip(&chosen, self.ranks(&chosen, &names)?) {
            let of = &mut largest[usize::from(is_expert(&names[*at]))];
            *of = r.max(*of);
        }
        Ok(largest)
    }

    /// The same with the rank of experts divided by their number, rounded down, and at least 1: all experts of a block
    /// together then train about as much as one dense projection.
    ///
    /// # Errors
    /// [`ModelError::LoraInvalid`] for a model without experts, targets without them, or ranks of theirs that are given too.
    pub fn divided_by_experts(mut self, model: &ModelConfig) -> Result<Self, ModelError> {
        let invalid = |expected: &str, got: String| {
            Err(ModelError::LoraInvalid { key: "divide_by_experts", expected: expected.to_owned(), got })
        };
        let Some(experts) = model.experts() else {
            return invalid("false, since the model has no experts", "true".to_owned());
        };
        let names: Vec<String> = projections(model).into_iter().map(|p| p.name).collect();
        let chosen = self.choose(&names)?;
        let of_experts: Vec<String> = chosen.into_iter().map(|at| names[at].clone()).filter(|n| is_expert(n)).collect();
        if of_experts.is_empty() {
            return invalid("a target among the experts", self.targets.join(", "));
        }
        if let Some(key) = self.rank_pattern.keys().find(|key| of_experts.iter().any(|name| names_one(key, name))) {
            return invalid("no rank_pattern for experts beside it", key.clone());
        }
        let r = (self.r / experts.n).max(1);
        self.rank_pattern.extend(short_names(&of_experts).into_iter().map(|name| (name, r)));
        Ok(self)
    }

    /// The ranks of the chosen projections, in their order.
    ///
    /// # Errors
    /// When a name in the pattern means no chosen projection, or two names mean the same one.
    fn ranks(&self, chosen: &[usize], names: &[String]) -> Result<Vec<usize>, ModelError> {
        let invalid = |expected: &str, got: String| {
            Err(ModelError::LoraInvalid { key: "rank_pattern", expected: expected.to_owned(), got })
        };
        if let Some(key) = self.rank_pattern.keys().find(|key| !chosen.iter().any(|&at| names_one(key, &names[at]))) {
            return invalid("names of projections that the targets mean", key.clone());
        }
        let mut ranks = Vec::with_capacity(chosen.len());
        for &at in chosen {
            let mut meant = self.rank_pattern.iter().filter(|(key, _)| names_one(key, &names[at]));
            ranks.push(meant.next().map_or(self.r, |(_, r)| *r));
            if meant.next().is_some() {
                return invalid("one rank for each projection", format!("two for {}", names[at]));
            }
        }
        Ok(ranks)
    }

    /// Checks what peft does not have: dropout before the matrices of experts.
    fn check_experts(&self, chosen: &[usize], names: &[String]) -> Result<(), ModelError> {
        match chosen.iter().find(|&&at| is_expert(&names[at])) {
            Some(&at) if self.dropout > 0.0 => Err(ModelError::LoraInvalid {
                key: "dropout",
                expected: format!("0, since {} is of experts", names[at]),
                got: self.dropout.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// The places in `names` that the targets mean; every target means at least one.
    fn choose(&self, names: &[String]) -> Result<Vec<usize>, ModelError> {
        for target in &self.targets {
            if !names.iter().any(|name| matches(target, name)) {
                return Err(ModelError::LoraTarget {
                    target: target.clone(),
                    available: short_names(names).join(", "),
                });
            }
        }
        Ok((0..names.len()).filter(|&at| self.targets.iter().any(|target| matches(target, &names[at]))).collect())
    }

    /// The targets as short names, in the order of the model: what `all-linear` stands for here.
    fn expanded_targets(&self, names: &[String]) -> Vec<String> {
        if self.targets.iter().any(|target| target == ALL_LINEAR) {
            return short_names(names);
        }
        let mut targets = self.targets.clone();
        targets.sort_unstable();
        targets.dedup();
        targets
    }
}

/// A target means a projection by its whole name or by what follows a dot in it.
fn matches(target: &str, name: &str) -> bool {
    target == ALL_LINEAR || names_one(target, name)
}

/// The same without the name that stands for all.
fn names_one(target: &str, name: &str) -> bool {
    name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a projection is one of experts; peft calls those parameters instead of modules.
fn is_expert(name: &str) -> bool {
    name.contains(".experts.")
}

/// The last parts of the names, each once, in order; of experts as many as tell what they are.
fn short_names(names: &[String]) -> Vec<String> {
    let mut short: Vec<String> = Vec::new();
    for name in names {
        let n_parts = if is_expert(name) { 3 } else { 1 };
        let last = name.rsplitn(n_parts + 1, '.').take(n_parts).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join(".");
        if !short.contains(&last) {
            short.push(last);
        }
    }
    short
}

/// A projection that can carry an adapter.
struct Projection {
    name: String,
    /// One, or the number of experts.
    n_matrices: usize,
    rows: usize,
    columns: usize,
}

/// Every projection of the blocks, read off the shapes of the weight tensors; a router is none.
fn projections(config: &ModelConfig) -> Vec<Projection> {
    let mut out = Vec::new();
    for map in crate::hf::leaf_map(config).into_iter().filter(|map| map.leaf.starts_with("model.layers.")) {
        if let Some(n) = map.n_experts {
            out.push(Projection { name: map.leaf, n_matrices: n, rows: map.dims[0] / n, columns: map.dims[1] });
            continue;
        }
        for part in map.parts {
            let name = part.name.strip_suffix(".weight").filter(|name| !name.ends_with(".router"));
            if let (Some(name), &[rows, columns]) = (name, &part.shape[..]) {
                out.push(Projection { name: name.to_owned(), n_matrices: 1, rows, columns });
            }
        }
    }
    out
}

/// An attached adapter, whatever carries it.
struct Attached {
    name: String,
    r: usize,
    scale: f32,
}

impl<B: LmBackend> Decoder<B> {
    /// Attaches a fresh adapter: A uniform in ±1/√in from `seed`, B zero, so that the model answers as before.
    ///
    /// # Errors
    /// When the settings are out of range, a target matches nothing, or an adapter is attached already; the model is then
    /// unchanged.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<(), ModelError> {
        config.check()?;
        self.refuse_adapter("attach")?;
        let names = self.projection_names();
        let chosen = config.choose(&names)?;
        config.check_experts(&chosen, &names)?;
        let ranks: BTreeMap<usize, usize> =
            std::iter::zip(chosen.iter().copied(), config.ranks(&chosen, &names)?).collect();
        let device = self.embedding.device();
        let mut place = 0;
        for (prefix, linear) in self.linears_mut() {
            let [_, columns] = linear.weight.dims();
            let Linear { segments, adapters, .. } = linear;
            for (segment, slot) in std::iter::zip(segments, adapters) {
                if let Some(&r) = ranks.get(&place) {
                    let stream = Stream::new(seed, &format!("{prefix}.{}.lora_A.weight", segment.name));
                    let a = stream.uniforms(r * columns, 1.0 / (columns as f32).sqrt());
                    let a = Leaf::from_data(TensorData::new(a, [r, columns]), &device).matrix();
                    let b = Tensor::zeros([segment.rows, r], &device);
                    let (scale, dropout) = (config.scale(r), config.dropout);
                    *slot = Some(Lora { a, b, scale, dropout, dropout_stream: None });
                }
                place += 1;
            }
        }
        for (prefix, moe) in self.mixtures_mut() {
            let n = moe.experts.n;
            for layer in [&mut moe.gate_up, &mut moe.down] {
                if let Some(&r) = ranks.get(&place) {
                    let stream = Stream::new(seed, &format!("{prefix}.{}.lora_A.weight", layer.name));
                    layer.adapter = Some(fresh_experts(layer, config.scale(r), [n, r], stream, &device));
                }
                place += 1;
            }
        }
        Ok(())
    }

    /// Takes the adapter off without merging it.
    pub fn detach_lora(&mut self) {
        for (_, linear) in self.linears_mut() {
            linear.adapters.fill(None);
        }
        for (_, moe) in self.mixtures_mut() {
            (moe.gate_up.adapter, moe.down.adapter) = (None, None);
        }
    }

    /// How many parameters the attached adapter has; they are all that trains.
    pub fn n_adapter_params(&self) -> u64 {
        let sizes =
            self.leaves().into_iter().filter(|leaf| leaf.is_adapter()).map(|leaf| leaf.leaf.n_elements() as u64);
        sizes.sum()
    }

    /// Switches the adapter's dropout on for one step, or off with `None`.
    ///
    /// The dropped elements are a function of the seed and the projection, so a step that runs again drops the same ones.
    pub fn set_dropout_seed(&mut self, seed: Option<u64>) {
        for (prefix, linear) in self.linears_mut() {
            for (segment, slot) in std::iter::zip(&linear.segments, &mut linear.adapters) {
                if let Some(lora) = slot {
                    lora.dropout_stream =
                        seed.map(|seed| Stream::new(seed, &format!("{prefix}.{}.dropout", segment.name)));
                }
            }
        }
    }

    /// Full names of all projections: those of [`Decoder::linears`] by segment, then those of [`Decoder::mixtures`].
    fn projection_names(&self) -> Vec<String> {
        let of_linear = |(prefix, linear): (String, &Linear<B>)| {
            linear.segments.iter().map(|segment| format!("{prefix}.{}", segment.name)).collect::<Vec<_>>()
        };
        let mut names: Vec<String> = self.linears().into_iter().flat_map(of_linear).collect();
        for (prefix, moe) in self.mixtures() {
            names.extend([&moe.gate_up, &moe.down].map(|layer| format!("{prefix}.{}", layer.name)));
        }
        names
    }

    /// The attached adapters in the order of [`Decoder::projection_names`].
    fn loras(&self) -> Vec<Attached> {
        let mut out = Vec::new();
        for (prefix, linear) in self.linears() {
            for (segment, slot) in std::iter::zip(&linear.segments, &linear.adapters) {
                let attached = |lora: &Lora<B>| Attached {
                    name: format!("{prefix}.{}", segment.name),
                    r: lora.a.dims()[0],
                    scale: lora.scale,
                };
                out.extend(slot.as_ref().map(attached));
            }
        }
        for (prefix, moe) in self.mixtures() {
            for layer in [&moe.gate_up, &moe.down] {
                let attached = |lora: &ExpertLora<B>| Attached {
                    name: format!("{prefix}.{}", layer.name),
                    r: lora.a.dims()[0] / moe.experts.n,
                    scale: lora.scale,
                };
                out.extend(layer.adapter.as_ref().map(attached));
            }
        }
        out
    }

    fn refuse_adapter(&self, key: &'static str) -> Result<(), ModelError> {
        let n_adapters = self.loras().len();
        if n_adapters == 0 {
            return Ok(());
        }
        let (expected, got) = ("a model without an adapter".to_owned(), format!("one with {n_adapters} of them"));
        Err(ModelError::LoraInvalid { key, expected, got })
    }
}

/// A fresh adapter of `n` experts and rank `r`, drawn as peft draws it: all of A as one matrix.
fn fresh_experts<B: LmBackend>(
    layer: &ExpertLinear<B>,
    scale: f32,
    [n, r]: [usize; 2],
    stream: Stream,
    device: &B::Device,
) -> ExpertLora<B> {
    let [rows, columns] = layer.dims();
    let a = stream.uniforms(n * r * columns, 1.0 / (columns as f32).sqrt());
    let a = Leaf::from_data(TensorData::new(a, [n * r, columns]), device).matrix();
    ExpertLora { a, b: Tensor::zeros([rows, r], device), scale }
}

#[cfg(test)]
mod tests;
