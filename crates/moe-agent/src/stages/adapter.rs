//! `moe-agent adapter`: the language adapter, low-rank matrices on attention and experts, or on a dense model's projections.

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
use trainer::stage::Stage;
use trainer::tune::Tuning;
use trainer::{Outcome, StageArgs, TrainConfig, TrainError};

use super::sources::{Source, Sources};
use super::{adapter_tuning, check_adapter};

/// Configuration of a language adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Folder of the stage: `runs/<run>/adapter`.
    pub dir: PathBuf,
    /// Model folder to start from.
    pub model: PathBuf,
    /// The gate that the model must have passed, where the line begins with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<EntryGate>,
    /// Training data by name.
    pub sources: BTreeMap<String, Source>,
    /// Held-out data: a folder with packed rows, or a file of conversations.
    pub eval_data: PathBuf,
    /// How conversations are written as tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: ChatKeys,
    /// Row length.
    pub seq_len: usize,
    /// Rows of one evaluation batch.
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

impl AdapterConfig {
    fn sources(&self) -> Sources<'_> {
        Sources {
            sources: &self.sources,
            eval_data: &self.eval_data,
            model_dir: &self.model,
            chat: &self.chat,
            seq_len: self.seq_len,
            eval_batch: self.eval_batch,
            train: &self.train,
        }
    }

    fn objective(&self) -> NextToken {
        NextToken { z_loss: self.z_loss, router: self.router }
    }

    fn tuning(&self, name: &'static str) -> Tuning<'_> {
        Tuning {
            name,
            dir: &self.dir,
            model_dir: &self.model,
            gate: self.gate.as_ref(),
            adapter: adapter_tuning(Some(&self.adapter), self.packed_experts, Some(self.merge_max_diff)),
            train: &self.train,
        }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.sources().check()?;
        self.objective().check()?;
        check_adapter(Some(&self.adapter), self.packed_experts, Some(self.merge_max_diff))
    }
}

/// The stage.
#[derive(Debug)]
pub struct AdapterStage;

impl Stage for AdapterStage {
    const NAME: &'static str = "adapter";
    type Config = AdapterConfig;

    fn check(config: &AdapterConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &AdapterConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &AdapterConfig) -> Option<Workload> {
        Some(config.tuning(Self::NAME).workload(Head::CrossEntropy))
    }

    fn run<B: LmBackend>(config: AdapterConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let tuning = config.tuning(Self::NAME);
        let base = tuning.load::<B>(device)?;
        let data = config.sources().open(&base.config)?;
        tuning.run(&config, base, data, &config.objective(), args, device)
    }
}
