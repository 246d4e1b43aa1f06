//! The subcommands, one file each.

mod bench;
mod harmony;
mod mutate;
mod stream;
mod tasks;

use anyhow::Result;
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
}

/// Runs one subcommand.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Harmony(command) => harmony::run(&command),
        Command::Mutate(arguments) => mutate::run(&arguments),
        Command::Tasks(arguments) => tasks::run(&arguments),
    }
}
