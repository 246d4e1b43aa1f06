//! `metrics.jsonl` and `timing.jsonl`: one JSON object a line.
//!
//! Everything in `metrics.jsonl` is a function of the configuration and the data, so an interrupted and resumed run
//! writes the same bytes as an uninterrupted one. What depends on the clock goes to `timing.jsonl`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{EvalLog, FlopCount, Observe, StepLog};
use crate::TrainError;
use crate::objective::MetricSum;

/// Name of the file of deterministic metrics.
pub const METRICS: &str = "metrics.jsonl";
/// Name of the file of wall-clock figures.
pub const TIMING: &str = "timing.jsonl";

/// The two files of a stage.
#[derive(Debug)]
pub struct MetricFiles {
    metrics: Lines,
    timing: Lines,
    flops: FlopCount,
}

impl MetricFiles {
    /// Opens both files in `dir` and cuts what lies beyond `step`, the step that the run continues from.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(dir: &Path, step: u64, flops: FlopCount) -> Result<Self, TrainError> {
        Ok(Self { metrics: Lines::open(dir.join(METRICS), step)?, timing: Lines::open(dir.join(TIMING), step)?, flops })
    }
}

/// Finite numbers as numbers, others as text, because JSON has no word for them.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number)
}

fn means(metrics: &[MetricSum]) -> Map<String, Value> {
    metrics.iter().map(|metric| (metric.name.to_owned(), number(metric.mean()))).collect()
}

impl Observe for MetricFiles {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        let line = json!({
            "step": log.step, "loss": number(log.loss), "grad_norm": number(log.grad_norm), "lr": number(log.lr),
            "units": number(log.units), "tokens": log.tokens, "seq_len": log.seq_len, "skipped": log.skipped,
            "metrics": means(&log.metrics),
        });
        self.metrics.append(&line)?;
        self.timing.append(&serde_json::to_value(self.flops.of(log)).unwrap_or(Value::Null))
    }

    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        let mut eval = means(&log.metrics);
        if let Some(value) = log.bits_per_byte {
            eval.insert("bits_per_byte".into(), number(value));
        }
        self.metrics.append(&json!({ "step": log.step, "eval": eval }))
    }

    fn warn(&mut self, _message: &str) {}

    fn sync(&mut self) -> Result<(), TrainError> {
        self.metrics.sync()
    }
}

/// A file of JSON lines that grows by whole lines.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Keeps the lines up to `step` and drops later or torn ones.
    fn open(path: PathBuf, step: u64) -> Result<Self, TrainError> {
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
            let kept: String = text.split_inclusive('\n').filter(|line| keep(line, step)).collect();
            if kept.len() != text.len() {
                gates::artifact::write_atomic(&path, kept.as_bytes())?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(TrainError::io("open", &path))?;
        Ok(Self { path, file })
    }

    fn sync(&mut self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io("sync", &self.path))
    }

    fn append(&mut self, line: &Value) -> Result<(), TrainError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(TrainError::io("append to", &self.path))
    }
}

fn keep(line: &str, step: u64) -> bool {
    let at = serde_json::from_str::<Value>(line).ok().and_then(|value| value.get("step").and_then(Value::as_u64));
    line.ends_with('\n') && at.is_some_and(|at| at <= step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_cuts_later_and_torn_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut lines = Lines::open(path.clone(), 2).unwrap();
        lines.append(&json!({ "step": 3, "again": true })).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"again\":true,\"step\":3}\n");
    }

    #[test]
    fn values_that_are_not_finite_stay_readable() {
        assert_eq!(number(f64::NAN), Value::String("NaN".into()));
        assert_eq!(number(0.5), json!(0.5));
    }
}
