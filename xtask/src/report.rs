//! `cargo xtask report RUN`: what a run came to, on one screen.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gates::Receipt;

use crate::args::Args;
use crate::pipeline::config::check_run_name;
use crate::pipeline::metrics::{is_receipt, series};
use crate::pipeline::summary::Summary;
use crate::workspace;

/// Characters of a curve.
const CURVE_WIDTH: usize = 60;
/// Folders of a run that hold no training log.
const NOT_STAGES: [&str; 3] = ["steps", "logs", "replaced"];

/// Runs the command.
pub(crate) fn command(mut args: Args) -> Result<()> {
    let name = args.positional().context("which run? `cargo xtask report RUN`")?;
    args.finish()?;
    check_run_name(&name)?;
    let run_dir = workspace::root()?.join("runs").join(&name);
    ensure!(run_dir.is_dir(), "no run {name} in runs/; `cargo xtask pipeline --run {name}` makes it");
    print!("{}", text(&run_dir)?);
    Ok(())
}

/// The table, the gates' rules and the loss curves of a run.
fn text(run_dir: &Path) -> Result<String> {
    let mut text = Summary::load(run_dir)?.markdown();
    let mut files = Vec::new();
    collect(run_dir, &mut files)?;
    for path in files.iter().filter(|path| is_receipt(path)) {
        text += &format!("\n{}\n", path.strip_prefix(run_dir).unwrap_or(path).display());
        match Receipt::read(path) {
            Ok(receipt) => {
                text +=
                    &format!("  gate {}: {}\n", receipt.transition, if receipt.passed { "passed" } else { "FAILED" });
                receipt.problems.iter().for_each(|problem| text += &format!("  FAIL  {problem}\n"));
                receipt.rules.iter().for_each(|rule| text += &format!("  {rule}\n"));
            }
            Err(refusal) => text += &format!("  the receipt {refusal}\n"),
        }
    }
    for path in files.iter().filter(|path| path.ends_with("metrics.jsonl")) {
        let losses = series(path, "loss");
        if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
            let stage = path.parent().and_then(|dir| dir.strip_prefix(run_dir).ok()).unwrap_or(path).display();
            text += &format!("\nloss of {stage}: {first:.3} to {last:.3} in {} lines\n", losses.len());
            text += &format!("  {}\n", sparkline(&losses, CURVE_WIDTH));
        }
    }
    Ok(text)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    for path in entries {
        let skipped = path.file_name().is_some_and(|name| NOT_STAGES.iter().any(|skip| name == *skip));
        if path.is_dir() && !skipped {
            collect(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// A curve of at most `width` characters; each stands for the mean of its share of the values.
fn sparkline(values: &[f64], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let n = width.min(finite.len());
    let mean = |i: usize| {
        let part = &finite[i * finite.len() / n..(i + 1) * finite.len() / n];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..n).map(mean).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |v: f64| if high > low { ((v - low) / (high - low) * (LEVELS.len() - 1) as f64).round() } else { 0.0 };
    means.into_iter().map(|v| LEVELS[level(v) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_keep_their_shape() {
        assert_eq!(sparkline(&[8., 7., 6., 5., 4., 3., 2., 1.], 8), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&[8., 8., 1., 1.], 2), "█▁");
        assert_eq!(sparkline(&[3., f64::NAN, 3.], 9), "▁▁");
        assert_eq!(sparkline(&[], 9), "");
        let long: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(sparkline(&long, 60).chars().count(), 60);
    }

    #[test]
    fn a_report_shows_table_gates_and_curves() {
        let dir = tempfile::tempdir().unwrap();
        assert!(text(dir.path()).is_err());
        let summary = Summary { version: 1, pipeline: "demo".into(), complete: true, steps: Vec::new() };
        summary.write(dir.path()).unwrap();
        for stage in ["pretrain", "replaced"] {
            std::fs::create_dir(dir.path().join(stage)).unwrap();
            std::fs::write(dir.path().join(stage).join("metrics.jsonl"), "{\"loss\": 4.0}\n{\"loss\": 2.0}\n").unwrap();
        }
        std::fs::write(dir.path().join("gate-a-to-b.json"), "{}").unwrap();
        let got = text(dir.path()).unwrap();
        assert!(got.contains("loss of pretrain: 4.000 to 2.000 in 2 lines\n  █▁"), "{got}");
        assert!(got.contains("gate-a-to-b.json\n  the receipt cannot be read"), "{got}");
        assert!(!got.contains("replaced"), "{got}");
    }
}
