//! The subcommands of the judge.

mod judge;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

/// What to do.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Judge candidates: one with --task and --candidate, or a list.
    Judge(judge::Arguments),
    /// Check that a task's solution passes and that its start fails what must fail before.
    CheckTask(judge::CheckArguments),
}

/// Runs a subcommand; `helper` is this program, which the sandbox starts again.
pub(crate) fn run(command: Command, helper: &Path) -> Result<ExitCode> {
    match command {
        Command::Judge(arguments) => judge::judge(arguments, helper),
        Command::CheckTask(arguments) => judge::check_task(arguments, helper),
    }
}
