//! A Rust task as an environment: its description and a look at its files, patches, an answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use model_core::harmony::{Channel, Content, Conversation, DeveloperContent, Message, Role, Tool, ToolNamespace};
use serde::{Deserialize, Serialize};
use trainer::config::is_default;

use super::{Environment, Files, RolloutError, Step};

const APPLY_PATCH: &str = "functions.apply_patch";
const SCHEMA: &str = r#"{"type":"object","properties":{"path":{"type":"string"},"old":{"type":"string"},"new":{"type":"string"}},"required":["path","old","new"]}"#;

/// What the model is told of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptKeys {
    /// A system message and instructions besides the tools.
    #[serde(skip_serializing_if = "is_default")]
    pub full: bool,
    /// Lines of the task's sources that are shown, over all files; none by default.
    #[serde(skip_serializing_if = "is_default")]
    pub excerpt_lines: usize,
}

/// A task's crate while a model works on it.
#[derive(Debug)]
pub struct TaskEnvironment {
    prompt: Arc<Conversation>,
    files: Files,
}

/// The arguments of `apply_patch`: `old` stands exactly once in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: String,
    old: String,
    new: String,
}

impl PromptKeys {
    /// The conversation that a task begins with.
    pub fn conversation(&self, description: &str, files: &Files) -> Conversation {
        let parameters = serde_json::from_str(SCHEMA).expect("the schema is part of the program");
        let description_of_tool = "Replaces old, which occurs exactly once in the file, by new.";
        let tool = Tool {
            name: "apply_patch".into(),
            description: if self.full { description_of_tool.into() } else { String::new() },
            parameters: Some(parameters),
        };
        let instructions = "You are a Rust engineer working on one crate. Change as little as possible, then answer.";
        let developer = DeveloperContent {
            instructions: self.full.then(|| instructions.into()),
            tools: Some(BTreeMap::from([("functions".to_owned(), ToolNamespace::functions(vec![tool]))])),
        };
        let message = |role, content| Message { content: vec![content], ..Message::new(role, "") };
        let system = self.full.then(|| message(Role::System, Content::System(Box::default())));
        let developer = message(Role::Developer, Content::Developer(Box::new(developer)));
        let user = Message::new(Role::User, format!("{description}{}", self.excerpt(files)));
        Conversation { messages: system.into_iter().chain([developer, user]).collect() }
    }

    /// The first lines of the sources.
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
            text += &format!("\n\n{path}:\n{}", shown.join("\n"));
        }
        text
    }
}

impl TaskEnvironment {
    /// A task at its beginning.
    pub fn new(prompt: Arc<Conversation>, files: Files) -> Self {
        Self { prompt, files }
    }

    fn patch(&mut self, patch: Patch) -> Result<String, String> {
        let Patch { path, old, new } = patch;
        let bytes = self.files.get(&path).ok_or_else(|| format!("no file `{path}`"))?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        match text.match_indices(&old).count() {
            _ if old.is_empty() => Err("old is empty".into()),
            1 => {
                self.files.insert(path.clone(), text.replacen(&old, &new, 1).into_bytes());
                Ok(format!("{path}: patched"))
            }
            n => Err(format!("old occurs {n} times in `{path}`")),
        }
    }
}

impl Environment for TaskEnvironment {
    fn prompt(&self) -> Conversation {
        (*self.prompt).clone()
    }

    fn act(&mut self, message: &Message) -> Result<Step, RolloutError> {
        let Some(recipient) = message.recipient.as_ref().filter(|_| message.is_call()) else { return Ok(Step::Done) };
        if recipient != APPLY_PATCH {
            return Ok(Step::Malformed(format!("no tool `{}`", recipient.escape_debug())));
        }
        let patch = match serde_json::from_str(&message.text(false)) {
            Ok(patch) => patch,
            Err(error) => return Ok(Step::Malformed(error.to_string())),
        };
        let (text, trouble) = match self.patch(patch) {
            Ok(text) => (text, None),
            Err(text) => (text.clone(), Some(text)),
        };
        let messages = vec![Message::tool_result(APPLY_PATCH, Channel::Commentary, text)];
        Ok(Step::Reply { messages, trouble })
    }

    fn candidate(&self) -> Files {
        self.files.clone()
    }
}
