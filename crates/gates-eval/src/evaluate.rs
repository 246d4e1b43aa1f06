//! Runs a suite on a model folder.

use std::path::Path;

use data_pipeline::RowSet;
use data_pipeline::records::read_sft;
use gates::{EvalReport, Metric, artifact};
use kernels_cubecl::LmBackend;
use model_core::{Decoder, Tokenizer};

use crate::error::EvalError;
use crate::score::Scorer;
use crate::suite::{Kind, Settings, Suite, Task};
use crate::tasks;

/// Runs every task of `suite` on the model in `model_dir`; `done` hears of every task that is finished.
///
/// # Errors
/// Anything that keeps a task from being measured; then there is no report at all.
pub fn evaluate<B: LmBackend>(
    model_dir: &Path,
    suite: &Suite,
    data_root: &Path,
    device: &B::Device,
    done: &mut dyn FnMut(&Task, &[Metric]),
) -> Result<EvalReport, EvalError> {
    // Hashed first: a model that changes while it is read gets a report that fits no model.
    let model_hash = artifact::model_hash(model_dir)?;
    let tokenizer = Tokenizer::load(model_dir)?;
    let model = Decoder::<B>::load(model_dir, device)?;
    let mut report = EvalReport::new(&model_hash, &suite.hash);
    for task in &suite.tasks {
        let metrics = run_task(task, &model, &tokenizer, &model_hash, data_root, device, &suite.settings)?;
        done(task, &metrics);
        report.metrics.extend(metrics);
    }
    Ok(report)
}

fn run_task<B: LmBackend>(
    task: &Task,
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    model_hash: &str,
    data_root: &Path,
    device: &B::Device,
    settings: &Settings,
) -> Result<Vec<Metric>, EvalError> {
    let scorer = Scorer { model, device, batch_tokens: settings.batch_tokens };
    let (name, data) = (task.name.as_str(), data_root.join(task.data.as_deref().unwrap_or(Path::new(""))));
    match (task.kind, &task.repetition) {
        (Kind::Text, _) => tasks::text::run(name, &RowSet::open(&data)?, tokenizer, &scorer, settings),
        (Kind::Answers, _) => tasks::answers::run(name, &read_sft(&data)?, tokenizer, &scorer),
        (Kind::Preferences, _) => tasks::preferences::run(name, &data, tokenizer, &scorer),
        (Kind::Refusals, _) => tasks::refusals::run(name, &data, tokenizer, model),
        (Kind::Repetition, Some(how)) => {
            tasks::repetition::run(name, &RowSet::open(&data)?, tokenizer, model, how, settings)
        }
        (Kind::Repetition, None) => unreachable!("a suite with such a task does not parse"),
        (Kind::Weights, _) => Ok(vec![tasks::weights::run(name, model, model_hash)]),
    }
}
