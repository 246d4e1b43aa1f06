//! The subcommands, one file each.

mod harmony;
mod stream;

use anyhow::Result;
use clap::Subcommand;

/// What the program can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Conversations to tokens of GPT-OSS's chat format and back.
    #[command(subcommand)]
    Harmony(harmony::Command),
}

/// Runs one subcommand.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Harmony(command) => harmony::run(&command),
    }
}
