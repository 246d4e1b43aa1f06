//! Low-rank adapters: attaching, counting, saving, loading and merging them.
//!
//! An adapter is a slot in [`Linear`], so an adapted model is the same [`Decoder`]; while one is attached, only its own
//! parameters train.

use burn::tensor::{Tensor, TensorData};
use kernels_cubecl::LmBackend;

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::layers::{Linear, Lora};
use crate::random::Stream;

mod liveness;
mod merge;
mod peft;
mod weights_hash;

pub use liveness::{GradientNorms, check_liveness};
pub use merge::{MergeBounds, MergeReport, merge_check};
pub use peft::{PeftAdapter, peft_name};
pub use weights_hash::weights_hash;

/// Target that stands for every projection of the blocks.
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
}

impl LoraConfig {
    /// Factor on the update.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (f64::from(self.alpha) / if self.rslora { r.sqrt() } else { r }) as f32
    }

    /// Checks the numbers; the targets are checked against a model.
    ///
    /// # Errors
    /// When the rank is 0, `alpha` is not finite and positive, or `dropout` is not in [0, 1).
    pub fn check(&self) -> Result<(), ModelError> {
        let invalid =
            |key, expected: &str, got: String| Err(ModelError::LoraInvalid { key, expected: expected.to_owned(), got });
        if self.r == 0 {
            return invalid("r", "a rank of at least 1", "0".to_owned());
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
        let per_rank: u64 = chosen.iter().map(|&at| (projections[at].rows + projections[at].columns) as u64).sum();
        Ok(per_rank * self.r as u64)
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
    target == ALL_LINEAR || name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The last parts of the names, each once, in order.
fn short_names(names: &[String]) -> Vec<String> {
    let mut short: Vec<String> = Vec::new();
    for name in names {
        let last = name.rsplit('.').next().unwrap_or(name).to_owned();
        if !short.contains(&last) {
            short.push(last);
        }
    }
    short
}

/// A projection that can carry an adapter.
struct Projection {
    name: String,
    rows: usize,
    columns: usize,
}

/// Every projection of the blocks, read off the shapes of the weight tensors.
fn projections(config: &ModelConfig) -> Vec<Projection> {
    let in_block = |(name, shape): (String, Vec<usize>)| match (name.strip_suffix(".weight"), &shape[..]) {
        (Some(name), &[rows, columns]) if name.starts_with("model.layers.") => {
            Some(Projection { name: name.to_owned(), rows, columns })
        }
        _ => None,
    };
    crate::hf::hf_shapes(config).into_iter().filter_map(in_block).collect()
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
        let device = self.embedding.device();
        let mut place = 0;
        for (prefix, linear) in self.linears_mut() {
            let [_, columns] = linear.weight.dims();
            let Linear { segments, adapters, .. } = linear;
            for (segment, slot) in std::iter::zip(segments, adapters) {
                if chosen.binary_search(&place).is_ok() {
                    let stream = Stream::new(seed, &format!("{prefix}.{}.lora_A.weight", segment.name));
                    let a = stream.uniforms(config.r * columns, 1.0 / (columns as f32).sqrt());
                    let a = Tensor::from_data(TensorData::new(a, [config.r, columns]), &device);
                    let b = Tensor::zeros([segment.rows, config.r], &device);
                    *slot = Some(Lora { a, b, scale: config.scale(), dropout: config.dropout, dropout_stream: None });
                }
                place += 1;
            }
        }
        Ok(())
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

    /// Full names of all projections, in the order of [`Decoder::linears`] and their segments.
    fn projection_names(&self) -> Vec<String> {
        let of_linear = |(prefix, linear): (String, &Linear<B>)| {
            linear.segments.iter().map(|segment| format!("{prefix}.{}", segment.name)).collect::<Vec<_>>()
        };
        self.linears().into_iter().flat_map(of_linear).collect()
    }

    /// The attached adapters by full name of their projection.
    fn loras(&self) -> Vec<(String, &Lora<B>)> {
        let mut out = Vec::new();
        for (prefix, linear) in self.linears() {
            for (segment, slot) in std::iter::zip(&linear.segments, &linear.adapters) {
                out.extend(slot.as_ref().map(|lora| (format!("{prefix}.{}", segment.name), lora)));
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

#[cfg(test)]
mod tests;
