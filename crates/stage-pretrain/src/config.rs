//! Keys of the pretraining stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trainer::config::{is_default, require};
use trainer::objective::{NextToken, RouterWeights};
use trainer::{TrainConfig, TrainError};

/// Configuration of a pretraining run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// Folder of the stage: `runs/<run>/pretrain`.
    pub dir: PathBuf,
    /// Model folder to start from.
    pub model: PathBuf,
    /// Folder with one packed row set per row length.
    pub data: PathBuf,
    /// The same for the held-out documents.
    pub eval_data: PathBuf,
    /// Row length of the evaluation.
    pub eval_seq_len: usize,
    /// Rows of one evaluation batch.
    pub eval_batch: usize,
    /// Weight of the squared log-sum-exp.
    pub z_loss: f32,
    /// Weights of the routers' losses, for models with experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub router: RouterWeights,
    /// The length curriculum: phases in order, the last one until the end.
    pub phase: Vec<Phase>,
    /// Loop and optimizer.
    pub train: TrainConfig,
}

/// One phase of the length curriculum; tokens per step stay the same throughout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Row length.
    pub seq_len: usize,
    /// Steps completed when the phase ends.
    pub until_step: u64,
}

impl PretrainConfig {
    /// The objective.
    pub(crate) fn objective(&self) -> NextToken {
        NextToken { z_loss: self.z_loss, router: self.router }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.objective().check()?;
        require(!self.phase.is_empty(), || "key `phase`: expected at least one phase, got none".into())?;
        let steps: Vec<u64> = self.phase.iter().map(|phase| phase.until_step).collect();
        require(steps.is_sorted_by(|a, b| a < b), || {
            format!("key `phase.until_step`: expected rising steps, got {steps:?}")
        })?;
        // A curriculum that ends before the run, or goes on after it, would train another schedule than the one written.
        let last = steps[steps.len() - 1];
        require(last == self.train.max_steps, || {
            format!(
                "key `phase.until_step`: the last phase must end at train.max_steps = {}, got {last}",
                self.train.max_steps
            )
        })?;
        require(self.eval_batch > 0, || "key `eval_batch`: expected at least 1, got 0".into())?;
        self.phase.iter().try_for_each(|phase| self.train.rows(phase.seq_len).map(drop))
    }
}
