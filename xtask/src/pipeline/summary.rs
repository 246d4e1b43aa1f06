//! The table of a run: every step with its verdict, time, memory, metrics and artifacts.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use gates::artifact;
use serde::{Deserialize, Serialize};

/// Characters of a hash that the table shows.
const HASH_CHARS: usize = 12;

/// `summary.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Summary {
    /// Version of the format.
    pub(crate) version: u32,
    /// Name of the pipeline.
    pub(crate) pipeline: String,
    /// Whether every step of the pipeline is done.
    pub(crate) complete: bool,
    /// One row per step.
    pub(crate) steps: Vec<Row>,
}

/// One step of the table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// Name of the step.
    pub(crate) step: String,
    /// data, stage or gate.
    pub(crate) kind: String,
    /// ran, unchanged, failed, or not reached.
    pub(crate) status: Status,
    /// Whether the gate was passed, for steps that write a receipt.
    pub(crate) passed: Option<bool>,
    /// Exit code of the program.
    pub(crate) exit_code: Option<u8>,
    /// Wall time of the run that made the outputs.
    pub(crate) seconds: f64,
    /// Peak memory of that run.
    pub(crate) peak_rss_bytes: u64,
    /// Whether the outputs were made by another build of the program.
    pub(crate) other_build: bool,
    /// Name and value of the metrics that the pipeline shows.
    pub(crate) metrics: Vec<(String, String)>,
    /// Path and hash of every output.
    pub(crate) artifacts: Vec<(String, String)>,
}

/// What happened to a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// Not asked for, or behind a failure.
    #[default]
    NotReached,
    /// Outputs were there and unchanged.
    Unchanged,
    /// Ran and succeeded.
    Ran,
    /// Ran and failed.
    Failed,
}

impl Summary {
    /// The version that this build writes and reads.
    pub(crate) const VERSION: u32 = 1;

    /// Writes `summary.json` and `summary.md`.
    pub(crate) fn write(&self, run_dir: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("a summary always serialises")? + "\n";
        artifact::write_atomic(&run_dir.join("summary.json"), json.as_bytes())?;
        artifact::write_atomic(&run_dir.join("summary.md"), self.markdown().as_bytes())?;
        Ok(())
    }

    /// Reads `summary.json`.
    pub(crate) fn load(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("summary.json");
        let bytes = artifact::read_bounded(&path, 16 << 20)?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot read {}; run the pipeline again", path.display()))
    }

    /// The table as Markdown, aligned so that it also reads in a terminal.
    pub(crate) fn markdown(&self) -> String {
        let header = ["step", "kind", "status", "gate", "time", "peak memory", "metrics", "artifact (BLAKE3)"];
        let mut table = vec![header.map(str::to_owned).to_vec()];
        table.extend(self.steps.iter().flat_map(Row::lines));
        let state = if self.complete { "complete" } else { "incomplete" };
        let mut text = format!("# Pipeline {}: {state}\n\n", self.pipeline);
        let widths: Vec<usize> =
            (0..header.len()).map(|c| table.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
        for (i, row) in table.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(text, "| {cell:<width$} ");
            }
            text.push_str("|\n");
            if i == 0 {
                widths.iter().for_each(|width| text += &format!("|{}", "-".repeat(width + 2)));
                text.push_str("|\n");
            }
        }
        let total: f64 = self.steps.iter().map(|row| row.seconds).sum();
        let peak = self.steps.iter().map(|row| row.peak_rss_bytes).max().unwrap_or(0);
        let _ = writeln!(text, "\nAll steps together {}, peak memory of one step {}.", time(total), memory(peak));
        if self.steps.iter().any(|row| row.other_build) {
            text.push_str("* made by another build of the program; `--from` runs it again.\n");
        }
        text
    }
}

impl Row {
    /// The row, and one more for each further metric or artifact.
    fn lines(&self) -> Vec<Vec<String>> {
        let status = match (self.status, self.exit_code) {
            (Status::NotReached, _) => "not reached".to_owned(),
            (Status::Unchanged, _) => format!("unchanged{}", if self.other_build { " *" } else { "" }),
            (Status::Ran, _) => "ran".to_owned(),
            (Status::Failed, code) => format!("FAILED ({})", code.map_or("?".to_owned(), |code| code.to_string())),
        };
        let gate = self.passed.map_or("", |passed| if passed { "passed" } else { "FAILED" });
        let (time, memory) = match self.exit_code {
            Some(_) => (time(self.seconds), memory(self.peak_rss_bytes)),
            None => (String::new(), String::new()),
        };
        let metrics = self.metrics.iter().map(|(name, value)| format!("{name} {value}"));
        let short = |hash: &str| hash.chars().take(HASH_CHARS).collect::<String>();
        let artifacts = self.artifacts.iter().map(|(path, hash)| format!("{path} {}", short(hash)));
        let (metrics, artifacts): (Vec<String>, Vec<String>) = (metrics.collect(), artifacts.collect());
        let cell = |list: &[String], i: usize| list.get(i).cloned().unwrap_or_default();
        let line = |i: usize| {
            let first = match i {
                0 => [self.step.clone(), self.kind.clone(), status.clone(), gate.into(), time.clone(), memory.clone()],
                _ => Default::default(),
            };
            first.into_iter().chain([cell(&metrics, i), cell(&artifacts, i)]).collect()
        };
        (0..metrics.len().max(artifacts.len()).max(1)).map(line).collect()
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{} min {:.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
    }
}

fn memory(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_everything_and_survives_the_disk() {
        let gate = Row {
            step: "gate".into(),
            kind: "gate".into(),
            status: Status::Failed,
            passed: Some(false),
            exit_code: Some(1),
            seconds: 75.25,
            peak_rss_bytes: 3 << 20,
            other_build: false,
            metrics: vec![("heldout.bits_per_byte".into(), "2.1".into()), ("b".into(), "1".into())],
            artifacts: vec![("runs/demo/gate.json".into(), "0123456789abcdef".into())],
        };
        let rest = Row { step: "sft".into(), kind: "stage".into(), ..Row::default() };
        let kept = Row { step: "ingest".into(), status: Status::Unchanged, other_build: true, ..Row::default() };
        let summary = Summary { version: 1, pipeline: "demo".into(), complete: false, steps: vec![kept, gate, rest] };
        let text = summary.markdown();
        for want in [
            "incomplete",
            "unchanged *",
            "FAILED (1)",
            "1 min 15 s",
            "3 MiB",
            "heldout.bits_per_byte 2.1",
            "b 1",
            "runs/demo/gate.json 0123456789ab ",
            "not reached",
            "another build",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
        let widths: Vec<usize> = text.lines().filter(|l| l.starts_with('|')).map(|l| l.chars().count()).collect();
        assert!(widths.len() == 6 && widths.iter().all(|w| *w == widths[0]), "{text}");
        let dir = tempfile::tempdir().unwrap();
        summary.write(dir.path()).unwrap();
        assert_eq!(Summary::load(dir.path()).unwrap().markdown(), text);
    }
}
