//! Mutation pairs: whole files, never a bare expression against a whole file.

use crate::AgentError;
use crate::mutate::apply_diff;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One repaired mutant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutationRecord {
    /// The whole source file with the mutation applied.
    pub buggy_code: String,
    /// What the failing test or the compiler printed, build noise removed.
    pub error_message: String,
    /// The whole source file that passes.
    pub fixed_code: String,
    /// The crate the file comes from.
    pub repo: Option<String>,
    /// Path of the file inside that crate.
    pub file: Option<String>,
    /// The crate's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The crate's licence, an SPDX expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// What kind of fault it is: a genre of `cargo-mutants`, or a kind of edit such as `missing clone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genre: Option<String>,
    /// What was changed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutation: Option<String>,
    /// The function that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Unified diff from the faulty file to the fixed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// Tests that fail with the fault and pass with the fix: `path::name` of a unit test, `file::name` of one in `tests/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing_tests: Vec<String>,
    /// Codes of the compiler's errors, where the faulty file does not compile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub error_codes: Vec<String>,
}

/// Smallest share of lines that two versions of one file have in common before the pair is taken for a fragment.
const MIN_SHARED_LINES: f64 = 0.5;

impl MutationRecord {
    /// Why the record cannot be used, if so.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.error_message.trim().is_empty() {
            return Some("the error message is empty");
        }
        if self.buggy_code == self.fixed_code {
            return Some("buggy and fixed code are equal");
        }
        let fixed: std::collections::HashSet<&str> = self.fixed_code.lines().collect();
        let shared = self.buggy_code.lines().filter(|line| fixed.contains(line)).count();
        let longest = self.buggy_code.lines().count().max(self.fixed_code.lines().count());
        if (shared as f64) < MIN_SHARED_LINES * longest as f64 {
            return Some("buggy and fixed code share too few lines to be two versions of one file");
        }
        if let Some(diff) = &self.diff
            && apply_diff(&self.buggy_code, diff).as_deref() != Some(&self.fixed_code)
        {
            return Some("the diff does not make the fixed code of the buggy code");
        }
        None
    }
}

/// Reads mutation pairs from JSON lines and refuses the ones that cannot teach a repair.
///
/// # Errors
/// The first unusable line, by file and line number.
pub fn read_mutations(path: &Path) -> Result<Vec<MutationRecord>, AgentError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| AgentError::Read { path: shown.clone(), source })?;
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record: MutationRecord = serde_json::from_str(line).map_err(|source| AgentError::Line {
            path: shown.clone(),
            line: index + 1,
            source,
        })?;
        if let Some(problem) = record.problem() {
            return Err(AgentError::Unusable { path: shown, line: index + 1, problem });
        }
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(buggy: &str, fixed: &str) -> MutationRecord {
        let (buggy_code, fixed_code) = (buggy.to_owned(), fixed.to_owned());
        MutationRecord { buggy_code, error_message: "assertion failed".into(), fixed_code, ..MutationRecord::default() }
    }

    fn read(records: &[MutationRecord]) -> Result<Vec<MutationRecord>, AgentError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let lines: Vec<String> = records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        read_mutations(&path)
    }

    #[test]
    fn s21_a_bare_expression_against_a_whole_file_is_refused() {
        let whole = "fn f() -> u32 {\n    1\n}\n\nfn g() -> u32 {\n    2\n}\n";
        let good = record(&whole.replace('2', "3"), whole);
        assert_eq!(read(std::slice::from_ref(&good)).unwrap(), vec![good.clone()]);
        assert!(matches!(read(&[good, record("3", whole)]), Err(AgentError::Unusable { line: 2, .. })));
    }

    #[test]
    fn s21_a_diff_that_was_not_applied_is_refused() {
        let mut record = record("a\nb\nc\n", "a\nb\nd\n");
        record.diff = Some(crate::mutate::unified_diff("src/lib.rs", &record.buggy_code, &record.fixed_code));
        assert_eq!(read(std::slice::from_ref(&record)).unwrap(), vec![record.clone()]);
        record.diff = record.diff.map(|diff| diff.replace("+d", "+e"));
        assert!(matches!(read(&[record]), Err(AgentError::Unusable { line: 1, .. })));
    }

    #[test]
    fn records_of_five_fields_are_still_read() {
        let line = r#"{"buggy_code":"a\nb\nc","error_message":"x","fixed_code":"a\nb\nd","repo":null,"file":null}"#;
        let record: MutationRecord = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
    }

    #[test]
    fn equal_code_and_missing_errors_are_refused() {
        let mut silent = record("a\nb\nc", "a\nb\nd");
        silent.error_message = "  ".into();
        assert!(matches!(read(&[silent]), Err(AgentError::Unusable { line: 1, .. })));
        assert!(matches!(read(&[record("a", "a")]), Err(AgentError::Unusable { line: 1, .. })));
    }
}
