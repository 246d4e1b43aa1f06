//! The subcommands, one file each.

mod grpo;
mod harmony;
mod judging;
mod rank;
mod solve;
mod stream;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What the program can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Conversations to tokens of GPT-OSS's chat format and back.
    #[command(subcommand)]
    Harmony(harmony::Command),
    /// Have a model try tasks; candidates for the judge come out.
    Solve(solve::Arguments),
    /// Have a model try tasks at four temperatures; pairs of answers for preference training come out.
    Rank(rank::Arguments),
    /// Train a model by the rewards that the judge gives its own tries.
    Grpo(trainer::StageArgs),
}

/// Runs one subcommand.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Harmony(command) => harmony::run(&command)?,
        Command::Solve(arguments) => solve::run(&arguments)?,
        Command::Rank(arguments) => rank::run(&arguments)?,
        Command::Grpo(args) => return Ok(trainer::stage::program::<grpo::Grpo>(&args)),
    }
    Ok(ExitCode::SUCCESS)
}
