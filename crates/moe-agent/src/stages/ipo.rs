//! `moe-agent ipo`: preferences between ranked answers, against log-probabilities of the model that the stage starts from.
//!
//! IPO needs a reference as every loss over pairs does: its log-probabilities are computed once, before an adapter is
//! attached, and kept under a key of hashes.

use std::path::PathBuf;

use kernels_cubecl::LmBackend;
use model_core::hf::PackedExperts;
use serde::{Deserialize, Serialize};
use trainer::adapter::AdapterKeys;
use trainer::config::{Arithmetic, is_default, require};
use trainer::lineage::EntryGate;
use trainer::memory::{Head, Workload};
use trainer::objective::{Preference, PreferenceLoss, RouterWeights};
use trainer::pairs::PairFiles;
use trainer::render::ChatKeys;
use trainer::run::enter_gate;
use trainer::stage::Stage;
use trainer::tune::Tuning;
use trainer::{Outcome, StageArgs, TrainConfig, TrainError};

use super::{adapter_tuning, check_adapter};

/// Configuration of a preference run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpoConfig {
    /// Folder of the stage: `runs/<run>/ipo`.
    pub dir: PathBuf,
    /// Model folder to start from; it is the reference too.
    pub model: PathBuf,
    /// The gate that the model must have passed.
    pub gate: EntryGate,
    /// Preference records.
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
    #[serde(default = "ipo")]
    pub loss: PreferenceLoss,
    /// Largest logit difference between adapter and merged model, in f32; none where all weights train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_max_diff: Option<f64>,
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

/// The loss of a configuration that names none.
fn ipo() -> PreferenceLoss {
    PreferenceLoss::Ipo { length_normalised: true }
}

impl IpoConfig {
    fn objective(&self) -> Preference {
        Preference { loss: self.loss, beta: self.beta, router: self.router }
    }

    fn tuning(&self, name: &'static str) -> Tuning<'_> {
        let adapter = adapter_tuning(self.adapter.as_ref(), self.packed_experts, self.merge_max_diff);
        let gate = Some(&self.gate);
        Tuning { name, dir: &self.dir, model_dir: &self.model, gate, adapter, train: &self.train }
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range; IPO over sums, whose margin would depend on the length of the answers.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        self.objective().check()?;
        require(self.loss != PreferenceLoss::Ipo { length_normalised: false }, || {
            "key `loss.length_normalised`: expected true, because the margin of IPO is one of averages over an answer's tokens, \
             got false"
                .into()
        })?;
        require(self.eval_batch > 0, || "key `eval_batch`: expected at least 1, got 0".into())?;
        check_adapter(self.adapter.as_ref(), self.packed_experts, self.merge_max_diff)
    }
}

/// The stage.
#[derive(Debug)]
pub struct IpoStage;

impl Stage for IpoStage {
    const NAME: &'static str = "ipo";
    type Config = IpoConfig;

    fn check(config: &IpoConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &IpoConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &IpoConfig) -> Option<Workload> {
        Some(config.tuning(Self::NAME).workload(Head::Logprobs))
    }

    fn run<B: LmBackend>(config: IpoConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        // Asked before the reference pass, so that a refused model costs nothing.
        enter_gate(Some(&config.gate), &config.model, args)?;
        let tuning = config.tuning(Self::NAME);
        let base = tuning.load::<B>(device)?;
        let IpoConfig { data, eval_data, chat, seq_len, eval_batch, .. } = &config;
        let files = PairFiles { data, eval_data, chat, seq_len: *seq_len, eval_batch: *eval_batch };
        let data = files.open(&config.dir, &config.model, &base, &config.train, device)?;
        tuning.run(&config, base, data, &config.objective(), args, device)
    }
}
