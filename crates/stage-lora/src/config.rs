//! Keys of the adapter stage.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model_core::LoraConfig;
use model_core::hf::PackedExperts;
use serde::{Deserialize, Serialize};
use trainer::config::{is_default, require};
use trainer::lineage::EntryGate;
use trainer::memory::AdapterWorkload;
use trainer::objective::RouterWeights;
use trainer::render::ChatKeys;
use trainer::{TrainConfig, TrainError};

/// Configuration of an adapter run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraStageConfig {
    /// Folder of the stage: `runs/<run>/lora`.
    pub dir: PathBuf,
    /// Model folder to start from.
    pub model: PathBuf,
    /// The gate that the model must have passed.
    pub gate: EntryGate,
    /// The domain: a folder with packed rows, or a file of conversations.
    pub domain: PathBuf,
    /// General text, likewise.
    pub general: PathBuf,
    /// What is held out of the domain, likewise.
    pub eval_data: PathBuf,
    /// How conversations are written as tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: ChatKeys,
    /// Row length.
    pub seq_len: usize,
    /// Share of the rows of a step that come from the domain.
    pub domain_share: f64,
    /// Rows of one evaluation batch, and of the comparison after merging.
    pub eval_batch: usize,
    /// Largest logit difference between adapter and merged model, in f32; bf16 has its own bounds, because it rounds more.
    pub merge_max_diff: f64,
    /// Weight of the squared log-sum-exp.
    pub z_loss: f32,
    /// In which form the weights of experts stay: `true` or `"mxfp4"` as the model folder has them, `"fp8"` rounded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub packed_experts: PackedExperts,
    /// Weights of the routers' losses, for models with experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub router: RouterWeights,
    /// The adapter.
    pub adapter: AdapterKeys,
    /// Loop and optimizer.
    pub train: TrainConfig,
}

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

impl LoraStageConfig {
    /// The adapter, whose settings follow from the model.
    pub fn workload(&self) -> AdapterWorkload {
        let AdapterKeys { r, alpha, dropout, rslora, targets, rank_pattern, divide_by_experts } = self.adapter.clone();
        let lora = LoraConfig { r, alpha, dropout, rslora, targets, rank_pattern };
        AdapterWorkload { lora, divide_by_experts, packed_experts: self.packed_experts }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        self.workload().lora.check()?;
        let share = self.domain_share;
        require(share > 0.0 && share <= 1.0, || {
            format!("key `domain_share`: expected a number in (0, 1], got {share}")
        })?;
        let bound = self.merge_max_diff;
        require(bound > 0.0 && bound.is_finite(), || {
            format!("key `merge_max_diff`: expected a finite number above 0, got {bound}")
        })?;
        require(self.z_loss.is_finite() && self.z_loss >= 0.0, || {
            format!("key `z_loss`: expected a finite number of at least 0, got {}", self.z_loss)
        })?;
        self.router.check()?;
        require(self.eval_batch > 0, || "key `eval_batch`: expected at least 1, got 0".into())
    }
}
