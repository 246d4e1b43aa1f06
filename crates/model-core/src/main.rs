//! The program `model-core`: makes, inspects, exports and runs models from Hugging Face folders.

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// Language models of the LLaMA and GPT-OSS families in Hugging Face folders.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match commands::run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("model-core: {error:#}");
            kernels_cubecl::leave(commands::exit_code(&error))
        }
    }
}
