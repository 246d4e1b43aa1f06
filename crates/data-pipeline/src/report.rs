//! What came in, what went out, and why the rest did not: counted per step, printed as a table, stored as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Counts of one step of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name of the step.
    pub name: String,
    /// Rows that came in.
    pub rows_in: u64,
    /// Rows that went on.
    pub rows_out: u64,
    /// Bytes (or tokens, where the name says so) that came in.
    pub bytes_in: u64,
    /// Bytes (or tokens) that went on.
    pub bytes_out: u64,
    /// Rows that did not go on, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Other counts of interest.
    pub notes: BTreeMap<String, u64>,
}

impl Step {
    /// A step with nothing counted yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Counts a row of `bytes_in` that went on with `bytes_out`.
    pub fn keep(&mut self, bytes_in: usize, bytes_out: usize) {
        self.rows_in += 1;
        self.rows_out += 1;
        self.bytes_in += bytes_in as u64;
        self.bytes_out += bytes_out as u64;
    }

    /// Counts a row of `bytes_in` that was dropped.
    pub fn drop_row(&mut self, bytes_in: usize, reason: &str) {
        self.rows_in += 1;
        self.bytes_in += bytes_in as u64;
        *self.dropped.entry(reason.to_owned()).or_default() += 1;
    }
}

/// The steps of one command, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The command.
    pub command: String,
    /// Its steps.
    pub steps: Vec<Step>,
}

impl Report {
    /// A report over finished steps.
    pub fn new(command: &str, steps: Vec<Step>) -> Self {
        Self { command: command.to_owned(), steps }
    }

    /// The JSON text of `report.json`; `dir` is named if it cannot be made.
    ///
    /// # Errors
    /// [`crate::DataError::Json`].
    pub fn to_json(&self, dir: &Path) -> Result<String> {
        crate::folder::json_text(dir, self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.steps.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).max(self.command.len());
        writeln!(
            f,
            "{:width$}  {:>10} {:>10} {:>14} {:>14}",
            self.command, "rows in", "rows out", "bytes in", "bytes out"
        )?;
        for step in &self.steps {
            let Step { name, rows_in, rows_out, bytes_in, bytes_out, .. } = step;
            writeln!(f, "{name:width$}  {rows_in:>10} {rows_out:>10} {bytes_in:>14} {bytes_out:>14}")?;
            for (reason, n) in &step.dropped {
                writeln!(f, "{:width$}  {n:>10} dropped: {reason}", "")?;
            }
            for (what, n) in &step.notes {
                writeln!(f, "{:width$}  {n:>10} {what}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_step_and_reason() {
        let mut step = Step::new("quality");
        step.keep(10, 8);
        step.drop_row(5, "too few words");
        step.drop_row(6, "too few words");
        step.notes.insert("masked".into(), 3);
        let report = Report::new("ingest", vec![step]);
        let table = report.to_string();
        let squeezed: Vec<String> = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(squeezed[1], "quality 3 1 21 8");
        assert_eq!(squeezed[2], "2 dropped: too few words");
        assert_eq!(squeezed[3], "3 masked");
        let json = report.to_json(Path::new("out")).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
