//! The subcommands.

mod judge;

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

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Judge(arguments) => judge::judge(arguments),
        Command::CheckTask(arguments) => judge::check_task(arguments),
    }
}
