//! The subcommands, one file each.

mod batch;
mod export;
mod forward;
mod generate;
mod init;
mod inspect;
mod merge;

use anyhow::Result;
use clap::Subcommand;
use kernels_cubecl::KernelError;
use model_core::ModelError;

/// What the program can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a batch through a model and write logits, loss and gradients.
    Forward(forward::Arguments),
    /// Make a model folder with fresh weights.
    Init(init::Arguments),
    /// Show what a model folder holds.
    Inspect(inspect::Arguments),
    /// Continue a text or answer a message.
    Generate(generate::Arguments),
    /// Write a model folder in another element type or shard size, or as a GGUF file.
    Export(export::Arguments),
    /// Merge an adapter into its base model and prove it on held-out rows.
    Merge(merge::Arguments),
}

/// Runs one subcommand.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Forward(arguments) => forward::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Merge(arguments) => merge::run(&arguments),
    }
}

/// 4 when the environment lacks something, 1 when a merged model is not its adapter's, 2 for every other bad usage or input.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(ModelError::MergeDrift { .. }) = error.downcast_ref() {
        return 1;
    }
    error.downcast_ref::<KernelError>().map_or(2, KernelError::exit_code)
}
