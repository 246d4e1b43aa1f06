//! Verdicts in, rates out.

use crate::EvalError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a judge decided about one candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Task id.
    pub task: String,
    /// Candidate number within the task.
    pub candidate: u64,
    /// The crate compiled.
    pub compiled: bool,
    /// Every expected test ran and passed.
    pub tests_passed: bool,
    /// Clippy had nothing to say.
    pub clippy_clean: bool,
    /// Changed lines, added plus removed.
    pub diff_lines: u64,
}

/// Counts over verdicts; a rate is `count / n`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rates {
    /// Verdicts counted.
    pub n: u64,
    /// Candidates that compiled (`cargo_check_pass_rate`).
    pub compiled: u64,
    /// Candidates whose tests passed (`cargo_test_pass_rate`).
    pub tests_passed: u64,
    /// Candidates without clippy findings (`clippy_clean_rate`).
    pub clippy_clean: u64,
}

/// Reads verdicts from JSON lines.
///
/// # Errors
/// A line that is not a verdict, or that claims passed tests without a successful build, is an error naming file and line.
pub fn read_verdicts(path: &Path) -> Result<Vec<Verdict>, EvalError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| EvalError::Read { path: shown.clone(), source })?;
    let mut verdicts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let verdict: Verdict = serde_json::from_str(line).map_err(|source| EvalError::Line {
            path: shown.clone(),
            line: index + 1,
            source,
        })?;
        if verdict.tests_passed && !verdict.compiled {
            return Err(EvalError::Contradiction { path: shown, line: index + 1, task: verdict.task });
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

/// Counts the verdicts.
///
/// # Errors
/// `Empty` when there is no verdict: a rate over nothing must not look like one.
pub fn score(verdicts: &[Verdict]) -> Result<Rates, EvalError> {
    if verdicts.is_empty() {
        return Err(EvalError::Empty);
    }
    let count = |holds: fn(&Verdict) -> bool| verdicts.iter().filter(|v| holds(v)).count() as u64;
    Ok(Rates {
        n: verdicts.len() as u64,
        compiled: count(|v| v.compiled),
        tests_passed: count(|v| v.tests_passed),
        clippy_clean: count(|v| v.clippy_clean),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(compiled: bool, tests_passed: bool) -> Verdict {
        Verdict { task: "t".into(), candidate: 0, compiled, tests_passed, clippy_clean: compiled, diff_lines: 1 }
    }

    #[test]
    fn counts_each_rate_on_its_own() {
        let rates = score(&[verdict(true, true), verdict(true, false), verdict(false, false)]).unwrap();
        assert_eq!(rates, Rates { n: 3, compiled: 2, tests_passed: 1, clippy_clean: 2 });
        assert!(matches!(score(&[]), Err(EvalError::Empty)));
    }

    #[test]
    fn contradictions_and_unknown_fields_are_refused_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.jsonl");
        let good = serde_json::to_string(&verdict(true, true)).unwrap();
        std::fs::write(&path, format!("{good}\n{}\n", good.replace("\"compiled\":true", "\"compiled\":false")))
            .unwrap();
        assert!(matches!(read_verdicts(&path), Err(EvalError::Contradiction { line: 2, .. })));
        std::fs::write(&path, format!("{good}\n{}\n", good.replace("\"task\"", "\"extra\":1,\"task\""))).unwrap();
        assert!(matches!(read_verdicts(&path), Err(EvalError::Line { line: 2, .. })));
        std::fs::write(&path, format!("{good}\n")).unwrap();
        assert_eq!(read_verdicts(&path).unwrap(), vec![verdict(true, true)]);
    }
}
