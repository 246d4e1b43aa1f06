//! A trajectory while it is made, and what of it goes to disk.

use model_core::harmony::{Channel, Content, Conversation, Message, MessageJson, Role};
use serde::{Deserialize, Serialize};

use super::change::Edit;
use super::error::TrajectoryError;
use crate::tools::{Status, ToolCall, ToolResult};

/// What a trajectory teaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Tests fail because an expression or a function is wrong.
    FixFailingTests,
    /// The crate does not compile.
    FixCompilationErrors,
    /// The crate's own code panics.
    FixPanics,
    /// Clippy has something to say.
    FixClippyWarnings,
    /// A function is missing and its tests are there.
    AddFeatureWithTdd,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::FixFailingTests,
        Self::FixCompilationErrors,
        Self::FixPanics,
        Self::FixClippyWarnings,
        Self::AddFeatureWithTdd,
    ];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::FixFailingTests => "fix_failing_tests",
            Self::FixCompilationErrors => "fix_compilation_errors",
            Self::FixPanics => "fix_panics",
            Self::FixClippyWarnings => "fix_clippy_warnings",
            Self::AddFeatureWithTdd => "add_feature_with_tdd",
        }
    }
}

/// What the model of a conversation says and does, in order.
///
/// The only way for a tool's message to come in is a [`ToolResult`], which only an executor makes and which brings its
/// call along; so no call here has another result than its own, and no text passes for one:
///
/// ```compile_fail,E0308
/// let mut trajectory = moe_agent::trajectories::Trajectory::default();
/// trajectory.executed("ok: 9 passed");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Trajectory {
    messages: Vec<Message>,
    /// Places in `messages` that are not trained on.
    untrained: Vec<usize>,
    calls: Vec<ExecutedCall>,
}

impl Trajectory {
    /// The model thinks; what follows a thought directly is the same message.
    pub fn think(&mut self, text: impl Into<String>) {
        let at = self.messages.len().wrapping_sub(1);
        let open = self.messages.last_mut().filter(|last| last.channel == Some(Channel::Analysis));
        match open.filter(|_| !self.untrained.contains(&at)).and_then(|last| last.content.last_mut()) {
            Some(Content::Text(said)) => *said += &format!(" {}", text.into()),
            _ => self.messages.push(Message::assistant(Channel::Analysis, text)),
        }
    }

    /// The model calls a tool and reads what came of it.
    pub fn executed(&mut self, result: ToolResult) {
        self.messages.push(result.call().message());
        self.messages.push(result.message());
        self.calls.push(ExecutedCall::of(&result));
    }

    /// An attempt that turns out wrong: as [`Self::think`] and [`Self::executed`], trained on only if `trained`.
    pub fn wrong_attempt(&mut self, thought: impl Into<String>, result: ToolResult, trained: bool) {
        let at = self.messages.len();
        self.messages.push(Message::assistant(Channel::Analysis, thought));
        self.executed(result);
        if !trained {
            self.untrained.extend([at, at + 1]);
        }
    }

    /// How many tools were called.
    pub fn n_calls(&self) -> usize {
        self.calls.len()
    }

    /// The conversation: `opening`, what was said and done, and the answer.
    ///
    /// # Errors
    /// [`TrajectoryError::Opening`] when the opening has messages of the model or of tools.
    pub fn finish(self, opening: Conversation, answer: impl Into<String>) -> Result<Finished, TrajectoryError> {
        let model = |message: &Message| matches!(message.role, Role::Assistant | Role::Tool);
        if opening.messages.iter().any(model) {
            return Err(TrajectoryError::Opening);
        }
        let n = opening.messages.len();
        let mut conversation = opening;
        conversation.messages.extend(self.messages);
        conversation.messages.push(Message::assistant(Channel::Final, answer));
        let untrained = self.untrained.into_iter().map(|at| at + n).collect();
        Ok(Finished { conversation, untrained, calls: self.calls })
    }
}

/// A whole trajectory.
#[derive(Debug, Clone)]
pub struct Finished {
    conversation: Conversation,
    untrained: Vec<usize>,
    calls: Vec<ExecutedCall>,
}

impl Finished {
    /// The conversation.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Places of the model's messages that are not trained on.
    pub fn untrained(&self) -> &[usize] {
        &self.untrained
    }

    /// The calls with their hashes.
    pub fn calls(&self) -> &[ExecutedCall] {
        &self.calls
    }
}

/// A call that was executed, as files have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutedCall {
    /// As `functions.run_tests`.
    pub recipient: String,
    /// The text of the arguments.
    pub arguments: String,
    /// BLAKE3 of tool, canonical arguments and workspace.
    pub call_hash: String,
    /// How it ended.
    pub status: Status,
    /// BLAKE3 of call hash, status and output.
    pub result_hash: String,
}

impl ExecutedCall {
    /// What there is to keep of a result.
    pub(super) fn of(result: &ToolResult) -> Self {
        let ToolCall { recipient, arguments } = result.call().clone();
        Self {
            recipient,
            arguments,
            call_hash: result.call_hash().into(),
            status: result.status(),
            result_hash: result.hash().into(),
        }
    }
}

/// A line of `records/`: what a stage trains on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordLine {
    pub(super) id: String,
    pub(super) task: Kind,
    /// Crate and version.
    pub(super) source: String,
    pub(super) licence: String,
    pub(super) messages: Vec<MessageJson>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) untrained: Vec<usize>,
}

/// A line of `calls.jsonl`: what it takes to execute a record again, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallsLine {
    pub(super) id: String,
    /// Folder of the crate.
    pub(super) krate: String,
    /// BLAKE3 over the crate's files.
    pub(super) crate_hash: String,
    /// How the start differs from the crate.
    pub(super) start: Vec<Edit>,
    pub(super) calls: Vec<ExecutedCall>,
    /// BLAKE3 of the record's line.
    pub(super) record_hash: String,
    pub(super) n_tokens: usize,
    pub(super) wrong_attempts: usize,
}
