//! The program `eval-rust`: whether candidates can be run safely here, and what they are worth.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use eval_rust::judge::JudgeError;
use eval_rust::sandbox::{self, Layer, SandboxError};
use eval_rust::{ScoreError, shown};

/// A verdict is negative.
const FAILED: u8 = 1;
/// The usage or the input is wrong.
const BAD_INPUT: u8 = 2;
/// A safety rule: the judge itself failed.
const STOPPED: u8 = 3;
/// The environment lacks something.
const LACKING: u8 = 4;

/// Runs Rust answers in a sandbox and scores them.
#[derive(Parser)]
#[command(name = "eval-rust", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Try what a sandbox must refuse, name what is missing, and measure a launch.
    SandboxCheck {
        /// Write the report as JSON.
        #[arg(long)]
        json: bool,
        /// Launches to measure.
        #[arg(long, default_value_t = 50)]
        launches: usize,
        /// A layer that may be missing; repeat for several.
        #[arg(long, value_name = "LAYER")]
        allow_weaker: Vec<Layer>,
    },
    #[command(flatten)]
    Judging(commands::Command),
}

fn main() -> ExitCode {
    // A helper is this program in another role; nothing else may happen before it.
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|first| first.to_str()) {
        Some(sandbox::HELPER) => return sandbox::helper_main(),
        Some(sandbox::PROBE) => return sandbox::probe_main(&args[1..]),
        _ => {}
    }
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", shown(&format!("{error:#}")));
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    let lacking = |error: &SandboxError| matches!(error, SandboxError::Missing { .. });
    for cause in error.chain() {
        match (cause.downcast_ref(), cause.downcast_ref(), cause.downcast_ref()) {
            (Some(error), _, _) if lacking(error) => return LACKING,
            (_, Some(JudgeError::NoToolchain { .. }), _) => return LACKING,
            (_, Some(JudgeError::Sandbox(error)), _) if lacking(error) => return LACKING,
            (_, _, Some(ScoreError::JudgeErrors { .. })) => return STOPPED,
            _ => {}
        }
    }
    BAD_INPUT
}

fn run(cli: Cli) -> Result<ExitCode> {
    let helper: PathBuf = std::env::current_exe().context("finding this program, which is the sandbox's helper")?;
    match cli.command {
        Task::Judging(command) => commands::run(command, &helper),
        Task::SandboxCheck { json, launches, allow_weaker } => {
            let report = sandbox::check(&helper, &allow_weaker, launches)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                print(&report);
            }
            Ok(ExitCode::from(if report.holds { 0 } else { FAILED }))
        }
    }
}

fn print(report: &sandbox::CheckReport) {
    for finding in &report.findings {
        println!("{:<5} {:<34} {}", if finding.holds { "holds" } else { "FAILS" }, finding.name, finding.detail);
    }
    for layer in &report.weaker {
        println!("weaker: {layer} is missing; instead: {}", layer.stand_in().unwrap_or("nothing"));
    }
    println!(
        "launch: median {:.1} ms, 99 of 100 within {:.1} ms, {} launches",
        report.launch_ms_p50, report.launch_ms_p99, report.n_launches
    );
    println!("{}", if report.holds { "the sandbox holds" } else { "the sandbox does not hold" });
}
