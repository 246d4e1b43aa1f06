//! What can go wrong with rollouts on our side.

use std::path::PathBuf;

use eval_rust::judge::JudgeError;
use gates::artifact::ArtifactError;
use model_core::ModelError;
use trainer::TrainError;

use crate::tools::ExecutorError;

/// Why episodes could not be played or judged.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// A file or folder could not be used.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// The path.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file could not be read or committed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// There are no tasks.
    #[error("{path} has no task; expected a folder with a task.toml, or with such folders in it")]
    NoTasks {
        /// Where they were looked for.
        path: PathBuf,
    },
    /// Two tasks have one id.
    #[error("task id `{id}` is there twice, the second time in {path}; rename one of them")]
    SameId {
        /// The id.
        id: String,
        /// The second folder.
        path: PathBuf,
    },
    /// A planted task is not among the tasks.
    #[error("{path}: `{id}` is no task of this run; take it out of the list or add the task")]
    NotPlanted {
        /// The list.
        path: PathBuf,
        /// The id.
        id: String,
    },
    /// A prompt leaves the model no room.
    #[error(
        "task `{task}`: the prompt has {n_tokens} tokens of at most {max}; raise seq_len, or lower prompt.excerpt_lines"
    )]
    PromptTooLong {
        /// The task.
        task: String,
        /// Its tokens.
        n_tokens: usize,
        /// The longest episode.
        max: usize,
    },
    /// A file of rollouts is not what was written.
    #[error("{path}: {problem}; resume from a checkpoint of a step that begins a rollout, or remove the run")]
    Record {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A value that cannot be used.
    #[error("{key}: expected {expected}, got {got}")]
    Value {
        /// The key or option.
        key: &'static str,
        /// What would be taken.
        expected: String,
        /// What came.
        got: String,
    },
    /// The model or its format.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tool failed on our side.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// The judge could not begin.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// Training.
    #[error(transparent)]
    Train(#[from] Box<TrainError>),
}

impl RolloutError {
    /// Wraps an error of the operating system.
    pub(crate) fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { op, path, source }
    }
}

impl From<RolloutError> for TrainError {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::Train(error) => *error,
            RolloutError::Model(error) => Self::Model(error),
            other => {
                let exit_code = match &other {
                    RolloutError::Judge(JudgeError::NoToolchain { .. } | JudgeError::Sandbox(_))
                    | RolloutError::Executor(ExecutorError::Sandbox { .. }) => 4,
                    _ => 2,
                };
                Self::Outside { exit_code, cause: Box::new(other) }
            }
        }
    }
}
