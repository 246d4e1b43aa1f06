//! `moe-agent core-agent`: supervised fine-tuning on trajectories; of a conversation only what the assistant says is trained on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernels_cubecl::LmBackend;
use model_core::hf::PackedExperts;
use serde::{Deserialize, Serialize};
use trainer::adapter::AdapterKeys;
use trainer::config::{Arithmetic, is_default};
use trainer::lineage::EntryGate;
use trainer::memory::{Head, Workload};
use trainer::objective::{NextToken, RouterWeights};
use trainer::render::ChatKeys;
use trainer::run::enter_gate;
use trainer::stage::Stage;
use trainer::tune::Tuning;
use trainer::{Outcome, StageArgs, TrainConfig, TrainError};

use super::lineage::require_merged;
use super::sources::{Source, Sources};
use super::{adapter_tuning, check_adapter};

/// Configuration of the fine-tuning on trajectories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreAgentConfig {
    /// Folder of the stage: `runs/<run>/core-agent`.
    pub dir: PathBuf,
    /// Model folder to start from: the result of `moe-agent merge`, with its `merge.json`.
    pub model: PathBuf,
    /// Folder of the adapter stage whose adapter the model must have in it.
    pub adapter_run: PathBuf,
    /// The gate that the model must have passed.
    pub gate: EntryGate,
    /// Training data by name: trajectories in Harmony, and whatever is mixed in.
    pub sources: BTreeMap<String, Source>,
    /// Held-out data: a file of conversations, or a folder with packed rows.
    pub eval_data: PathBuf,
    /// How conversations are written as tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: ChatKeys,
    /// Row length.
    pub seq_len: usize,
    /// Rows of one evaluation batch.
    pub eval_batch: usize,
    /// Largest logit difference between adapter and merged model, in f32; none where all weights train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_max_diff: Option<f64>,
    /// Weight of the squared log-sum-exp.
    pub z_loss: f32,
    /// In which form the weights of experts stay: `true` or `"mxfp4"` as the model folder has them, `"fp8"` rounded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub packed_experts: PackedExperts,
    /// Weights of the routers' losses, for models with experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub router: RouterWeights,
    /// The adapter; without this table all weights train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterKeys>,
    /// Loop and optimizer.
    pub train: TrainConfig,
}

impl CoreAgentConfig {
    fn sources(&self) -> Sources<'_> {
        let Self { sources, eval_data, model: model_dir, chat, seq_len, eval_batch, train, .. } = self;
        Sources { sources, eval_data, model_dir, chat, seq_len: *seq_len, eval_batch: *eval_batch, train }
    }

    fn objective(&self) -> NextToken {
        NextToken { z_loss: self.z_loss, router: self.router }
    }

    fn tuning(&self, name: &'static str) -> Tuning<'_> {
        let adapter = adapter_tuning(self.adapter.as_ref(), self.packed_experts, self.merge_max_diff);
        let gate = Some(&self.gate);
        Tuning { name, dir: &self.dir, model_dir: &self.model, gate, adapter, train: &self.train }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.sources().check()?;
        self.objective().check()?;
        check_adapter(self.adapter.as_ref(), self.packed_experts, self.merge_max_diff)
    }
}

/// The stage.
#[derive(Debug)]
pub struct CoreAgentStage;

impl Stage for CoreAgentStage {
    const NAME: &'static str = "core-agent";
    type Config = CoreAgentConfig;

    fn check(config: &CoreAgentConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &CoreAgentConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &CoreAgentConfig) -> Option<Workload> {
        Some(config.tuning(Self::NAME).workload(Head::CrossEntropy))
    }

    fn run<B: LmBackend>(config: CoreAgentConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        // Asked before the weights are hashed and loaded, so that a refused model costs little.
        enter_gate(Some(&config.gate), &config.model, args)?;
        let adapter = require_merged(&config.model, &config.adapter_run)?;
        let tuning = config.tuning(Self::NAME);
        let base = tuning.load::<B>(device)?;
        let mut data = config.sources().open(&base.config)?;
        data.inputs.insert("adapter".to_owned(), adapter);
        tuning.run(&config, base, data, &config.objective(), args, device)
    }
}
