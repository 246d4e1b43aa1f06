//! The program `data-pipeline`: text to token rows. Exit codes: 0 done, 2 bad usage or input.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

mod commands;

/// Text to token rows: ingest, clean, filter, deduplicate, tokenize, pack
#[derive(Parser)]
#[command(name = "data-pipeline", version)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed there is nobody left to tell.
            let message = data_pipeline::inspect::printable(&format!("{error:#}"));
            let _ = writeln!(std::io::stderr(), "data-pipeline: {message}");
            ExitCode::from(2)
        }
    }
}
