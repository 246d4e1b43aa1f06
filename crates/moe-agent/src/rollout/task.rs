//! A Rust task as an environment: its description and a look at its files, calls that are executed, an answer.

use std::sync::Arc;

use model_core::harmony::{Conversation, Message};
use serde::{Deserialize, Serialize};
use trainer::config::is_default;

use super::{Environment, Files, RolloutError, Step};
use crate::tools::{Executor, PromptStyle, Tool, ToolCall, opening};

/// A file that tools make and no task has.
const LOCK_FILE: &str = "Cargo.lock";

/// What the model is told of a task, and what it may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptKeys {
    /// How much is said around the task.
    pub style: PromptStyle,
    /// The tools.
    pub tools: Vec<Tool>,
    /// Lines of the task's sources that are shown, over all files.
    #[serde(skip_serializing_if = "is_default")]
    pub excerpt_lines: usize,
    /// Most bytes of a tool's output, about.
    pub output_bytes: usize,
    /// Whether messages of the compiler are given as one line each even where they fit in full.
    #[serde(skip_serializing_if = "is_default")]
    pub brief: bool,
}

impl Default for PromptKeys {
    /// Everything that there is, and no file.
    fn default() -> Self {
        let (style, tools) = (PromptStyle::Full, Tool::ALL.to_vec());
        Self { style, tools, excerpt_lines: 0, output_bytes: 4096, brief: false }
    }
}

impl PromptKeys {
    /// Patches alone, and little said: for models with a short context, which see so many lines of the sources.
    pub fn compact(excerpt_lines: usize) -> Self {
        Self { style: PromptStyle::Compact, tools: vec![Tool::ApplyPatch], excerpt_lines, ..Self::default() }
    }

    /// The conversation that a task begins with.
    pub fn conversation(&self, description: &str, files: &Files) -> Conversation {
        opening(self.style, &self.tools, &format!("{description}{}", self.excerpt(files)))
    }

    /// Whether a tool runs programs, which takes a toolchain and a sandbox.
    pub fn runs_programs(&self) -> bool {
        let plain = [Tool::ApplyPatch, Tool::ReadFile, Tool::RepoSearch, Tool::SearchCratesIo, Tool::ReadError];
        self.tools.iter().any(|tool| !plain.contains(tool))
    }

    /// The first lines of the sources, as trajectories show them.
    fn excerpt(&self, files: &Files) -> String {
        let (mut left, mut text) = (self.excerpt_lines, String::new());
        let sources = files.iter().filter(|(path, _)| path.starts_with("src/") && path.ends_with(".rs"));
        for (path, bytes) in sources {
            let source = String::from_utf8_lossy(bytes);
            let shown: Vec<&str> = source.lines().take(left).collect();
            if shown.is_empty() {
                break;
            }
            left -= shown.len();
            text += &format!("\n\n{path}:1\n```\n{}\n```", shown.join("\n"));
        }
        text
    }
}

/// A task's crate while a model works on it.
#[derive(Debug)]
pub struct TaskEnvironment<'a> {
    prompt: Arc<Conversation>,
    executor: Executor<'a>,
    has_lock: bool,
}

impl<'a> TaskEnvironment<'a> {
    /// A task at its beginning; `has_lock` says whether the task itself has a `Cargo.lock`.
    pub fn new(prompt: Arc<Conversation>, executor: Executor<'a>, has_lock: bool) -> Self {
        Self { prompt, executor, has_lock }
    }
}

impl Environment for TaskEnvironment<'_> {
    fn prompt(&self) -> Conversation {
        (*self.prompt).clone()
    }

    fn act(&mut self, message: &Message) -> Result<Step, RolloutError> {
        let Some(call) = ToolCall::of(message) else { return Ok(Step::Done) };
        let result = self.executor.call(&call)?;
        if result.is_bad_call() {
            return Ok(Step::Malformed(result.output().to_owned()));
        }
        Ok(Step::Reply { messages: vec![result.message()], trouble: result.trouble() })
    }

    fn candidate(&self) -> Files {
        let mut files = self.executor.files().clone();
        if !self.has_lock {
            files.remove(LOCK_FILE);
        }
        files
    }
}

/// Files with a lock file, so that executors need not make one each time. `locked` makes it where programs will read it.
pub(super) fn with_lock(
    mut files: Files,
    locked: Option<&dyn Fn(Files) -> Result<Files, RolloutError>>,
) -> Result<Files, RolloutError> {
    match locked {
        _ if files.contains_key(LOCK_FILE) => Ok(files),
        Some(locked) => locked(files),
        None => {
            files.insert(LOCK_FILE.to_owned(), Vec::new());
            Ok(files)
        }
    }
}

/// Whether a crate comes with a lock file.
pub(super) fn has_lock(files: &Files) -> bool {
    files.contains_key(LOCK_FILE)
}
