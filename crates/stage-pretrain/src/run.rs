//! Data and objective of pretraining.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use data_pipeline::RowSet;
use kernels_cubecl::LmBackend;
use model_core::Decoder;
use trainer::batch::{PhaseRows, RowSource, check_vocab};
use trainer::checkpoint::ModelFiles;
use trainer::config::Arithmetic;
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::run::{StagePlan, run_stage, tokenizer_hash};
use trainer::stage::Stage;
use trainer::{EvalSet, Outcome, StageArgs, TrainError};

use crate::PretrainConfig;

/// The stage.
#[derive(Debug)]
pub struct Pretrain;

impl Stage for Pretrain {
    const NAME: &'static str = "pretrain";
    type Config = PretrainConfig;

    fn check(config: &PretrainConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &PretrainConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &PretrainConfig) -> Option<Workload> {
        Some(Workload {
            model_dir: config.model.clone(),
            train: config.train.clone(),
            head: Head::CrossEntropy,
            adapter: None,
            sampling: None,
        })
    }

    fn run<B: LmBackend>(config: PretrainConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let model = Decoder::<B>::load(&config.model, device)?;
        let tokenizer = tokenizer_hash(&config.model)?;
        let mut phases = Vec::new();
        let mut inputs = BTreeMap::new();
        for phase in &config.phase {
            let rows = open(&config.data, phase.seq_len, &tokenizer, &model)?;
            inputs.insert(format!("rows-{}", phase.seq_len), Input::new(&config.data, rows.fingerprint()));
            let fingerprint = rows.fingerprint().to_owned();
            phases.push(PhaseRows { until_step: phase.until_step, rows: Arc::new(rows.rows().to_vec()), fingerprint });
        }
        let heldout = open(&config.eval_data, config.eval_seq_len, &tokenizer, &model)?;
        inputs.insert("eval".into(), Input::new(&config.eval_data, heldout.fingerprint()));
        let eval = EvalSet::new(heldout.rows(), config.eval_batch, Some(heldout.meta().text_bytes))?;
        let source = Box::new(RowSource::new(phases, &config.train)?);
        let plan = StagePlan {
            name: Self::NAME,
            dir: config.dir.clone(),
            config: &config,
            train: &config.train,
            model_dir: config.model.clone(),
            gate: None,
            inputs,
            model,
            files: ModelFiles::Full,
            objective: &config.objective(),
            source,
            eval,
            after: None,
        };
        run_stage(plan, args, device)
    }
}

/// Opens the rows of one length and checks that they were made for this model.
fn open<B: LmBackend>(root: &Path, seq_len: usize, tokenizer: &str, model: &Decoder<B>) -> Result<RowSet, TrainError> {
    let rows = RowSet::open_seq_len(root, seq_len)?;
    rows.require_tokenizer(tokenizer)?;
    check_vocab(&root.display().to_string(), rows.rows(), &model.config)?;
    Ok(rows)
}
