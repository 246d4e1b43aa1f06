//! Data and objective of preference optimisation.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels_cubecl::LmBackend;
use model_core::{Decoder, Tokenizer};
use trainer::batch::check_vocab;
use trainer::checkpoint::ModelFiles;
use trainer::config::Arithmetic;
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::render::ChatRenderer;
use trainer::run::{StagePlan, enter_gate, run_stage};
use trainer::stage::Stage;
use trainer::{EvalSet, MicroBatch, Outcome, StageArgs, TrainError};

use crate::DpoConfig;
use crate::pairs::{PairRows, PairSource};
use crate::reference::reference;

/// The stage.
#[derive(Debug)]
pub struct Dpo;

impl Stage for Dpo {
    const NAME: &'static str = "dpo";
    type Config = DpoConfig;

    fn check(config: &DpoConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &DpoConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &DpoConfig) -> Option<Workload> {
        Some(Workload {
            model_dir: config.model.clone(),
            train: config.train.clone(),
            head: Head::Logprobs,
            adapter: None,
        })
    }

    fn run<B: LmBackend>(config: DpoConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        // Asked before the reference pass, so that a refused model costs nothing.
        enter_gate(Some(&config.gate), &config.model, args)?;
        let model = Decoder::<B>::load(&config.model, device)?;
        let tokenizer = Tokenizer::load(&config.model)?;
        let renderer = ChatRenderer::new(&config.chat, &tokenizer, &model.config)?;
        let train_rows = read(&config.data, &config, &renderer, &model)?;
        let eval_rows = read(&config.eval_data, &config, &renderer, &model)?;
        let model_hash = Input::model(&config.model)?.hash;
        std::fs::create_dir_all(&config.dir).map_err(TrainError::io("create", &config.dir))?;
        let values = |rows: &PairRows| reference(&config.dir, &model_hash, &model, rows, config.eval_batch, device);
        let (train_reference, eval_reference) = (values(&train_rows)?, values(&eval_rows)?);
        let eval = eval_set(&eval_rows, &eval_reference, config.eval_batch)?;
        let inputs = BTreeMap::from([
            ("preferences".to_owned(), Input::tree(&config.data)?),
            ("eval".to_owned(), Input::tree(&config.eval_data)?),
        ]);
        let source = PairSource::new(Arc::new(train_rows), Arc::new(train_reference), config.seq_len, &config.train)?;
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
            objective: &config.objective(),
            source: Box::new(source),
            eval,
            after: None,
        };
        run_stage(plan, args, device)
    }
}

fn read<B: LmBackend>(
    path: &std::path::Path,
    config: &DpoConfig,
    renderer: &ChatRenderer<'_>,
    model: &Decoder<B>,
) -> Result<PairRows, TrainError> {
    let rows = PairRows::read(path, config.seq_len, renderer)?;
    let tokens: Vec<_> = rows.rows.iter().map(|pair_row| pair_row.row.clone()).collect();
    check_vocab(&path.display().to_string(), &tokens, &model.config)?;
    Ok(rows)
}

fn eval_set(rows: &PairRows, reference: &[[f32; 2]], batch: usize) -> Result<EvalSet, TrainError> {
    let all: Vec<usize> = (0..rows.rows.len()).collect();
    let batches: Result<Vec<MicroBatch>, TrainError> =
        all.chunks(batch).map(|which| rows.batch(which, Some(reference))).collect();
    Ok(EvalSet { batches: batches?, text_bytes: None })
}
