//! The program `moe-agent`: the GPT-OSS Rust-agent line.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use eval_rust::sandbox;

/// The GPT-OSS Rust-agent line.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    // The sandbox starts this program as its helper; nothing else may happen before it.
    if std::env::args_os().nth(1).is_some_and(|first| first == sandbox::HELPER) {
        return sandbox::helper_main();
    }
    match commands::run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("moe-agent: {error:#}");
            // Bad usage or input; clap uses the same code.
            ExitCode::from(2)
        }
    }
}
