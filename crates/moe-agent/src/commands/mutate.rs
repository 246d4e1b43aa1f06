//! `moe-agent mutate`: pairs of faulty and fixed files.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use moe_agent::mutate::{MutateSettings, mutate};

use super::bench::{BenchArguments, settings};

/// Arguments of `mutate`; each that is given takes the place of the setting of its name.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Settings as TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The list of sources.
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,
    /// Folder of the results; a run that was killed goes on in it.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Crates that `cargo xtask crates` fetched.
    #[arg(long, value_name = "DIR")]
    vendor: Option<PathBuf>,
    /// The program `cargo-mutants`, or a folder with what it listed.
    #[arg(long, value_name = "PATH")]
    mutants: Option<PathBuf>,
    /// Crates worked on at a time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Decides which mutants and edits are tried.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Most mutants of a crate.
    #[arg(long, value_name = "N")]
    max_mutants: Option<usize>,
    /// Most edits of a crate.
    #[arg(long, value_name = "N")]
    max_edits: Option<usize>,
    /// Most bytes of a file that is changed.
    #[arg(long, value_name = "N")]
    max_bytes: Option<usize>,
    /// Only this crate; repeat for several.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    #[command(flatten)]
    bench: BenchArguments,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut settings: MutateSettings = settings(arguments.config.as_ref())?;
    let from = arguments;
    let set = |value: &Option<PathBuf>, to: &mut PathBuf| {
        if let Some(value) = value {
            to.clone_from(value);
        }
    };
    set(&from.sources, &mut settings.sources);
    set(&from.out, &mut settings.out);
    settings.vendor = from.vendor.clone().or(settings.vendor);
    settings.mutants = from.mutants.clone().or(settings.mutants);
    settings.jobs = from.jobs.unwrap_or(settings.jobs);
    settings.seed = from.seed.unwrap_or(settings.seed);
    settings.max_mutants = from.max_mutants.unwrap_or(settings.max_mutants);
    settings.max_edits = from.max_edits.unwrap_or(settings.max_edits);
    settings.max_bytes = from.max_bytes.unwrap_or(settings.max_bytes);
    if !from.only.is_empty() {
        settings.only.clone_from(&from.only);
    }
    let (toolchain, sandbox) = arguments.bench.open()?;
    let report = mutate(&settings, &sandbox, &toolchain)?;
    for (split, total) in &report.totals {
        println!(
            "{split}: {} of {} mutants caught ({} missed, {} unviable, {} timeouts, {} flaky, {} change too much), {} of {} edits refused as \
             wanted; {} pairs, {}..{}..{} bytes, {} of at most 2048; {:.0} s busy",
            total.caught,
            total.mutants,
            total.missed,
            total.unviable,
            total.timeouts,
            total.flaky,
            total.unfit,
            total.edit_pairs,
            total.edits,
            total.caught + total.edit_pairs,
            total.bytes[0],
            total.bytes[1],
            total.bytes[2],
            total.small,
            total.busy_s
        );
    }
    for refused in &report.refused {
        println!("not used: {}: {}", refused.name, refused.why);
    }
    ensure!(!report.sources.is_empty(), "no source could be used; the lines above say why");
    Ok(())
}
