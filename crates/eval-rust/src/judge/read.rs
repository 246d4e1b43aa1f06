//! Judgements from a file that the judge wrote.

use std::path::{Path, PathBuf};

use gates::artifact::{ArtifactError, read_bounded};

use super::report::{Judgement, Status, VERSION};

/// Most bytes of a file of judgements.
const MAX_BYTES: u64 = 1 << 30;

/// Why a file of judgements cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Something in it is no judgement.
    #[error(
        "{path}: judgement {number}: {source}; `eval-rust judge` writes these files, judge again with this version"
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// Number of the judgement, from 1.
        number: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A judgement contradicts itself.
    #[error("{path}: judgement {number} of task `{task}`: {what}; the file was changed or damaged, judge again")]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Number of the judgement, from 1.
        number: usize,
        /// Its task.
        task: String,
        /// What does not fit.
        what: &'static str,
    },
}

/// Reads one judgement or many, as `eval-rust judge` writes them.
///
/// # Errors
/// What is no judgement of this version, or says passed where it cannot be.
pub fn read_judgements(path: &Path) -> Result<Vec<Judgement>, ReadError> {
    let bytes = read_bounded(path, MAX_BYTES)?;
    let mut judgements = Vec::new();
    for (i, judgement) in serde_json::Deserializer::from_slice(&bytes).into_iter::<Judgement>().enumerate() {
        let number = i + 1;
        let judgement = judgement.map_err(|source| ReadError::Json { path: path.into(), number, source })?;
        if let Some(what) = contradiction(&judgement) {
            return Err(ReadError::Contradiction { path: path.into(), number, task: judgement.task, what });
        }
        judgements.push(judgement);
    }
    Ok(judgements)
}

fn contradiction(judgement: &Judgement) -> Option<&'static str> {
    let good = judgement.compiled || judgement.tests_passed || judgement.clippy_clean || judgement.formatted;
    [
        (judgement.version != VERSION, "another version of the format"),
        (judgement.passed && !(judgement.compiled && judgement.tests_passed), "passed without compiling or tests"),
        (judgement.tests_passed && judgement.tests_ok != judgement.tests_expected, "tests passed that did not"),
        (judgement.status == Status::Refused && (judgement.passed || good), "refused and yet good at something"),
        (judgement.status == Status::Error && judgement.passed, "an error and yet passed"),
    ]
    .into_iter()
    .find_map(|(bad, what)| bad.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgements_survive_the_disk_and_contradictions_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j.jsonl");
        let mut good = Judgement::new("t", 1);
        (good.status, good.compiled, good.tests_passed, good.passed) = (Status::Judged, true, true, true);
        let line = serde_json::to_string(&good).unwrap();
        std::fs::write(&path, format!("{line}\n{}\n", serde_json::to_string_pretty(&good).unwrap())).unwrap();
        assert_eq!(read_judgements(&path).unwrap(), [good.clone(), good.clone()]);
        for (old, new, want) in [
            ("\"compiled\":true", "\"compiled\":false", "without compiling"),
            ("\"tests_ok\":0", "\"tests_ok\":1", "that did not"),
            ("\"status\":\"judged\"", "\"status\":\"error\"", "an error"),
            ("\"status\":\"judged\"", "\"status\":\"refused\"", "refused"),
            ("\"version\":2", "\"version\":3", "another version"),
            ("\"seed\"", "\"seeds\"", "unknown field `seeds`"),
        ] {
            std::fs::write(&path, format!("{line}\n{}\n", line.replace(old, new))).unwrap();
            let got = read_judgements(&path).unwrap_err().to_string();
            assert!(got.contains(want) && got.contains("judgement 2"), "{got}");
        }
    }
}
