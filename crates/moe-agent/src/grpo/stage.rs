//! The stage: model, reference, world, loop.

use std::collections::BTreeMap;

use kernels_cubecl::LmBackend;
use model_core::{Decoder, Harmony, Tokenizer};
use trainer::checkpoint::ModelFiles;
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::render::{ChatKeys, ChatRenderer};
use trainer::run::{StagePlan, enter_gate, run_stage};
use trainer::{BatchSource, EvalSet, MicroBatch, Outcome, StageArgs, TrainError};

use super::{GrpoConfig, GrpoObjective};
use crate::rollout::World;

/// What a program needs of the stage before it runs it.
#[derive(Debug)]
pub struct GrpoRun;

impl GrpoRun {
    /// Name of the stage.
    pub const NAME: &'static str = "grpo";

    /// What is trained, for the memory plan; the cache of the rollouts and the reference come on top.
    pub fn workload(config: &GrpoConfig) -> Workload {
        let (model_dir, train) = (config.model.clone(), config.train.clone());
        Workload { model_dir, train, head: Head::Logprobs, adapter: None }
    }
}

/// The source of a stage whose batches the objective makes: what it adds is which tasks there are.
struct Tasks {
    fingerprint: String,
    seq_len: usize,
}

impl BatchSource for Tasks {
    fn step(&mut self, _step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        Ok(Vec::new())
    }

    fn seq_len(&self, _step: u64) -> usize {
        self.seq_len
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Runs the stage over a world.
///
/// # Errors
/// Whatever ends the stage; [`TrainError::Guard`] where a bound is passed.
pub fn run<B: LmBackend>(
    config: &GrpoConfig,
    world: &dyn World,
    args: &StageArgs,
    device: &B::Device,
) -> Result<Outcome, TrainError> {
    // Asked before anything is loaded, so that a refused model costs nothing.
    enter_gate(Some(&config.gate), &config.model, args)?;
    let model = Decoder::<B>::load(&config.model, device)?;
    let tokenizer = Tokenizer::load(&config.model)?;
    tokenizer.check_vocab(model.config.vocab_size)?;
    let harmony = Harmony::new(&tokenizer)?;
    let pad = ChatRenderer::new(&ChatKeys::default(), &tokenizer, &model.config)?.pad_id()?;
    let reference = config.needs_reference().then(|| model.clone());
    let objective = GrpoObjective::new(config, harmony, pad, world, reference)?;
    let mut inputs = BTreeMap::from([("tasks".to_owned(), Input::tree(&config.tasks)?)]);
    if let Some(planted) = &config.planted {
        inputs.insert("planted".to_owned(), Input::tree(planted)?);
    }
    let plan = StagePlan {
        name: GrpoRun::NAME,
        dir: config.dir.clone(),
        config,
        train: &config.train,
        model_dir: config.model.clone(),
        gate: Some(config.gate.clone()),
        inputs,
        model,
        files: ModelFiles::Full,
        objective: &objective,
        source: Box::new(Tasks { fingerprint: world.fingerprint(), seq_len: config.seq_len }),
        eval: EvalSet::default(),
        after: None,
    };
    run_stage(plan, args, device)
}
