//! Data and objective of supervised fine-tuning.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels_cubecl::LmBackend;
use model_core::{Decoder, Tokenizer};
use trainer::batch::{PhaseRows, RowSource, check_vocab};
use trainer::checkpoint::ModelFiles;
use trainer::config::Arithmetic;
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::objective::NextToken;
use trainer::render::ChatRenderer;
use trainer::run::{StagePlan, run_stage};
use trainer::stage::Stage;
use trainer::{EvalSet, Outcome, StageArgs, TrainError};

use crate::SftConfig;

/// The stage.
#[derive(Debug)]
pub struct Sft;

impl Stage for Sft {
    const NAME: &'static str = "sft";
    type Config = SftConfig;

    fn check(config: &SftConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &SftConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &SftConfig) -> Option<Workload> {
        Some(Workload {
            model_dir: config.model.clone(),
            train: config.train.clone(),
            head: Head::CrossEntropy,
            adapter: None,
        })
    }

    fn run<B: LmBackend>(config: SftConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let model = Decoder::<B>::load(&config.model, device)?;
        let tokenizer = Tokenizer::load(&config.model)?;
        let renderer = ChatRenderer::new(&config.chat, &tokenizer, &model.config)?;
        let train_rows = renderer.conversations(&config.data, config.seq_len)?;
        let eval_rows = renderer.conversations(&config.eval_data, config.seq_len)?;
        for (what, rows) in [(&config.data, &train_rows), (&config.eval_data, &eval_rows)] {
            check_vocab(&what.display().to_string(), &rows.rows, &model.config)?;
        }
        let inputs = BTreeMap::from([
            ("conversations".to_owned(), Input::tree(&config.data)?),
            ("eval".to_owned(), Input::tree(&config.eval_data)?),
        ]);
        let phase = PhaseRows {
            until_step: config.train.max_steps,
            rows: Arc::new(train_rows.rows),
            fingerprint: train_rows.fingerprint,
        };
        let plan = StagePlan {
            name: Self::NAME,
            dir: config.dir.clone(),
            config: &config,
            train: &config.train,
            model_dir: config.model.clone(),
            gate: Some(config.gate.clone()),
            inputs,
            model,
            files: ModelFiles::Full,
            objective: &NextToken { z_loss: config.z_loss, router: config.router },
            source: Box::new(RowSource::new(vec![phase], &config.train)?),
            eval: EvalSet::new(&eval_rows.rows, config.eval_batch, None)?,
            after: None,
        };
        run_stage(plan, args, device)
    }
}
