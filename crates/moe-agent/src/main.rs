//! The program `moe-agent`: the GPT-OSS Rust-agent line.

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// The GPT-OSS Rust-agent line.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match commands::run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("moe-agent: {error:#}");
            // Bad usage or input; clap uses the same code.
            ExitCode::from(2)
        }
    }
}
