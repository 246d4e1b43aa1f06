//! The program `moe-agent`: the GPT-OSS Rust-agent line.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use eval_rust::sandbox;
use trainer::TrainError;

/// Bad usage or input; clap uses the same code.
const BAD_INPUT: u8 = 2;

/// The GPT-OSS Rust-agent line.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    // The sandbox starts this program as its helper; nothing else may happen before it.
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|first| first.to_str()) {
        Some(sandbox::HELPER) => return sandbox::helper_main(),
        Some(sandbox::PROBE) => return sandbox::probe_main(&args[1..]),
        _ => {}
    }
    match commands::run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("moe-agent: {error:#}");
            ExitCode::from(error.downcast_ref::<TrainError>().map_or(BAD_INPUT, TrainError::exit_code))
        }
    }
}
