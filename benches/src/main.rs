//! The program `perf`: benchmarks of the pipeline, one subcommand per kind of device.

mod check;
mod cpu;
mod curve;
mod generate;
mod gpu;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kernels_cubecl::{KernelError, leave};

/// Exit code of bad usage or input.
const USAGE: u8 = 2;

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
    /// All cases of all ops on a device, against the f64 references; exit code 1 on a miss
    Check(check::Arguments),
    /// Speed of every op on a CUDA device at the shapes of a 7B model
    Gpu(gpu::Arguments),
    /// Complete training steps of a named model through the real loop, on random tokens
    Train(train::Arguments),
    /// Losses of a training run on a token file, for comparison with another trainer
    Curve(curve::Arguments),
    /// Greedy decoding of a named model with random weights, beside what the memory's bandwidth allows
    Generate(generate::Arguments),
}

fn main() -> ExitCode {
    trainer::memory::keep_freed_memory();
    let result = match Cli::parse().command {
        Command::Cpu(arguments) => cpu::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Check(arguments) => check::run(&arguments),
        Command::Gpu(arguments) => gpu::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Curve(arguments) => curve::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("perf: {error:#}");
        leave(error.downcast_ref::<KernelError>().map_or(USAGE, KernelError::exit_code))
    })
}
