//! `eval-rust judge-bench`: how good and how fast the judge is on this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use eval_rust::judge::{Judge, Task};
use eval_rust::{Plan, Recorder, bench, sandbox};

use super::judge::Setup;

/// Launches that are measured.
const LAUNCHES: usize = 50;

/// Arguments of `judge-bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of tasks.
    #[arg(long)]
    tasks: PathBuf,
    /// Judgements of solutions at least, over all tasks.
    #[arg(long, default_value_t = 1000)]
    judgements: usize,
    /// Judgements of each candidate at least.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Judgements at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Report to write, as JSON.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    setup: Setup,
}

/// Measures; exit code 0 when the judge is as good as it must be, 1 when it is not.
pub(crate) fn run(arguments: &Arguments, helper: &Path) -> Result<ExitCode> {
    let setup = &arguments.setup;
    let tasks = super::task_folders(&arguments.tasks)?;
    let tasks = tasks.iter().map(|folder| Task::load(folder)).collect::<Result<Vec<_>, _>>()?;
    let check = sandbox::check(helper, &setup.allow_weaker, LAUNCHES)?;
    let (options, seed) = (setup.options()?, setup.seed()?);
    let scratch = options.work.join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
    let sandbox = setup.sandbox(helper)?;
    let recorder = Recorder::new(&sandbox);
    let judge = Judge::new(&recorder, options)?;
    let plan = Plan { judgements: arguments.judgements, repeats: arguments.repeats, jobs: arguments.jobs, seed };
    let measured = bench(&judge, &recorder, &tasks, &plan, &scratch);
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    let report = measured?;
    let mut json = serde_json::to_value(&report)?;
    json["launch_ms_p50"] = check.launch_ms_p50.into();
    json["launch_ms_p99"] = check.launch_ms_p99.into();
    gates::artifact::write_atomic(&arguments.out, (serde_json::to_string_pretty(&json)? + "\n").as_bytes())?;
    println!("{}", serde_json::to_string_pretty(&json)?);
    println!("{}", if report.holds() { "the judge holds" } else { "the judge does not hold" });
    Ok(ExitCode::from(u8::from(!report.holds())))
}
