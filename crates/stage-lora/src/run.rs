//! Data of the adapter stage.

use std::path::Path;

use kernels_cubecl::LmBackend;
use trainer::config::Arithmetic;
use trainer::lineage::Input;
use trainer::memory::{Head, Workload};
use trainer::mix::{MixPart, MixedSource};
use trainer::stage::Stage;
use trainer::text::TextRows;
use trainer::tune::TuningData;
use trainer::{EvalSet, Outcome, StageArgs, TrainError};

use crate::LoraStageConfig;

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
        Some(config.tuning(Self::NAME).workload(Head::CrossEntropy))
    }

    fn run<B: LmBackend>(config: LoraStageConfig, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError> {
        let tuning = config.tuning(Self::NAME);
        let base = tuning.load::<B>(device)?;
        let open = |path: &Path| TextRows::open(path, &config.model, &config.chat, config.seq_len, &base.config);
        let (domain, general, heldout) = (open(&config.domain)?, open(&config.general)?, open(&config.eval_data)?);
        let inputs = [
            ("domain".to_owned(), Input::new(&config.domain, &domain.fingerprint)),
            ("general".to_owned(), Input::new(&config.general, &general.fingerprint)),
            ("eval".to_owned(), Input::new(&config.eval_data, &heldout.fingerprint)),
        ];
        let part = |name: &str, text: TextRows, share: f64| MixPart {
            name: name.to_owned(),
            rows: text.rows,
            fingerprint: text.fingerprint,
            share,
        };
        let share = config.domain_share;
        let parts = vec![part("domain", domain, share), part("general", general, 1.0 - share)];
        let data = TuningData {
            source: Box::new(MixedSource::new(parts, config.seq_len, &config.train)?),
            eval: EvalSet::new(&heldout.rows, config.eval_batch, heldout.text_bytes)?,
            heldout: heldout.rows,
            inputs: inputs.into(),
        };
        tuning.run(&config, base, data, &config.objective(), args, device)
    }
}
