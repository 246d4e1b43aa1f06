//! The program `gates`: evaluates a checkpoint, measures baselines, checks reports against a policy.

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// Promotion gates: measure a checkpoint, then decide by a policy.
#[derive(Parser)]
#[command(name = "gates", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match commands::run(Arguments::parse().command) {
        Ok(code) => kernels_cubecl::leave(code),
        Err(error) => {
            eprintln!("gates: {}", commands::describe(&error));
            kernels_cubecl::leave(commands::exit_code(&error))
        }
    }
}
