//! Calls as the model writes them, and their arguments as types.

use model_core::harmony::{Message, parse_json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Tool;
use super::error::CallError;

/// Most bytes of the arguments of a call.
pub const MAX_ARGUMENT_BYTES: usize = 64 << 10;
/// The namespace of the tools.
const NAMESPACE: &str = "functions.";

/// A call: to whom, and the text of the arguments, whatever it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The recipient of the message, as `functions.run_tests`.
    pub recipient: String,
    /// The content of the message, which should be JSON.
    pub arguments: String,
}

impl ToolCall {
    /// A call as it was written.
    pub fn new(recipient: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self { recipient: recipient.into(), arguments: arguments.into() }
    }

    /// The call that a message of the model makes; `None` when it makes none.
    pub fn of(message: &Message) -> Option<Self> {
        let recipient = message.recipient.as_ref().filter(|_| message.is_call())?;
        Some(Self::new(recipient, message.text(false)))
    }

    /// The message that makes this call.
    pub fn message(&self) -> Message {
        Message::call(&self.recipient, &self.arguments)
    }

    /// Reads the arguments.
    ///
    /// # Errors
    /// [`CallError::UnknownTool`], [`CallError::TooLong`], [`CallError::Json`] and [`CallError::Arguments`].
    pub fn parse(&self) -> Result<Arguments, CallError> {
        let unknown = || CallError::UnknownTool { name: super::error::shown(&self.recipient) };
        let tool: Tool = self.recipient.strip_prefix(NAMESPACE).ok_or_else(unknown)?.parse()?;
        if self.arguments.len() > MAX_ARGUMENT_BYTES {
            return Err(CallError::TooLong { found: self.arguments.len() });
        }
        let text = self.arguments.as_bytes();
        parse_json::<serde::de::IgnoredAny>("arguments", text)
            .map_err(|error| CallError::Json { reason: error.to_string() })?;
        Ok(match tool {
            Tool::RunCommand => Arguments::RunCommand(typed(text)?),
            Tool::ReadFile => Arguments::ReadFile(typed(text)?),
            Tool::ApplyPatch => Arguments::ApplyPatch(typed(text)?),
            Tool::RepoSearch => Arguments::RepoSearch(typed(text)?),
            Tool::RunTests => Arguments::RunTests(typed(text)?),
            Tool::CargoDoc => Arguments::CargoDoc(typed(text)?),
            Tool::SearchCratesIo => Arguments::SearchCratesIo(typed(text)?),
            Tool::ReadError => Arguments::ReadError(typed(text)?),
        })
    }
}

fn typed<T: DeserializeOwned>(text: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(text).map_err(|error| CallError::Arguments { reason: error.to_string() })
}

/// The arguments of a call that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arguments {
    /// Of `run_command`.
    RunCommand(RunCommand),
    /// Of `read_file`.
    ReadFile(ReadFile),
    /// Of `apply_patch`.
    ApplyPatch(ApplyPatch),
    /// Of `repo_search`.
    RepoSearch(RepoSearch),
    /// Of `run_tests`.
    RunTests(RunTests),
    /// Of `cargo_doc`.
    CargoDoc(CargoDoc),
    /// Of `search_crates_io`.
    SearchCratesIo(SearchCratesIo),
    /// Of `read_error`.
    ReadError(ReadError),
}

impl Arguments {
    /// The tool that they are for.
    pub fn tool(&self) -> Tool {
        match self {
            Self::RunCommand(_) => Tool::RunCommand,
            Self::ReadFile(_) => Tool::ReadFile,
            Self::ApplyPatch(_) => Tool::ApplyPatch,
            Self::RepoSearch(_) => Tool::RepoSearch,
            Self::RunTests(_) => Tool::RunTests,
            Self::CargoDoc(_) => Tool::CargoDoc,
            Self::SearchCratesIo(_) => Tool::SearchCratesIo,
            Self::ReadError(_) => Tool::ReadError,
        }
    }

    /// The one spelling of these arguments: without spaces, keys in the order of the type, absent ones left out.
    pub fn canonical(&self) -> String {
        let text = match self {
            Self::RunCommand(it) => serde_json::to_string(it),
            Self::ReadFile(it) => serde_json::to_string(it),
            Self::ApplyPatch(it) => serde_json::to_string(it),
            Self::RepoSearch(it) => serde_json::to_string(it),
            Self::RunTests(it) => serde_json::to_string(it),
            Self::CargoDoc(it) => serde_json::to_string(it),
            Self::SearchCratesIo(it) => serde_json::to_string(it),
            Self::ReadError(it) => serde_json::to_string(it),
        };
        text.expect("texts and numbers become JSON")
    }

    /// The call with these arguments, canonically written.
    pub fn call(&self) -> ToolCall {
        ToolCall::new(format!("{NAMESPACE}{}", self.tool().name()), self.canonical())
    }
}

/// A program of the list and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunCommand {
    /// As `["cargo", "check"]`.
    pub command: Vec<String>,
}

/// A file, or its lines from `start` to `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Relative to the crate.
    pub path: String,
    /// First line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<usize>,
    /// Last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<usize>,
}

/// A text that stands once in a file, and what takes its place; a new file where `old` is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPatch {
    /// Relative to the crate.
    pub path: String,
    /// The text to replace.
    pub old: String,
    /// The text instead.
    pub new: String,
}

/// A text to look for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoSearch {
    /// The text, as it is.
    pub query: String,
    /// A file or folder to look in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Which tests to run; all of the library, programs and `tests/` without arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTests {
    /// Only tests whose name has this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// `lib`, or the name of a file in `tests/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// An item by its path, as `text::Words`; the crate itself where it is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CargoDoc {
    /// The path.
    pub item: String,
}

/// Words to find crates by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchCratesIo {
    /// The words.
    pub query: String,
}

/// A message of the compiler by its number in the last output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadError {
    /// From 1.
    pub number: usize,
}
