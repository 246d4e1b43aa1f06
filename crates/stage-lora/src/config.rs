//! Keys of the adapter stage.

use std::path::PathBuf;

use model_core::LoraConfig;
use model_core::hf::PackedExperts;
use serde::{Deserialize, Serialize};
use trainer::config::{is_default, require};
use trainer::lineage::EntryGate;
use trainer::objective::RouterWeights;
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
    /// Folder with packed rows of the domain.
    pub domain: PathBuf,
    /// Folder with packed rows of the general text.
    pub general: PathBuf,
    /// Folder with packed held-out rows of the domain.
    pub eval_data: PathBuf,
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
}

impl LoraStageConfig {
    /// The adapter's settings as the model takes them.
    pub fn lora(&self) -> LoraConfig {
        let AdapterKeys { r, alpha, dropout, rslora, targets } = self.adapter.clone();
        LoraConfig { r, alpha, dropout, rslora, targets }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        self.lora().check()?;
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
