//! The stage: model, reference, world, loop.

use std::collections::BTreeMap;

use data_pipeline::{PADDING_SEGMENT, TokenRow};
use kernels_cubecl::LmBackend;
use model_core::harmony::{Kind, Role, Supervise};
use model_core::{Harmony, Tokenizer};
use trainer::lineage::Input;
use trainer::render::{ChatKeys, ChatRenderer};
use trainer::run::enter_gate;
use trainer::tune::TuningData;
use trainer::{BatchSource, EvalSet, MicroBatch, Outcome, StageArgs, TrainError};

use super::{GrpoConfig, GrpoObjective};
use crate::rollout::{RolloutError, World};

/// Name of the stage.
pub const NAME: &str = "grpo";
/// Prompts that a merged model is compared with its adapter on.
const HELDOUT_ROWS: usize = 8;

/// The source of a stage whose batches the objective makes: what it adds is which tasks there are.
struct Asked {
    fingerprint: String,
    seq_len: usize,
}

impl BatchSource for Asked {
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
    let tuning = config.tuning(NAME);
    let base = tuning.load::<B>(device)?;
    let tokenizer = Tokenizer::load(&config.model)?;
    tokenizer.check_vocab(base.config.vocab_size)?;
    let harmony = Harmony::new(&tokenizer)?;
    let pad = ChatRenderer::new(&ChatKeys::default(), &tokenizer, &base.config)?.pad_id()?;
    // The reference shares the tensors of the base, which an adapter leaves alone and training of all weights replaces.
    let reference = config.needs_reference().then(|| base.clone());
    let objective = GrpoObjective::new(config, harmony, pad, world, reference)?;
    let mut inputs = BTreeMap::from([("tasks".to_owned(), Input::tree(&config.tasks)?)]);
    if let Some(planted) = &config.planted {
        inputs.insert("planted".to_owned(), Input::tree(planted)?);
    }
    let data = TuningData {
        source: Box::new(Asked { fingerprint: world.fingerprint(), seq_len: config.seq_len }),
        eval: EvalSet::default(),
        heldout: prompts(config, world, &harmony, pad)?,
        inputs,
    };
    tuning.run(config, base, data, &objective, args, device)
}

/// The first prompts as rows.
fn prompts(
    config: &GrpoConfig,
    world: &dyn World,
    harmony: &Harmony<'_>,
    pad: u32,
) -> Result<Vec<TokenRow>, RolloutError> {
    let row = |task: usize| {
        let conversation = world.environment(task)?.prompt();
        let mut ids = harmony.render(&conversation, Kind::Completion(Role::Assistant), false, &Supervise::Nothing)?.ids;
        ids.truncate(config.seq_len);
        let (mut weights, mut segments) = (vec![1.0; ids.len()], vec![0; ids.len()]);
        weights[0] = 0.0;
        ids.resize(config.seq_len, pad);
        weights.resize(config.seq_len, 0.0);
        segments.resize(config.seq_len, PADDING_SEGMENT);
        Ok(TokenRow { ids, segments, weights })
    };
    (0..world.ids().len().min(HELDOUT_ROWS)).map(row).collect()
}
