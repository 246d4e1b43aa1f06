//! Data and objective of preference optimisation.

use kernels_cubecl::LmBackend;
use trainer::config::Arithmetic;
use trainer::memory::{Head, Workload};
use trainer::pairs::PairFiles;
use trainer::run::enter_gate;
use trainer::stage::Stage;
use trainer::{Outcome, StageArgs, TrainError};

use crate::DpoConfig;

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
        Some(config.tuning(Self::NAME).workload(Head::Logprobs))
    }

    fn run<B: LmBackend>(config: DpoConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        // Asked before the reference pass, so that a refused model costs nothing.
        enter_gate(Some(&config.gate), &config.model, args)?;
        let tuning = config.tuning(Self::NAME);
        let model = tuning.load::<B>(device)?;
        let files = PairFiles {
            data: &config.data,
            eval_data: &config.eval_data,
            chat: &config.chat,
            seq_len: config.seq_len,
            eval_batch: config.eval_batch,
        };
        let data = files.open(&config.dir, &config.model, &model, &config.train, device)?;
        tuning.run(&config, model, data, &config.objective(), args, device)
    }
}
