//! Data and objective of supervised fine-tuning.

use std::path::Path;
use std::sync::Arc;

use kernels_cubecl::LmBackend;
use model_core::Tokenizer;
use trainer::batch::{PhaseRows, RowSource, check_vocab};
use trainer::config::Arithmetic;
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::render::{ChatRenderer, ChatRows};
use trainer::stage::Stage;
use trainer::tune::TuningData;
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
        Some(config.tuning(Self::NAME).workload(Head::CrossEntropy))
    }

    fn run<B: LmBackend>(config: SftConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let tuning = config.tuning(Self::NAME);
        let model = tuning.load::<B>(device)?;
        let tokenizer = Tokenizer::load(&config.model)?;
        let renderer = ChatRenderer::new(&config.chat, &tokenizer, &model.config)?;
        let read = |path: &Path| -> Result<ChatRows, TrainError> {
            let rows = renderer.conversations(path, config.seq_len)?;
            check_vocab(&path.display().to_string(), &rows.rows, &model.config)?;
            Ok(rows)
        };
        let (train_rows, eval_rows) = (read(&config.data)?, read(&config.eval_data)?);
        let inputs = [
            ("conversations".to_owned(), Input::tree(&config.data)?),
            ("eval".to_owned(), Input::tree(&config.eval_data)?),
        ];
        let phase = PhaseRows {
            until_step: config.train.max_steps,
            rows: Arc::new(train_rows.rows),
            fingerprint: train_rows.fingerprint,
        };
        let data = TuningData {
            source: Box::new(RowSource::new(vec![phase], &config.train)?),
            eval: EvalSet::new(&eval_rows.rows, config.eval_batch, None)?,
            heldout: eval_rows.rows,
            inputs: inputs.into(),
        };
        tuning.run(&config, model, data, &config.objective(), args, device)
    }
}
