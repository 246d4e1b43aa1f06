//! What can go wrong while pairs and tasks are made.

use std::path::{Path, PathBuf};

use eval_rust::judge::JudgeError;
use eval_rust::sandbox::{CollectError, SandboxError};
use gates::artifact::ArtifactError;

/// Result of this module.
pub(crate) type Result<T, E = MutateError> = std::result::Result<T, E>;

/// Why pairs or tasks could not be made; a source that cannot be used is no error but a line of the report.
#[derive(Debug, thiserror::Error)]
pub enum MutateError {
    /// The system failed.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Reading or writing a file of ours failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A folder could not be read.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The sandbox could not run a command.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The judge failed.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// A file of settings, or a list, does not say what it must.
    #[error("{path}: {what}")]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// A program of ours did not do what it must.
    #[error("{tool}: {what}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// What it did.
        what: String,
    },
    /// Nothing usable came out.
    #[error("{0}")]
    Empty(String),
}

/// Turns an error of the system into one that says what was tried.
pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> MutateError {
    let path = path.to_path_buf();
    move |source| MutateError::Io { op, path, source }
}
