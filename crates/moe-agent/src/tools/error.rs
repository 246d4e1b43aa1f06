//! What is wrong with a call, which the model is told, and what is wrong here, which it is not.

use std::path::PathBuf;

use eval_rust::sandbox::{CollectError, SandboxError};
use serde::{Deserialize, Serialize};

use super::Tool;
use super::call::MAX_ARGUMENT_BYTES;

/// Most characters of a model's text that an error repeats.
const SHOWN: usize = 80;

/// Why a call was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such tool, or not in this conversation.
    Tool,
    /// The arguments are too long.
    TooLong,
    /// The arguments are no JSON, or give a key twice.
    Json,
    /// The arguments are not those of the tool.
    Arguments,
    /// A path leads elsewhere or to a file that is not to be changed.
    Path,
    /// A command or an argument that is not on the list.
    Command,
    /// The file, text, item or number is not there.
    NotFound,
    /// The text to replace stands there more than once, or the file would become too large.
    Patch,
}

impl Refusal {
    /// Whether the model wrote something that is no proper call; the others are calls that did not work out.
    pub fn is_bad_call(self) -> bool {
        matches!(self, Self::Tool | Self::TooLong | Self::Json | Self::Arguments | Self::Path)
    }
}

/// A call that is refused; the text is for the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No tool has this name.
    #[error("no tool `{name}`; the tools are those in the namespace functions")]
    UnknownTool {
        /// The name.
        name: String,
    },
    /// The tool was not declared.
    #[error("the tool `{}` is not available here", tool.name())]
    NotOffered {
        /// The tool.
        tool: Tool,
    },
    /// The arguments are too long.
    #[error("the arguments have {found} bytes, at most {MAX_ARGUMENT_BYTES} are read")]
    TooLong {
        /// Their length.
        found: usize,
    },
    /// The arguments are no JSON object, or have a key twice.
    #[error("the arguments are not JSON: {reason}")]
    Json {
        /// The parser's words.
        reason: String,
    },
    /// The arguments do not fit the tool.
    #[error("wrong arguments: {reason}")]
    Arguments {
        /// What does not fit.
        reason: String,
    },
    /// A path that is not taken.
    #[error("path `{path}`: {reason}")]
    Path {
        /// The path.
        path: String,
        /// The rule.
        reason: &'static str,
    },
    /// A command that is not on the list.
    #[error("command: {reason}")]
    Command {
        /// What is not allowed, and what is.
        reason: String,
    },
    /// Something is not there.
    #[error("{what} not found{hint}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// What may help, with its own beginning.
        hint: String,
    },
    /// A replacement that cannot be made.
    #[error("{path}: {reason}")]
    Patch {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl CallError {
    /// The kind of the error.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::UnknownTool { .. } | Self::NotOffered { .. } => Refusal::Tool,
            Self::TooLong { .. } => Refusal::TooLong,
            Self::Json { .. } => Refusal::Json,
            Self::Arguments { .. } => Refusal::Arguments,
            Self::Path { .. } => Refusal::Path,
            Self::Command { .. } => Refusal::Command,
            Self::NotFound { .. } => Refusal::NotFound,
            Self::Patch { .. } => Refusal::Patch,
        }
    }

    pub(super) fn path(path: &str, reason: &'static str) -> Self {
        Self::Path { path: shown(path), reason }
    }

    pub(super) fn not_found(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::NotFound { what: what.into(), hint: hint.into() }
    }
}

/// The beginning of a text on one line.
pub(super) fn shown(text: &str) -> String {
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    let more = if end < text.len() { "…" } else { "" };
    format!("{}{more}", text[..end].escape_debug())
}

/// A fault on this side: no result of the call, and no reward either way.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The sandbox did not run the command.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A folder could not be taken over.
    #[error("taking over {path}: {source}")]
    Collect {
        /// The folder.
        path: PathBuf,
        /// The reason.
        source: CollectError,
    },
    /// The system failed.
    #[error("cannot {op} {path}: {source}; check the work folder, its permissions and the free space")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A crate that tools cannot work on.
    #[error("the crate cannot be worked on: {reason}; lay it out anew or leave it out")]
    Crate {
        /// Why.
        reason: String,
    },
    /// The index of crates cannot be read.
    #[error("{path}:{line}: not an entry of the index of crates: {reason}; make the index anew")]
    Index {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Artifact(#[from] gates::artifact::ArtifactError),
}

/// Adds what was being done to an error of the system.
pub(super) fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ExecutorError {
    let path = path.to_path_buf();
    move |source| ExecutorError::Io { op, path, source }
}
