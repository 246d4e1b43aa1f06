//! The subcommands, one file each.

mod bench;
mod conversations;
mod grpo;
mod harmony;
mod judging;
mod mutate;
mod rank;
mod solve;
mod stream;
mod tasks;
mod trajectories;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use moe_agent::stages::{AdapterStage, CoreAgentStage, IpoStage, MergeStage};
use trainer::StageArgs;
use trainer::stage::program;

/// What the program can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Conversations to tokens of GPT-OSS's chat format and back.
    #[command(subcommand)]
    Harmony(harmony::Command),
    /// Train the language adapter.
    Adapter(StageArgs),
    /// Merge the language adapter into its base and prove it on held-out rows.
    Merge(StageArgs),
    /// Fine-tune the merged model on trajectories.
    CoreAgent(StageArgs),
    /// Train on preferences between ranked answers.
    Ipo(StageArgs),
    /// Have a model try tasks; candidates for the judge come out.
    Solve(solve::Arguments),
    /// Have a model try tasks at four temperatures; pairs of answers for preference training come out.
    Rank(rank::Arguments),
    /// Train a model by the rewards that the judge gives its own tries.
    Grpo(StageArgs),
    /// Pairs of faulty and fixed files from crates, each verified in the sandbox.
    Mutate(mutate::Arguments),
    /// Such pairs as requests and answers, for the language adapter.
    Conversations(conversations::Arguments),
    /// Task folders for GRPO and evaluation from such pairs, each accepted by the judge.
    Tasks(tasks::Arguments),
    /// Conversations in which every call of a tool was executed, for training; their replay.
    Trajectories(trajectories::Arguments),
}

/// Runs one subcommand; the stages tell their own errors.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Harmony(command) => harmony::run(&command).map(done),
        Command::Adapter(args) => Ok(program::<AdapterStage>(&args)),
        Command::Merge(args) => Ok(program::<MergeStage>(&args)),
        Command::CoreAgent(args) => Ok(program::<CoreAgentStage>(&args)),
        Command::Ipo(args) => Ok(program::<IpoStage>(&args)),
        Command::Solve(arguments) => solve::run(&arguments).map(done),
        Command::Rank(arguments) => rank::run(&arguments).map(done),
        Command::Grpo(args) => Ok(program::<grpo::Grpo>(&args)),
        Command::Mutate(arguments) => mutate::run(&arguments).map(done),
        Command::Conversations(arguments) => conversations::run(&arguments).map(done),
        Command::Tasks(arguments) => tasks::run(&arguments).map(done),
        Command::Trajectories(arguments) => {
            let helper = std::env::current_exe().context("finding this program, which is the sandbox's helper")?;
            trajectories::run(&arguments, &helper)
        }
    }
}
