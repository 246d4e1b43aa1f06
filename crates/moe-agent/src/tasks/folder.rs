//! A task as a folder: what is written, and what a bug report says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use eval_rust::judge::TaskKind;
use serde::Serialize;
use toml::Table;

use crate::MutationRecord;
use crate::mutate::{MutateError, Result, io};

/// Most bytes of a failing test's output in a description.
const MAX_EXCERPT: usize = 700;

/// Everything of a task but which of its tests fail.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) id: String,
    pub(crate) description: String,
    pub(crate) kind: TaskKind,
    pub(crate) manifest: Table,
    /// Files of `src/` with the fault, and without it.
    pub(crate) start: BTreeMap<String, String>,
    pub(crate) solution: BTreeMap<String, String>,
    /// Names of test files without `.rs`, and their texts.
    pub(crate) tests: BTreeMap<String, String>,
    pub(crate) functions: Vec<(String, Vec<String>, String)>,
    /// Tests stand in `start/` and `solution/`, where a candidate sees them.
    pub(crate) visible: bool,
    /// Seconds of all tests of a candidate.
    pub(crate) test_s: u64,
}

#[derive(Serialize)]
struct FunctionToml<'a> {
    path: &'a str,
    args: &'a [String],
    returns: &'a str,
}

#[derive(Serialize)]
struct LimitsToml {
    test_s: u64,
}

#[derive(Serialize)]
struct TaskToml<'a> {
    id: &'a str,
    description: &'a str,
    kind: TaskKind,
    fail_to_pass: &'a BTreeSet<String>,
    pass_to_pass: &'a BTreeSet<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_unsafe: bool,
    limits: LimitsToml,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    functions: Vec<FunctionToml<'a>>,
}

impl Draft {
    /// `file::name` of every test.
    pub(crate) fn test_names(&self) -> BTreeSet<String> {
        let names = |(stem, text): (&String, &String)| {
            super::hidden::test_names(text).into_iter().map(|name| format!("{stem}::{name}")).collect::<Vec<_>>()
        };
        self.tests.iter().flat_map(names).collect()
    }

    /// Writes the folder, which must not be there, with these tests as failing before.
    pub(crate) fn write(&self, dir: &Path, failing: &BTreeSet<String>) -> Result<()> {
        let passing: BTreeSet<String> = self.test_names().difference(failing).cloned().collect();
        let file = TaskToml {
            id: &self.id,
            description: &self.description,
            kind: self.kind,
            fail_to_pass: failing,
            pass_to_pass: &passing,
            allow_unsafe: self.kind == TaskKind::Functions
                && self.tests.is_empty()
                && super::hidden::has_unsafe(&self.solution),
            limits: LimitsToml { test_s: self.test_s },
            functions: self
                .functions
                .iter()
                .map(|(path, args, returns)| FunctionToml { path, args, returns })
                .collect(),
        };
        let text = toml::to_string(&file).map_err(|error| MutateError::Empty(format!("{}: {error}", self.id)))?;
        put(&dir.join("task.toml"), &text)?;
        for (folder, code) in [("start", &self.start), ("solution", &self.solution)] {
            put(&dir.join(folder).join("Cargo.toml"), &self.manifest.to_string())?;
            for (name, text) in code {
                put(&dir.join(folder).join(name), text)?;
            }
        }
        let folders: &[&str] = if self.visible { &["start", "solution"] } else { &["hidden"] };
        for folder in folders {
            for (stem, text) in &self.tests {
                put(&dir.join(folder).join(format!("tests/{stem}.rs")), text)?;
            }
        }
        Ok(())
    }
}

/// Writes a file of a folder that is committed as a whole.
fn put(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io("create", parent))?;
    }
    let mut file = std::fs::File::create(path).map_err(io("write", path))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(io("write", path))
}

/// A bug report, as somebody would write it who saw the failure; `pick` chooses the wording.
pub(crate) fn description(record: &MutationRecord, pick: usize) -> String {
    let name = record.repo.as_deref().unwrap_or("the crate");
    let file = record.file.as_deref().unwrap_or("src/lib.rs");
    let said = excerpt(&record.error_message);
    if !record.error_codes.is_empty() {
        let ask = [
            format!("`{name}` does not compile any more. The compiler says:"),
            format!("The build of `{name}` is broken since the last change of `{file}`:"),
            format!("Please repair `{file}`; `cargo check` of `{name}` fails:"),
        ];
        return format!("{}\n\n{said}\n\nMake it compile and keep what it is meant to do.", ask[pick % ask.len()]);
    }
    let first = record.failing_tests.first().map_or("a test", |test| test.rsplit("::").next().unwrap_or(test));
    let ask = [
        format!("`{name}` gives wrong results since the last change of `{file}`. The test `{first}` fails:"),
        format!("There is a bug in `{file}` of `{name}`. This is what the tests say:"),
        format!("Since the last release of `{name}` the test `{first}` does not pass any more:"),
    ];
    let end = "Find the fault and fix it; names and types of public functions stay as they are.";
    format!("{}\n\n{said}\n\n{end}", ask[pick % ask.len()])
}

/// The beginning of a message, without places in the file, which are others in the task.
fn excerpt(message: &str) -> String {
    let mut out = String::new();
    for line in message.trim().lines() {
        let line = match line.split_once(" panicked at ") {
            Some((thread, _)) if line.starts_with("thread '") => format!("{thread} panicked:"),
            _ => line.to_owned(),
        };
        if out.len() + line.len() > MAX_EXCERPT {
            break;
        }
        out += &line;
        out.push('\n');
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_quotes_the_failure_without_places() {
        let record = MutationRecord {
            repo: Some("gcd".into()),
            error_message: "test a ... FAILED\n\nthread 'a' panicked at src/lib.rs:3:5:\nassertion failed\n".into(),
            failing_tests: vec!["gcd::a".into()],
            ..MutationRecord::default()
        };
        for pick in 0..3 {
            let text = description(&record, pick);
            assert!(text.contains("`gcd`") && text.contains("thread 'a' panicked:\nassertion failed"), "{text}");
            assert!(!text.contains(":3:5"), "{text}");
        }
        let broken = MutationRecord { error_codes: vec!["E0308".into()], ..record };
        assert!(description(&broken, 0).contains("does not compile"));
    }
}
