//! Keys of the preference stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trainer::config::{is_default, require};
use trainer::lineage::EntryGate;
use trainer::objective::{Preference, PreferenceLoss, RouterWeights};
use trainer::render::ChatKeys;
use trainer::tune::Tuning;
use trainer::{TrainConfig, TrainError};

/// Configuration of a preference run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoConfig {
    /// Folder of the stage: `runs/<run>/dpo`.
    pub dir: PathBuf,
    /// Model folder to start from; it is the reference too.
    pub model: PathBuf,
    /// The gate that the model must have passed.
    pub gate: EntryGate,
    /// Preference records, JSONL or Parquet.
    pub data: PathBuf,
    /// Held-out preference records.
    pub eval_data: PathBuf,
    /// How records are written as tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: ChatKeys,
    /// Row length; both answers of a pair stand in one row.
    pub seq_len: usize,
    /// Rows of one batch of the evaluation and of the reference pass.
    pub eval_batch: usize,
    /// Strength of the pull to the reference.
    pub beta: f64,
    /// Loss.
    pub loss: PreferenceLoss,
    /// Weights of the routers' losses, for models with experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub router: RouterWeights,
    /// Loop and optimizer.
    pub train: TrainConfig,
}

impl DpoConfig {
    /// The objective.
    pub fn objective(&self) -> Preference {
        Preference { loss: self.loss, beta: self.beta, router: self.router }
    }

    /// The stage as the trainer runs it.
    pub(crate) fn tuning(&self, name: &'static str) -> Tuning<'_> {
        let gate = Some(&self.gate);
        Tuning { name, dir: &self.dir, model_dir: &self.model, gate, adapter: None, train: &self.train }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        self.objective().check()?;
        require(self.eval_batch > 0, || "key `eval_batch`: expected at least 1, got 0".into())
    }
}
