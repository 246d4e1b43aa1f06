//! A low-rank adapter as a stage trains it: its keys, the adapted model, and what comes out, adapter and merged model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_pipeline::TokenRow;
use kernels_cubecl::{LmBackend, Precision};
use model_core::adapter::{MergeBounds, merge_check, weights_hash};
use model_core::hf::{PackedExperts, SaveOptions};
use model_core::{Decoder, LoraConfig};
use serde::{Deserialize, Serialize};

use crate::checkpoint::ModelFiles;
use crate::config::{Arithmetic, is_default, require};
use crate::memory::AdapterWorkload;
use crate::run::publish_folder;
use crate::{MicroBatch, TrainError};

/// Folder of a stage with its adapter.
pub const ADAPTER: &str = "adapter";
/// Folder of a stage with its merged model.
pub const MERGED: &str = "merged";
/// Rows that adapter and merged model are compared on.
const MERGE_ROWS: usize = 8;
/// A shard of the merged model is at most this large.
pub const MAX_SHARD_BYTES: u64 = 4 << 30;

/// The adapter's own keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterKeys {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub alpha: f32,
    /// Dropout on the adapter's input.
    pub dropout: f32,
    /// Whether the scale divides by the root of the rank instead of the rank.
    pub rslora: bool,
    /// Projections, or `all-linear`.
    pub targets: Vec<String>,
    /// Other ranks of some projections, by name; the scale of each divides by its own rank.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Whether the rank of experts is `r` divided by their number, and at least 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub divide_by_experts: bool,
}

impl AdapterKeys {
    /// The adapter, whose settings follow from the model.
    pub fn workload(&self, packed_experts: PackedExperts) -> AdapterWorkload {
        let Self { r, alpha, dropout, rslora, targets, rank_pattern, divide_by_experts } = self.clone();
        let lora = LoraConfig { r, alpha, dropout, rslora, targets, rank_pattern };
        AdapterWorkload { lora, divide_by_experts, packed_experts }
    }
}

/// Checks a stage's key `merge_max_diff`.
///
/// # Errors
/// When it is no finite number above 0.
pub fn check_merge_bound(bound: f64) -> Result<(), TrainError> {
    require(bound > 0.0 && bound.is_finite(), || {
        format!("key `merge_max_diff`: expected a finite number above 0, got {bound}")
    })
}

/// Bounds of a merge in this arithmetic; `max_diff` is the largest logit difference in f32, bf16 has its own bounds.
pub fn merge_bounds(arithmetic: Arithmetic, max_diff: f64) -> MergeBounds {
    match arithmetic.precision() {
        Precision::F32 => MergeBounds { max_abs_logit: max_diff, ..MergeBounds::F32 },
        Precision::Bf16 => MergeBounds::BF16,
    }
}

/// A model with a fresh adapter, and the base that it was attached to.
pub struct Adapted<B: LmBackend> {
    base: Decoder<B>,
    model: Decoder<B>,
    lora: LoraConfig,
    base_hash: String,
}

/// Where a run's adapter and merged model go, and what they are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    /// Name of the stage, for what is printed.
    pub stage: &'a str,
    /// Folder of the stage.
    pub dir: &'a Path,
    /// Folder of the base model.
    pub model_dir: &'a Path,
    /// Arithmetic of the run.
    pub arithmetic: Arithmetic,
    /// Largest logit difference between adapter and merged model, in f32.
    pub merge_max_diff: f64,
    /// Held-out rows; the first ones are compared.
    pub heldout: &'a [TokenRow],
}

impl<B: LmBackend> Adapted<B> {
    /// Attaches the adapter to the model of a folder, which is loaded already, and says how many parameters train.
    ///
    /// # Errors
    /// Settings that do not fit the model, or another number of parameters than its shapes say.
    pub fn attach(
        stage: &str,
        base: Decoder<B>,
        model_dir: &Path,
        workload: &AdapterWorkload,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let lora = workload.lora_for(&base.config)?;
        let mut model = base.clone();
        model.attach_lora(&lora, seed)?;
        let (planned, attached) = (lora.n_params(&base.config)?, model.n_adapter_params());
        require(planned == attached, || {
            format!("key `adapter`: expected {planned} parameters by the model's shapes, {attached} were attached")
        })?;
        println!("{stage}: {attached} parameters train, every matrix of them is watched in the first updates");
        Ok(Self { base, model, lora, base_hash: weights_hash(model_dir)? })
    }

    /// The adapted model; it shares the base's tensors.
    pub fn model(&self) -> Decoder<B> {
        self.model.clone()
    }

    /// What of it the checkpoints hold.
    pub fn files(&self) -> ModelFiles {
        ModelFiles::Adapter { config: self.lora.clone(), base_hash: self.base_hash.clone() }
    }

    /// Publishes the adapter of a checkpoint and, after the proof that both compute the same, the merged model, whose folder is
    /// returned.
    ///
    /// # Errors
    /// An adapter of another base or of other settings, a merge that is out of bounds, a folder that cannot be written.
    pub fn publish(&self, to: Publish<'_>, checkpoint: &Path) -> Result<PathBuf, TrainError> {
        outputs(&self.lora, self.base.clone(), &self.base_hash, to, checkpoint)
    }
}

/// Publishes the adapter and, after the proof that both compute the same, the merged model.
fn outputs<B: LmBackend>(
    lora: &LoraConfig,
    mut adapted: Decoder<B>,
    base_hash: &str,
    to: Publish<'_>,
    checkpoint: &Path,
) -> Result<PathBuf, TrainError> {
    adapted.load_peft(checkpoint, base_hash)?;
    publish_folder(&to.dir.join(ADAPTER), to.model_dir, |dir| {
        adapted.save_peft(dir, lora, base_hash).map(drop).map_err(TrainError::from)
    })?;
    let mut merged = adapted.clone();
    merged.merge()?;
    let sample: Vec<&TokenRow> = to.heldout.iter().take(MERGE_ROWS).collect();
    let rows = MicroBatch::new(&sample)?.rows;
    let report = merge_check(&adapted, &merged, &[rows], &merge_bounds(to.arithmetic, to.merge_max_diff))?;
    println!(
        "{}: merged equals adapter on {} held-out tokens: largest logit difference {:.2e}, mean KL {:.2e}, same top token {:.4}",
        to.stage, report.n_tokens, report.max_abs_logit, report.mean_kl, report.top1_agreement
    );
    let folder = to.dir.join(MERGED);
    // The type that the weights have, so that nothing is lost and nothing is written twice as wide as it is.
    let float = to.arithmetic.float_type();
    let options = SaveOptions { max_shard_bytes: MAX_SHARD_BYTES, float, packed_experts: false };
    publish_folder(&folder, to.model_dir, |dir| merged.save_with(dir, options).map(drop).map_err(TrainError::from))?;
    Ok(folder)
}

#[cfg(test)]
mod tests;
