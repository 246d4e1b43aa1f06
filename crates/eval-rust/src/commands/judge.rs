//! `eval-rust judge` and `eval-rust check-task`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use eval_rust::judge::{Judge, Judgement, Options, Status, Task, find_toolchain, read_list};
use eval_rust::sandbox::{Layer, Sandbox};
use eval_rust::shown;

/// What the judge works with.
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// Folder of the toolchain; rustup's default where it is left out.
    #[arg(long)]
    toolchain: Option<PathBuf>,
    /// Dependencies of tasks, as `cargo vendor` writes them.
    #[arg(long)]
    vendor: Option<PathBuf>,
    /// Folder for the cache and for running.
    #[arg(long, default_value = "runs/judge")]
    work: PathBuf,
    /// Seed of the random inputs; from the operating system where it is left out. Every result names its own.
    #[arg(long)]
    seed: Option<u64>,
    /// A layer of the sandbox that may be missing; repeat for several. Every result names those that were.
    #[arg(long, value_name = "LAYER")]
    pub(crate) allow_weaker: Vec<Layer>,
}

/// Arguments of `judge`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the task.
    #[arg(long, required_unless_present = "tasks", requires = "candidate")]
    task: Option<PathBuf>,
    /// Folder of the candidate.
    #[arg(long, requires = "task")]
    candidate: Option<PathBuf>,
    /// List of candidates, one `{"task": DIR, "candidate": DIR}` a line.
    #[arg(long, conflicts_with = "task")]
    tasks: Option<PathBuf>,
    /// Candidates at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Share of a list at which the judge itself may fail before the exit code says so.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    max_judge_errors: f64,
    /// Result: JSON of one candidate, JSON lines of a list.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    setup: Setup,
}

/// Arguments of `check-task`.
#[derive(clap::Args)]
pub(crate) struct CheckArguments {
    /// Folder of the task.
    #[arg(long)]
    task: PathBuf,
    #[command(flatten)]
    setup: Setup,
}

/// Judges; exit code 0 when everything was judged, whatever the judgement, 3 when the judge failed at more candidates than it may.
pub(crate) fn judge(arguments: Arguments, helper: &Path) -> Result<ExitCode> {
    let (judgements, text) = with(&arguments.setup, helper, |judge, seed| {
        if let Some(list) = &arguments.tasks {
            let judgements = judge.judge_all(&read_list(list)?, arguments.jobs, seed);
            let lines = judgements.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
            return Ok((judgements, lines.join("\n") + "\n"));
        }
        let (Some(task), Some(candidate)) = (&arguments.task, &arguments.candidate) else {
            bail!("name --task and --candidate, or --tasks")
        };
        let judgement = judge.judge(&Task::load(task)?, candidate, seed);
        let text = serde_json::to_string_pretty(&judgement)? + "\n";
        Ok((vec![judgement], text))
    })?;
    gates::artifact::write_atomic(&arguments.out, text.as_bytes())?;
    let count = |holds: fn(&Judgement) -> bool| judgements.iter().filter(|judgement| holds(judgement)).count();
    let errors = count(|judgement| judgement.status == Status::Error);
    println!(
        "judged {}: {} passed, {errors} errors of the judge",
        judgements.len(),
        count(|judgement| judgement.passed)
    );
    for judgement in judgements.iter().filter(|judgement| judgement.status == Status::Error) {
        eprintln!("eval-rust: {}: {}", shown(&judgement.task), shown(&judgement.reason));
    }
    let few = errors as f64 <= arguments.max_judge_errors * judgements.len() as f64;
    Ok(ExitCode::from(if few { 0 } else { 3 }))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("expected a number from 0 to 1, got `{text}`"))
}

/// Checks a task; exit code 0 when it says what it means.
pub(crate) fn check_task(arguments: CheckArguments, helper: &Path) -> Result<ExitCode> {
    with(&arguments.setup, helper, |judge, seed| Ok(judge.check_task(&Task::load(&arguments.task)?, seed)?))?;
    println!("{}: the solution passes, the start does not", arguments.task.display());
    Ok(ExitCode::SUCCESS)
}

impl Setup {
    /// Folders, all absolute.
    pub(crate) fn options(&self) -> Result<Options> {
        let toolchain = match &self.toolchain {
            Some(toolchain) => toolchain.clone(),
            None => find_toolchain(&|name| std::env::var_os(name))?,
        };
        std::fs::create_dir_all(&self.work).with_context(|| format!("creating {}", self.work.display()))?;
        let absolute = |path: &PathBuf| path.canonicalize().with_context(|| format!("looking for {}", path.display()));
        Ok(Options {
            toolchain: absolute(&toolchain)?,
            vendor: self.vendor.as_ref().map(absolute).transpose()?,
            work: absolute(&self.work)?,
        })
    }

    pub(crate) fn seed(&self) -> Result<u64> {
        self.seed.map_or_else(random_seed, Ok)
    }

    pub(crate) fn sandbox(&self, helper: &Path) -> Result<Sandbox> {
        Ok(Sandbox::new(helper, &self.allow_weaker)?)
    }
}

/// Does something with a judge and a seed.
pub(crate) fn with<T>(setup: &Setup, helper: &Path, act: impl FnOnce(&Judge<'_>, u64) -> Result<T>) -> Result<T> {
    let (options, seed) = (setup.options()?, setup.seed()?);
    let sandbox = setup.sandbox(helper)?;
    act(&Judge::new(&sandbox, options)?, seed)
}

fn random_seed() -> Result<u64> {
    let mut bytes = [0; 8];
    let mut source = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes).context("reading /dev/urandom")?;
    Ok(u64::from_le_bytes(bytes))
}
