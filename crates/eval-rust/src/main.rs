//! The program `eval-rust`: judges candidates and scores verdicts.

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// Scores of Rust answers.
#[derive(Parser)]
#[command(name = "eval-rust", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match commands::run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("eval-rust: {error:#}");
            ExitCode::from(2)
        }
    }
}
