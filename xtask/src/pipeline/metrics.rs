//! The numbers that a step's outputs hold: evaluation reports, gate receipts, the last line of a training log.

use std::path::Path;

use anyhow::{Context, Result};
use gates::{EvalReport, Receipt, artifact};
use serde_json::Value;

use crate::failure::{Failure, STOPPED};

/// The metrics of this name that the outputs hold, as text; `missing` when none has it.
pub(crate) fn shown(outputs: &[impl AsRef<Path>], names: &[String]) -> Vec<(String, String)> {
    let value = |name: &String| {
        let found = outputs.iter().find_map(|output| value_in(output.as_ref(), name));
        (name.clone(), found.unwrap_or_else(|| "missing".into()))
    };
    names.iter().map(value).collect()
}

/// Whether the gate whose receipt is among the outputs was passed; none without a receipt.
pub(crate) fn verdict(outputs: &[impl AsRef<Path>]) -> Option<bool> {
    let receipt = outputs.iter().map(AsRef::as_ref).find(|path| is_receipt(path))?;
    Receipt::read(receipt).ok().map(|receipt| receipt.passed)
}

/// Whether a file has the name of a gate receipt.
pub(crate) fn is_receipt(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("gate-") && name.ends_with(".json"))
}

fn value_in(output: &Path, name: &str) -> Option<String> {
    if output.is_dir() {
        let last = series(&output.join("metrics.jsonl"), name).pop()?;
        return Some(format!("{last:.4}"));
    }
    let (report, _) = EvalReport::load(output).ok()?;
    let metric = report.metric(name)?;
    let interval = if metric.ci_low.is_finite() && metric.ci_high.is_finite() {
        format!(" [{:.4}, {:.4}]", metric.ci_low, metric.ci_high)
    } else {
        String::new()
    };
    Some(format!("{:.4}{interval} n {}", metric.value, metric.n))
}

/// Every value of a key in a file of one JSON object per line, in order; lines without the key do not count. A dot in
/// the key leads into an object.
pub(crate) fn series(path: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        key.split('.').try_fold(&line, |value, part| value.get(part))?.as_f64()
    };
    text.lines().filter_map(value).collect()
}

/// Checks that a training stage says it has finished; one that was stopped on request also ends with exit code 0.
///
/// # Errors
/// When no output has a readable `stage.json`, or it tells of anything but the end of all steps.
pub(crate) fn require_finished(outputs: &[impl AsRef<Path>]) -> Result<()> {
    let record = outputs.iter().map(|output| output.as_ref().join("stage.json")).find(|path| path.is_file());
    let path = record.context("the program succeeded but left no stage.json in its outputs")?;
    let bytes = artifact::read_bounded(&path, 16 << 20)?;
    let record: Value = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
    match record.pointer("/outcome/state").and_then(Value::as_str) {
        Some("finished") => Ok(()),
        Some("stopped") => Err(Failure::new(STOPPED, "was stopped on request; `--resume` continues it").into()),
        other => Err(anyhow::anyhow!("{}: outcome {other:?}, expected \"finished\"", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use gates::{Direction, Metric};

    use super::*;

    #[test]
    fn numbers_come_from_reports_and_training_logs() {
        let dir = tempfile::tempdir().unwrap();
        let stage = dir.path().join("pretrain");
        std::fs::create_dir(&stage).unwrap();
        std::fs::write(
            stage.join("metrics.jsonl"),
            "{\"step\":1,\"loss\":5.5}\n{\"step\":2,\"loss\":4.25}\n{\"eval\":{\"bpb\":2.5}}\n{\"st",
        )
        .unwrap();
        let eval = dir.path().join("eval-pretrain.json");
        let mut report = EvalReport::new("m", "s");
        report.metrics.push(Metric::new("answers.accuracy", Direction::Higher, gates::interval::rate(30, 40), "d"));
        report.metrics.push(Metric::new(
            "x",
            Direction::Lower,
            gates::interval::Estimate::without_interval(2.0, 9),
            "d",
        ));
        report.write(&eval).unwrap();
        let names = ["loss", "eval.bpb", "answers.accuracy", "x", "y"].map(str::to_owned);
        let got: Vec<String> = shown(&[stage, eval], &names).into_iter().map(|(_, value)| value).collect();
        assert_eq!(got, ["4.2500", "2.5000", "0.7500 [0.5981, 0.8581] n 40", "2.0000 n 9", "missing"]);
    }

    #[test]
    fn a_verdict_needs_a_receipt_that_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate-a-to-b.json");
        assert_eq!(verdict(std::slice::from_ref(&path)), None);
        std::fs::write(&path, "{\"passed\": true}").unwrap();
        assert_eq!(verdict(&[path]), None);
        assert!(is_receipt(Path::new("x/gate-a.json")) && !is_receipt(Path::new("x/eval-a.json")));
    }

    #[test]
    fn a_stage_must_say_that_it_has_finished() {
        let dir = tempfile::tempdir().unwrap();
        let say = |text: &str| {
            std::fs::write(dir.path().join("stage.json"), text).unwrap();
            require_finished(&[dir.path()])
        };
        assert!(require_finished(&[dir.path()]).unwrap_err().to_string().contains("left no stage.json"));
        say(r#"{"outcome": {"state": "finished", "steps": 3}}"#).unwrap();
        let stopped = say(r#"{"outcome": {"state": "stopped"}}"#).unwrap_err();
        assert_eq!(crate::failure::exit_code(&stopped), STOPPED);
        assert!(stopped.to_string().contains("--resume"));
        assert!(say(r#"{"outcome": {"state": "running"}}"#).is_err() && say("{}").is_err() && say("{").is_err());
    }
}
