//! The program `perf`: benchmarks of the pipeline, one subcommand per kind of device.

mod cpu;

use clap::{Parser, Subcommand};

/// Benchmarks of the pipeline.
#[derive(Parser)]
#[command(name = "perf")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to measure.
#[derive(Subcommand)]
enum Command {
    /// This machine's CPU: its peak, matrix products, the demo's training step, tokenizer, checkpoints, generation
    Cpu(cpu::Arguments),
}

fn main() -> anyhow::Result<()> {
    trainer::memory::keep_freed_memory();
    match Cli::parse().command {
        Command::Cpu(arguments) => cpu::run(&arguments),
    }
}
