//! `moe-agent tasks`: task folders for GRPO and evaluation.

use std::path::PathBuf;

use anyhow::Result;
use moe_agent::tasks::{TaskSettings, make_tasks};
use moe_agent::tools::PromptStyle;

use super::bench::{BenchArguments, settings};

/// Arguments of `tasks`; each that is given takes the place of the setting of its name.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Settings as TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The list of sources.
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,
    /// Folder of what `mutate` made.
    #[arg(long, value_name = "DIR")]
    pairs: Option<PathBuf>,
    /// Folder of the tasks; it must not be there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of the judge's cache.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Crates that `cargo xtask crates` fetched.
    #[arg(long, value_name = "DIR")]
    vendor: Option<PathBuf>,
    /// Crates worked on at a time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Decides wording, names and the judge's questions.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Most tasks of a crate.
    #[arg(long, value_name = "N")]
    max_per_crate: Option<usize>,
    /// Most bytes of the file with the fault.
    #[arg(long, value_name = "N")]
    max_bytes: Option<usize>,
    /// Tasks from training crates too, for GRPO.
    #[arg(long)]
    train: bool,
    /// Planted tasks that nobody can solve.
    #[arg(long, value_name = "N")]
    impossible: Option<usize>,
    /// Tests stand where a candidate sees them.
    #[arg(long)]
    visible_tests: bool,
    /// Descriptions say as little as compact trajectories do.
    #[arg(long)]
    compact: bool,
    /// Only this crate; repeat for several.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    #[command(flatten)]
    bench: BenchArguments,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut settings: TaskSettings = settings(arguments.config.as_ref())?;
    let from = arguments;
    for (value, to) in [
        (&from.sources, &mut settings.sources),
        (&from.pairs, &mut settings.pairs),
        (&from.out, &mut settings.out),
        (&from.work, &mut settings.work),
    ] {
        if let Some(value) = value {
            to.clone_from(value);
        }
    }
    settings.vendor = from.vendor.clone().or(settings.vendor);
    settings.jobs = from.jobs.unwrap_or(settings.jobs);
    settings.seed = from.seed.unwrap_or(settings.seed);
    settings.max_per_crate = from.max_per_crate.unwrap_or(settings.max_per_crate);
    settings.max_bytes = from.max_bytes.unwrap_or(settings.max_bytes);
    settings.train |= from.train;
    settings.impossible = from.impossible.unwrap_or(settings.impossible);
    settings.visible_tests |= from.visible_tests;
    if from.compact {
        settings.style = PromptStyle::Compact;
    }
    if !from.only.is_empty() {
        settings.only.clone_from(&from.only);
    }
    let (toolchain, sandbox) = arguments.bench.open()?;
    let report = make_tasks(&settings, &sandbox, &toolchain)?;
    println!(
        "tasks: {:?} of {} pairs, {} impossible; left out because training has seen them: {:?}; {}..{}..{} bytes",
        report.tasks,
        report.tried,
        report.impossible,
        report.overlap,
        report.bytes[0],
        report.bytes[1],
        report.bytes[2]
    );
    for (why, count) in &report.dropped {
        println!("dropped {count}: {why}");
    }
    report.notes.iter().for_each(|note| println!("note: {note}"));
    Ok(())
}
