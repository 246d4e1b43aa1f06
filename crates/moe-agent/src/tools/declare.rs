//! The tools as a model is told of them, and how a conversation with them begins.

use std::collections::BTreeMap;

use model_core::harmony::{
    Content, Conversation, DeveloperContent, Message, Role, SystemContent, Tool as Declared, ToolNamespace,
};
use serde::{Deserialize, Serialize};

use super::Tool;

/// How much is said around the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptStyle {
    /// System message, instructions, tools with descriptions.
    #[default]
    Full,
    /// The tools with their arguments, for models with a short context.
    Compact,
}

const INSTRUCTIONS: &str = "You are a Rust engineer working on one crate. Use the tools: look before you change \
something, change as little as possible, and run the tests before you answer. apply_patch replaces a text that occurs \
exactly once in a file. Do not change tests.";

impl Tool {
    fn description(self) -> &'static str {
        match self {
            Self::RunCommand => "Runs cargo check, build, test, clippy or fmt, rustc --explain, or ls.",
            Self::ReadFile => "Reads a file, or its lines from start to end.",
            Self::ApplyPatch => {
                "Replaces old, which must occur exactly once in the file, by new; an empty old makes a new file."
            }
            Self::RepoSearch => "Finds the lines that contain a text.",
            Self::RunTests => "Runs the tests, all or those whose name contains filter.",
            Self::CargoDoc => "Shows the documentation of an item of this crate.",
            Self::SearchCratesIo => "Finds crates by name and words.",
            Self::ReadError => "Shows one compiler message of the last output in full.",
        }
    }

    /// The schema of the arguments.
    fn schema(self) -> &'static str {
        match self {
            Self::RunCommand => {
                r#"{"type":"object","properties":{"command":{"type":"array","items":{"type":"string"}}},"required":["command"]}"#
            }
            Self::ReadFile => {
                r#"{"type":"object","properties":{"path":{"type":"string"},"start":{"type":"number"},"end":{"type":"number"}},"required":["path"]}"#
            }
            Self::ApplyPatch => {
                r#"{"type":"object","properties":{"path":{"type":"string"},"old":{"type":"string"},"new":{"type":"string"}},"required":["path","old","new"]}"#
            }
            Self::RepoSearch => {
                r#"{"type":"object","properties":{"query":{"type":"string"},"path":{"type":"string"}},"required":["query"]}"#
            }
            Self::RunTests => {
                r#"{"type":"object","properties":{"filter":{"type":"string"},"target":{"type":"string"}}}"#
            }
            Self::CargoDoc => r#"{"type":"object","properties":{"item":{"type":"string"}},"required":["item"]}"#,
            Self::SearchCratesIo => {
                r#"{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}"#
            }
            Self::ReadError => r#"{"type":"object","properties":{"number":{"type":"number"}},"required":["number"]}"#,
        }
    }
}

/// The namespace `functions` with these tools, for a developer's message.
pub fn declarations(tools: &[Tool]) -> ToolNamespace {
    let declared = |tool: &Tool| Declared {
        name: tool.name().into(),
        description: tool.description().into(),
        parameters: Some(serde_json::from_str(tool.schema()).expect("the schemas are part of the program")),
    };
    ToolNamespace::functions(tools.iter().map(declared).collect())
}

/// A conversation up to the request: what the model is told before its first turn.
pub fn opening(style: PromptStyle, tools: &[Tool], request: &str) -> Conversation {
    let mut namespace = declarations(tools);
    let compact = style == PromptStyle::Compact;
    if compact {
        for tool in &mut namespace.tools {
            tool.description.clear();
        }
    }
    let message = |role, content| Message { content: vec![content], ..Message::new(role, "") };
    let developer = DeveloperContent {
        instructions: (!compact).then(|| INSTRUCTIONS.into()),
        tools: Some(BTreeMap::from([("functions".to_owned(), namespace)])),
    };
    let mut messages = vec![message(Role::Developer, Content::Developer(Box::new(developer)))];
    if !compact {
        messages.insert(0, message(Role::System, Content::System(Box::<SystemContent>::default())));
    }
    messages.push(Message::new(Role::User, request));
    Conversation { messages }
}
