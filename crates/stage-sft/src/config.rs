//! Keys of the SFT stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trainer::config::{is_default, require};
use trainer::lineage::EntryGate;
use trainer::objective::{NextToken, RouterWeights};
use trainer::render::ChatKeys;
use trainer::tune::Tuning;
use trainer::{TrainConfig, TrainError};

/// Configuration of a supervised fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// Folder of the stage: `runs/<run>/sft`.
    pub dir: PathBuf,
    /// Model folder to start from.
    pub model: PathBuf,
    /// The gate that the model must have passed.
    pub gate: EntryGate,
    /// Conversations, JSONL or Parquet.
    pub data: PathBuf,
    /// Held-out conversations.
    pub eval_data: PathBuf,
    /// How conversations are written as tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: ChatKeys,
    /// Row length.
    pub seq_len: usize,
    /// Rows of one evaluation batch.
    pub eval_batch: usize,
    /// Weight of the squared log-sum-exp.
    pub z_loss: f32,
    /// Weights of the routers' losses, for models with experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub router: RouterWeights,
    /// Loop and optimizer.
    pub train: TrainConfig,
}

impl SftConfig {
    /// The objective.
    pub(crate) fn objective(&self) -> NextToken {
        NextToken { z_loss: self.z_loss, router: self.router }
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
