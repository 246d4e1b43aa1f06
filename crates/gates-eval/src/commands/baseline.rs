//! `gates baseline`: training and held-out rows in, a report of what counting and compression reach out.

use std::path::PathBuf;

use data_pipeline::RowSet;
use gates::{EvalReport, artifact};
use gates_eval::baseline;
use model_core::Tokenizer;

/// Measures what a model must beat: an n-gram model and xz, both from the training rows.
#[derive(Debug, clap::Args)]
pub(crate) struct BaselineArgs {
    /// Token rows that the model trains on.
    #[arg(long)]
    train: PathBuf,
    /// Held-out token rows, the same that the suite's `text` task reads.
    #[arg(long)]
    heldout: PathBuf,
    /// tokenizer.json of the rows, or its folder.
    #[arg(long)]
    tokenizer: PathBuf,
    /// First part of the metrics' names, the name of the suite's `text` task.
    #[arg(long, default_value = "heldout")]
    name: String,
    /// Tokens of an n-gram.
    #[arg(long, default_value_t = 5)]
    order: usize,
    /// The report to write.
    #[arg(long)]
    out: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &BaselineArgs) -> anyhow::Result<()> {
    let (train, heldout) = (RowSet::open(&args.train)?, RowSet::open(&args.heldout)?);
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    // There is no suite file: what was measured is the training rows, the order and the name.
    let what = format!("baseline {} order {} train {}", args.name, args.order, train.fingerprint());
    let mut report = EvalReport::new(EvalReport::NO_MODEL, &artifact::hash_bytes(what.as_bytes()));
    report.metrics = baseline::measure(&args.name, &train, &heldout, &tokenizer, args.order)?;
    super::print(&report.metrics);
    super::write(&report, &args.out)
}
