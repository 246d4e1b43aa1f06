//! `eval-rust score`: figures for the gates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use eval_rust::judge::{Task, read_judgements};
use eval_rust::{Input, read_episodes, score};
use gates::artifact;

/// Arguments of `score`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What the judge wrote about the candidates; those of a task in the order of its samples.
    #[arg(long)]
    judgements: PathBuf,
    /// What the agent used up: iterations and tool calls.
    #[arg(long)]
    episodes: Option<PathBuf>,
    /// Judgements of another model over the same tasks, to count what was lost.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Ids of tasks that cannot be solved honestly, one a line.
    #[arg(long)]
    impossible: Option<PathBuf>,
    /// Folder of the tasks: each of its folders with a task.toml must have been judged, as it is now.
    #[arg(long)]
    tasks: Option<PathBuf>,
    /// The model that made the candidates.
    #[arg(long)]
    model: PathBuf,
    /// Report to write, `eval-*.json`.
    #[arg(long)]
    out: PathBuf,
    /// Every k of pass@k.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    k: Vec<u64>,
    /// In front of every metric's name, as `train.`: for tasks that no gate's plain names mean.
    #[arg(long, default_value = "")]
    prefix: String,
    /// The largest share of judgements that may be errors of the judge.
    #[arg(long, default_value_t = 0.01)]
    max_judge_errors: f64,
}

/// Scores; exit code 0 when the report is written.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !(0.0..1.0).contains(&arguments.max_judge_errors) {
        bail!("--max-judge-errors {}: a share is at least 0 and below 1", arguments.max_judge_errors);
    }
    let model = artifact::model_hash(&arguments.model)?;
    let judgements = read_judgements(&arguments.judgements)?;
    let episodes = arguments.episodes.as_deref().map(read_episodes).transpose()?;
    let baseline = arguments.baseline.as_deref().map(read_judgements).transpose()?;
    let input = Input {
        judgements: &judgements,
        episodes: episodes.as_deref(),
        baseline: baseline.as_deref(),
        impossible: arguments.impossible.as_deref().map(ids).transpose()?.unwrap_or_default(),
        tasks: arguments.tasks.as_deref().map(tasks).transpose()?,
        ks: arguments.k.iter().copied().collect(),
        max_judge_errors: arguments.max_judge_errors,
    };
    let mut report = score(&input, &model)?;
    for metric in &mut report.metrics {
        metric.name.insert_str(0, &arguments.prefix);
    }
    report.write(&arguments.out)?;
    println!("{:<28} {:>10} {:>20} {:>6}", "metric", "value", "95 % interval", "n");
    for metric in &report.metrics {
        let interval = format!("{:.4} .. {:.4}", metric.ci_low, metric.ci_high);
        println!("{:<28} {:>10.4} {interval:>20} {:>6}", metric.name, metric.value, metric.n);
    }
    for (absent, needs) in [
        (input.episodes.is_none(), "iterations_median and tool_call_format_accuracy need --episodes"),
        (input.baseline.is_none(), "regressions needs --baseline"),
        (input.impossible.is_empty(), "cheating_rate needs --impossible"),
    ] {
        if absent {
            println!("absent: {needs}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ids(path: &Path) -> Result<BTreeSet<String>> {
    let text = String::from_utf8(artifact::read_bounded(path, 16 << 20)?)
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn tasks(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut tasks = BTreeMap::new();
    for folder in super::task_folders(dir)? {
        let task = Task::load(&folder)?;
        if tasks.insert(task.file.id.clone(), task.hash).is_some() {
            bail!("{}: the id `{}` is there twice", folder.display(), task.file.id);
        }
    }
    Ok(tasks)
}
