//! What can go wrong with trajectories.

use std::path::PathBuf;

use eval_rust::judge::JudgeError;
use eval_rust::sandbox::SandboxError;

use crate::AgentError;
use crate::tools::ExecutorError;

/// Why no trajectories were made, or why they were not replayed.
#[derive(Debug, thiserror::Error)]
pub enum TrajectoryError {
    /// The configuration cannot be read.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key has a value that cannot be used.
    #[error("key `{key}`: {reason}")]
    Key {
        /// The key.
        key: &'static str,
        /// What was expected, and what to do.
        reason: String,
    },
    /// An opening that is not one.
    #[error("an opening has only messages of the system, the developer and the user; the rest must be executed")]
    Opening,
    /// The output belongs to another run.
    #[error("{path} is of another configuration or other data; choose another output folder or remove it")]
    OtherRun {
        /// The file.
        path: PathBuf,
    },
    /// The output is complete already.
    #[error("{path} is there already; choose another output folder or remove it")]
    Exists {
        /// The manifest.
        path: PathBuf,
    },
    /// A file of trajectories is not what it should be.
    #[error("{path}: {reason}; make the trajectories again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file or folder of the system.
    #[error("cannot {op} {path}: {source}; check the path, its permissions and the free space")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The executor failed.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// The sandbox cannot be set up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// No toolchain.
    #[error(transparent)]
    Toolchain(#[from] JudgeError),
    /// Mutation records.
    #[error(transparent)]
    Mutations(#[from] AgentError),
    /// The list of sources.
    #[error(transparent)]
    Sources(#[from] crate::mutate::MutateError),
    /// Hashes and writes.
    #[error(transparent)]
    Artifact(#[from] gates::artifact::ArtifactError),
    /// The tokenizer or the format.
    #[error(transparent)]
    Model(#[from] model_core::ModelError),
}

impl TrajectoryError {
    /// Whether this machine lacks what the sandbox needs.
    pub fn lacks_layer(&self) -> bool {
        let (Self::Sandbox(error) | Self::Executor(ExecutorError::Sandbox(error))) = self else { return false };
        matches!(error, SandboxError::Missing { .. })
    }
}

/// Adds what was being done to an error of the system.
pub(super) fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> TrajectoryError {
    let path = path.to_path_buf();
    move |source| TrajectoryError::Io { op, path, source }
}
