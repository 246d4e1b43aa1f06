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
    /// Treats CUDA devices as of this compute capability, for instance 80, where they have a later one: what older cards run, as
    /// far as this program chooses it. cuBLASLt knows the card; for cubecl see benches/older/libcuda.c
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(i32).range(80..=999))]
    capability: Option<i32>,
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
    let Cli { capability, command } = Cli::parse();
    #[cfg(feature = "cuda")]
    capability.into_iter().for_each(kernels_cubecl::cuda::treat_as);
    #[cfg(not(feature = "cuda"))]
    if capability.is_some() {
        eprintln!("perf: --capability: {}", KernelError::NoCuda(0));
        return ExitCode::from(KernelError::NoCuda(0).exit_code());
    }
    let result = match command {
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
