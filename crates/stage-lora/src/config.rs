//! Keys of the adapter stage.

use std::path::PathBuf;

use model_core::hf::PackedExperts;
use serde::{Deserialize, Serialize};
use trainer::adapter::{AdapterKeys, check_merge_bound};
use trainer::config::{is_default, require};
use trainer::lineage::EntryGate;
use trainer::objective::{NextToken, RouterWeights};
use trainer::render::ChatKeys;
use trainer::tune::{AdapterTuning, Tuning};
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

impl LoraStageConfig {
    /// The objective.
    pub(crate) fn objective(&self) -> NextToken {
        NextToken { z_loss: self.z_loss, router: self.router }
    }

    /// The stage as the trainer runs it.
    pub(crate) fn tuning(&self, name: &'static str) -> Tuning<'_> {
        let workload = self.adapter.workload(self.packed_experts);
        Tuning {
            name,
            dir: &self.dir,
            model_dir: &self.model,
            gate: Some(&self.gate),
            adapter: Some(AdapterTuning { workload, merge_max_diff: self.merge_max_diff }),
            train: &self.train,
        }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        self.adapter.workload(self.packed_experts).lora.check()?;
        let share = self.domain_share;
        require(share > 0.0 && share <= 1.0, || {
            format!("key `domain_share`: expected a number in (0, 1], got {share}")
        })?;
        check_merge_bound(self.merge_max_diff)?;
        self.objective().check()?;
        require(self.eval_batch > 0, || "key `eval_batch`: expected at least 1, got 0".into())
    }
}
