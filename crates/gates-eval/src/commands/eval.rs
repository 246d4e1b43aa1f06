//! `gates eval`: a model and a suite in, a report out.

use std::path::PathBuf;

use gates_eval::{Suite, evaluate};
use kernels_cubecl::{DeviceChoice, Precision, on_device};

/// Measures a model with a suite of tasks and writes a report.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Model folder with its tokenizer.json.
    #[arg(long)]
    model: PathBuf,
    /// The suite.
    #[arg(long)]
    suite: PathBuf,
    /// The report to write.
    #[arg(long)]
    out: PathBuf,
    /// Folder that the suite's data paths are relative to.
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Element type of weights and activations: f32, or bf16 on CUDA; likelihoods are f32 sums in any case.
    #[arg(long, default_value_t)]
    precision: Precision,
}

/// Runs the command.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let suite = Suite::load(&args.suite)?;
    let mut done = |_: &gates_eval::suite::Task, metrics: &[gates::Metric]| super::print(metrics);
    let device = args.device.resolve()?.with(args.precision)?;
    let report = on_device!(device, B, device => {
        evaluate::<B>(&args.model, &suite, &args.data, &device, &mut done)
    })??;
    super::write(&report, &args.out)
}
