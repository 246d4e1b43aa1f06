//! The subcommands, one file each.

mod bench;
mod harmony;
mod mutate;
mod stream;
mod tasks;
mod trajectories;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

/// What the program can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Conversations to tokens of GPT-OSS's chat format and back.
    #[command(subcommand)]
    Harmony(harmony::Command),
    /// Pairs of faulty and fixed files from crates, each verified in the sandbox.
    Mutate(mutate::Arguments),
    /// Task folders for GRPO and evaluation from such pairs, each accepted by the judge.
    Tasks(tasks::Arguments),
    /// Conversations in which every call of a tool was executed, for training; their replay.
    Trajectories(trajectories::Arguments),
}

/// Runs one subcommand.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Harmony(command) => harmony::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Mutate(arguments) => mutate::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Tasks(arguments) => tasks::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Trajectories(arguments) => {
            let helper = std::env::current_exe().context("finding this program, which is the sandbox's helper")?;
            trajectories::run(&arguments, &helper)
        }
    }
}
