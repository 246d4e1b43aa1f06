//! `moe-agent merge`: the language adapter into its base, proven on held-out rows, with `merge.json` as its record.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernels_cubecl::LmBackend;
use model_core::adapter::{Heldout, MergeInput, MergeSettings, MergedModel, adapter_hash};
use model_core::hf::read_config;
use serde::{Deserialize, Serialize};
use trainer::adapter::{ADAPTER, MAX_SHARD_BYTES, MERGED, check_merge_bound, merge_bounds};
use trainer::config::{Arithmetic, is_default, require};
use trainer::lineage::{EntryGate, Input};
use trainer::memory::Workload;
use trainer::render::ChatKeys;
use trainer::run::{FINAL, enter_gate, link_final, lock, publish_folder};
use trainer::stage::{Finish, RecordedRun, Stage};
use trainer::text::TextRows;
use trainer::{EvalSet, Outcome, StageArgs, TrainError};

/// Configuration of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfig {
    /// Folder of the stage: `runs/<run>/merge`.
    pub dir: PathBuf,
    /// The base: the model that the adapter was trained on.
    pub model: PathBuf,
    /// Folder of the adapter stage: its adapter is merged, its result is what the gate measured.
    pub adapter_run: PathBuf,
    /// The gate that the result of the adapter stage must have passed.
    pub gate: EntryGate,
    /// Held-out data that base, adapter and merged model are compared on: a folder with packed rows, or a file of conversations.
    pub eval_data: PathBuf,
    /// How conversations are written as tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chat: ChatKeys,
    /// Row length.
    pub seq_len: usize,
    /// Rows that are compared, from the first on.
    pub eval_rows: usize,
    /// Rows of one batch of the comparison.
    pub eval_batch: usize,
    /// Largest logit difference between adapter and merged model, in f32; bf16 has its own bounds, because it rounds more.
    pub merge_max_diff: f64,
    /// Element type of the arithmetic and of the weights.
    pub precision: Arithmetic,
    /// Rounds merged experts to MXFP4, within this mean KL divergence from the adapter in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_packed_kl: Option<f64>,
}

impl MergeConfig {
    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        check_merge_bound(self.merge_max_diff)?;
        require(self.precision != Arithmetic::Fp8, || {
            "key `precision`: expected f32 or bf16, because weights are merged in them, got fp8".into()
        })?;
        for (key, value) in [("seq_len", self.seq_len), ("eval_rows", self.eval_rows), ("eval_batch", self.eval_batch)]
        {
            require(value > 0, || format!("key `{key}`: expected at least 1, got 0"))?;
        }
        let max_kl = self.max_packed_kl.unwrap_or(1.0);
        require(max_kl.is_finite() && max_kl > 0.0, || {
            format!("key `max_packed_kl`: expected a finite number above 0, got {max_kl}")
        })
    }

    fn settings(&self) -> MergeSettings {
        MergeSettings {
            float: self.precision.float_type(),
            bounds: merge_bounds(self.precision, self.merge_max_diff),
            max_packed_kl: self.max_packed_kl,
            max_shard_bytes: MAX_SHARD_BYTES,
        }
    }

    /// The held-out rows, and their fingerprint.
    fn heldout(&self) -> Result<Heldout, TrainError> {
        let model = read_config(&self.model)?;
        let text = TextRows::open(&self.eval_data, &self.model, &self.chat, self.seq_len, &model)?;
        let n = self.eval_rows.min(text.rows.len());
        let set = EvalSet::new(&text.rows[..n], self.eval_batch, None)?;
        let rows = set.batches.into_iter().map(|batch| {
            let targets = batch.targets().0;
            (batch.rows, targets)
        });
        Ok(Heldout { rows: rows.collect(), name: self.eval_data.display().to_string(), blake3: text.fingerprint })
    }
}

/// The stage.
#[derive(Debug)]
pub struct MergeStage;

impl Stage for MergeStage {
    const NAME: &'static str = "merge";
    type Config = MergeConfig;

    fn check(config: &MergeConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &MergeConfig) -> Arithmetic {
        config.precision
    }

    fn workload(_: &MergeConfig) -> Option<Workload> {
        None
    }

    fn run<B: LmBackend>(config: MergeConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let gate = enter_gate(Some(&config.gate), &config.adapter_run.join(FINAL), args)?;
        let _lock = lock(&config.dir)?;
        let (folder, adapter) = (config.dir.join(MERGED), config.adapter_run.join(ADAPTER));
        if folder.exists() && !args.resume {
            return Err(TrainError::RunExists { path: config.dir });
        }
        let heldout = config.heldout()?;
        let inputs = BTreeMap::from([
            ("model".to_owned(), Input::model(&config.model)?),
            ("adapter".to_owned(), Input::new(&adapter, adapter_hash(&adapter)?)),
            ("eval".to_owned(), Input::new(&config.eval_data, &heldout.blake3)),
        ]);
        let record = RecordedRun::begin(&config.dir, Self::NAME, &config, inputs, gate)?;
        record.finish(|| {
            let from = MergeInput { model: &config.model, adapter: &adapter, unrecorded_base: false };
            let merged = MergedModel::<B>::new(from, &heldout, config.settings(), device)?;
            publish_folder(&folder, &config.model, |dir| merged.write(dir).map_err(TrainError::from))?;
            let (losses, agrees) = (merged.losses, merged.agrees);
            println!(
                "merge: {} updates; loss {:.4} base, {:.4} adapter, {:.4} merged (mean KL {:.2e} over {} tokens)",
                merged.n_updates, losses.base, losses.adapter, losses.merged, agrees.mean_kl, agrees.n_tokens
            );
            link_final(&config.dir, MERGED.as_ref())?;
            Ok(Finish { outcome: Outcome::Finished, steps: 0, model: folder })
        })
    }
}
