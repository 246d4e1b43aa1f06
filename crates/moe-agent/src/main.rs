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
    // A helper of the sandbox is this program in another role; nothing else may happen before it.
    if std::env::args_os().nth(1).is_some_and(|first| first == eval_rust::sandbox::HELPER) {
        return eval_rust::sandbox::helper_main();
    }
    match commands::run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moe-agent: {error:#}");
            // Bad usage or input; clap uses the same code.
            ExitCode::from(2)
        }
    }
}
