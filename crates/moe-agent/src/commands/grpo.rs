//! `moe-agent grpo`: policy optimisation with rewards of the judge.

use kernels_cubecl::LmBackend;
use moe_agent::grpo::{self, GrpoConfig};
use moe_agent::rollout::{JudgedWorld, Planted, RolloutError, TaskSet, find_tasks};
use trainer::config::Arithmetic;
use trainer::memory::{Head, SamplingWorkload, Workload};
use trainer::stage::Stage;
use trainer::{Outcome, StageArgs, TrainError};

use super::judging::{runner, setup, with_judge};

/// The stage as a program.
pub(crate) struct Grpo;

impl Stage for Grpo {
    const NAME: &'static str = grpo::NAME;
    const FIXED_SIZES: bool = false;
    type Config = GrpoConfig;

    fn check(config: &GrpoConfig) -> Result<(), TrainError> {
        config.check()
    }

    fn arithmetic(config: &GrpoConfig) -> Arithmetic {
        config.train.precision
    }

    fn workload(config: &GrpoConfig) -> Option<Workload> {
        let sampling = SamplingWorkload {
            rows: config.prompts_per_step * config.group_size,
            max_len: config.seq_len,
            reference: config.needs_reference(),
        };
        Some(Workload { sampling: Some(sampling), ..config.tuning(Self::NAME).workload(Head::Logprobs) })
    }

    fn run<B: LmBackend>(config: GrpoConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let (keys, prompt) = (&config.judge, &config.prompt);
        let runner = runner(keys, prompt)?;
        let tasks = TaskSet::load(&find_tasks(&config.tasks)?, prompt, &*runner, setup(keys, prompt)?)?;
        let planted = config.planted.as_deref().map(Planted::read).transpose()?.unwrap_or_default();
        let list = config.planted.clone().unwrap_or_default();
        let outcome = with_judge(&config.judge, |judge| {
            let world = JudgedWorld::new(judge, &tasks, planted, &list, &config.judge.work, config.judge.jobs)?;
            grpo::run::<B>(&config, &world, args, device).map_err(|error| RolloutError::Train(Box::new(error)))
        })?;
        Ok(outcome)
    }
}
