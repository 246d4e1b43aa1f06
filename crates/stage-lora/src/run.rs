//! Data, adapter and outputs of the adapter stage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_pipeline::{RowSet, TokenRow};
use kernels_cubecl::{LmBackend, Precision};
use model_core::adapter::{MergeBounds, merge_check, weights_hash};
use model_core::hf::{LoadOptions, SaveOptions};
use model_core::{Decoder, LoraConfig, Tokenizer};
use trainer::batch::check_vocab;
use trainer::checkpoint::ModelFiles;
use trainer::config::{Arithmetic, require};
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::objective::NextToken;
use trainer::render::{ChatRenderer, ChatRows};
use trainer::run::{StagePlan, publish_folder, run_stage, tokenizer_hash};
use trainer::stage::Stage;
use trainer::{EvalSet, MicroBatch, Outcome, StageArgs, TrainError};

use crate::{LoraStageConfig, MixedSource};

/// Rows that adapter and merged model are compared on.
const MERGE_ROWS: usize = 8;
/// A shard of the merged model is at most this large.
const MAX_SHARD_BYTES: u64 = 4 << 30;

/// The stage.
#[derive(Debug)]
pub struct LoraStage;

impl Stage for LoraStage {
    const NAME: &'static str = "lora";
    type Config = LoraStageConfig;

    fn check(config: &LoraStageConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &LoraStageConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &LoraStageConfig) -> Option<Workload> {
        Some(Workload {
            model_dir: config.model.clone(),
            train: config.train.clone(),
            head: Head::CrossEntropy,
            adapter: Some(config.workload()),
        })
    }

    fn run<B: LmBackend>(config: LoraStageConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let options = LoadOptions { packed_experts: config.packed_experts, ..LoadOptions::default() };
        let base = Decoder::<B>::load_with(&config.model, options, device)?;
        let open = |path: &Path| open(path, &config, &base);
        let (domain, general, heldout) = (open(&config.domain)?, open(&config.general)?, open(&config.eval_data)?);
        let inputs = BTreeMap::from([
            ("domain".to_owned(), Input::new(&config.domain, &domain.fingerprint)),
            ("general".to_owned(), Input::new(&config.general, &general.fingerprint)),
            ("eval".to_owned(), Input::new(&config.eval_data, &heldout.fingerprint)),
        ]);
        let source = MixedSource::new(
            domain.rows,
            general.rows,
            config.domain_share,
            config.seq_len,
            &config.train,
            format!("{} {}", domain.fingerprint, general.fingerprint),
        )?;
        let lora = config.workload().lora_for(&base.config)?;
        let mut model = base.clone();
        model.attach_lora(&lora, config.train.seed)?;
        let (planned, attached) = (lora.n_params(&base.config)?, model.n_adapter_params());
        require(planned == attached, || {
            format!("key `adapter`: expected {planned} parameters by the model's shapes, {attached} were attached")
        })?;
        println!("lora: {attached} parameters train, every matrix of them is watched in the first updates");
        let base_hash = weights_hash(&config.model)?;
        let plan = StagePlan {
            name: Self::NAME,
            dir: config.dir.clone(),
            config: &config,
            train: &config.train,
            model_dir: config.model.clone(),
            gate: Some(config.gate.clone()),
            inputs,
            model,
            files: ModelFiles::Adapter { config: lora.clone(), base_hash: base_hash.clone() },
            objective: &NextToken { z_loss: config.z_loss, router: config.router },
            source: Box::new(source),
            eval: EvalSet::new(&heldout.rows, config.eval_batch, heldout.text_bytes)?,
            after: Some(Box::new(|checkpoint: &Path| {
                outputs(&config, &lora, base, &base_hash, &heldout.rows, checkpoint)
            })),
        };
        run_stage(plan, args, device)
    }
}

/// Rows for this model, wherever they come from.
struct Rows {
    rows: Vec<TokenRow>,
    fingerprint: String,
    /// UTF-8 bytes of the predicted tokens, where they are known.
    text_bytes: Option<u64>,
}

/// Opens packed rows of one length, or renders a file of conversations, and checks that they fit the model.
fn open<B: LmBackend>(path: &Path, config: &LoraStageConfig, model: &Decoder<B>) -> Result<Rows, TrainError> {
    let rows = if path.is_file() {
        let tokenizer = Tokenizer::load(&config.model)?;
        let renderer = ChatRenderer::new(&config.chat, &tokenizer, &model.config)?;
        let ChatRows { rows, fingerprint } = renderer.conversations(path, config.seq_len)?;
        Rows { rows, fingerprint, text_bytes: None }
    } else {
        let set = RowSet::open_seq_len(path, config.seq_len)?;
        set.require_tokenizer(&tokenizer_hash(&config.model)?)?;
        let (fingerprint, text_bytes) = (set.fingerprint().to_owned(), Some(set.meta().text_bytes));
        Rows { rows: set.rows().to_vec(), fingerprint, text_bytes }
    };
    check_vocab(&path.display().to_string(), &rows.rows, &model.config)?;
    Ok(rows)
}

/// Publishes the adapter and, after the proof that both compute the same, the merged model.
fn outputs<B: LmBackend>(
    config: &LoraStageConfig,
    lora: &LoraConfig,
    mut adapted: Decoder<B>,
    base_hash: &str,
    heldout: &[TokenRow],
    checkpoint: &Path,
) -> Result<PathBuf, TrainError> {
    adapted.load_peft(checkpoint, base_hash)?;
    publish_folder(&config.dir.join("adapter"), &config.model, |dir| {
        adapted.save_peft(dir, lora, base_hash).map(drop).map_err(TrainError::from)
    })?;
    let mut merged = adapted.clone();
    merged.merge()?;
    let sample: Vec<&TokenRow> = heldout.iter().take(MERGE_ROWS).collect();
    let rows = MicroBatch::new(&sample)?.rows;
    let bounds = match config.train.precision.precision() {
        Precision::F32 => MergeBounds { max_abs_logit: config.merge_max_diff, ..MergeBounds::F32 },
        Precision::Bf16 => MergeBounds::BF16,
    };
    let report = merge_check(&adapted, &merged, &[rows], &bounds)?;
    println!(
        "lora: merged equals adapter on {} held-out tokens: largest logit difference {:.2e}, mean KL {:.2e}, same top token {:.4}",
        report.n_tokens, report.max_abs_logit, report.mean_kl, report.top1_agreement
    );
    let folder = config.dir.join("merged");
    // The type that the weights have, so that nothing is lost and nothing is written twice as wide as it is.
    let float = config.train.precision.float_type();
    let options = SaveOptions { max_shard_bytes: MAX_SHARD_BYTES, float, packed_experts: false };
    publish_folder(&folder, &config.model, |dir| merged.save_with(dir, options).map(drop).map_err(TrainError::from))?;
    Ok(folder)
}

#[cfg(test)]
mod tests;
