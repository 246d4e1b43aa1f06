//! What can go wrong on the judge's own side; a candidate's faults are no errors but part of the judgement.

use std::path::{Path, PathBuf};

use gates::artifact::ArtifactError;

use crate::sandbox::SandboxError;

pub(crate) type Result<T, E = JudgeError> = std::result::Result<T, E>;

/// Why nothing could be said about a candidate.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A file or folder of the judge or of the task could not be used.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// The path.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file could not be hashed, read or committed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The task is not one that can be judged.
    #[error("task {path}: {what}; correct the task, no candidate was judged")]
    Task {
        /// The task's folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The sandbox did not run a command as asked.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The judge's own part failed: what it owns did not build or did not answer.
    #[error("{step}: {what}; this says nothing about the candidate")]
    Own {
        /// The step.
        step: &'static str,
        /// What happened.
        what: String,
    },
    /// The judge's own part failed, every time and with this candidate only: a failure of the candidate, not of the judge.
    #[error(
        "{what}; it went wrong every time and with nothing harmless in its place, so the candidate brings it about"
    )]
    Provoked {
        /// What happened the last time.
        what: String,
    },
    /// A cache entry is not what was stored.
    #[error("cache entry {path} has changed since it was made; remove the folder and find out who writes there")]
    CacheChanged {
        /// The entry.
        path: PathBuf,
    },
    /// No toolchain was found.
    #[error("no Rust toolchain in {looked}; name its folder, the one with bin/cargo and lib/rustlib, with --toolchain")]
    NoToolchain {
        /// Where it was looked for.
        looked: String,
    },
    /// The list of candidates cannot be read.
    #[error("{path}:{line}: {what}; each line is {{\"task\": DIR, \"candidate\": DIR}}")]
    List {
        /// The list.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// Wraps an error of the operating system.
pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JudgeError {
    let path = path.to_path_buf();
    move |source| JudgeError::Io { op, path, source }
}
