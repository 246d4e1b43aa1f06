//! Conversations: who says what to whom, and what cannot be said.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::tools::{self, ToolNamespace};
use crate::error::ModelError;

/// The recipient that means everybody, which is not written.
pub(super) const EVERYBODY: &str = "all";
/// How a constrained content type is spelled in JSON.
const CONSTRAIN: &str = "<|constrain|>";

/// Who a message is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The frame: identity, effort, built-in tools, channels.
    System,
    /// Instructions and function tools, what other formats call the system prompt.
    Developer,
    /// The person.
    User,
    /// The model: the only role that is trained on.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::System, Self::Developer, Self::User, Self::Assistant, Self::Tool];

    /// The name in headers and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|role| role.name() == name);
        found.ok_or_else(|| ModelError::HarmonyRole { role: name.escape_debug().to_string() })
    }
}

/// What a message of the model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Thinking, and calls of the built-in tools; not for the user.
    Analysis,
    /// Calls of functions, and what the user may see of a plan.
    Commentary,
    /// The answer.
    Final,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 3] = [Self::Analysis, Self::Commentary, Self::Final];

    /// The name in headers and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Analysis => "analysis",
            Self::Commentary => "commentary",
            Self::Final => "final",
        }
    }
}

impl FromStr for Channel {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|channel| channel.name() == name);
        found.ok_or_else(|| ModelError::HarmonyChannel { channel: name.escape_debug().to_string() })
    }
}

/// What the content of a message is written in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContentType {
    /// A type behind `<|constrain|>`: the sampler was or is to be held to it.
    Constrained(String),
    /// A bare word.
    Plain(String),
}

impl ContentType {
    /// Reads the spelling of JSON files, where `<|constrain|>` stands before a constrained type.
    pub fn from_spelling(text: &str) -> Self {
        text.strip_prefix(CONSTRAIN).map_or_else(|| Self::Plain(text.into()), |name| Self::Constrained(name.into()))
    }

    /// The spelling of JSON files.
    pub fn spelling(&self) -> String {
        match self {
            Self::Constrained(name) => format!("{CONSTRAIN}{name}"),
            Self::Plain(name) => name.clone(),
        }
    }

    /// The type without the mark.
    pub fn name(&self) -> &str {
        let (Self::Constrained(name) | Self::Plain(name)) = self;
        name
    }
}

/// How much the model is to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effort {
    /// Little.
    #[serde(alias = "low")]
    Low,
    /// The default.
    #[serde(alias = "medium")]
    Medium,
    /// Much.
    #[serde(alias = "high")]
    High,
}

impl Effort {
    /// The name in the system message.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// The channels that the system message names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelConfig {
    /// Names of channels; the line is left out when there are none.
    pub valid_channels: Vec<String>,
    /// Whether every message of the model must have one.
    pub channel_required: bool,
}

/// What a system message says; what is absent is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemContent {
    /// The first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_identity: Option<String>,
    /// How much to think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<Effort>,
    /// Today, as `2025-06-28`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_start_date: Option<String>,
    /// The end of the model's knowledge, as `2024-06`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge_cutoff: Option<String>,
    /// The channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_config: Option<ChannelConfig>,
    /// Built-in tools by name; functions belong to the developer's message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<BTreeMap<String, ToolNamespace>>,
}

impl Default for SystemContent {
    /// The content that GPT-OSS was trained with: medium effort, all three channels, no date, no tools.
    fn default() -> Self {
        let valid_channels = Channel::ALL.iter().map(|channel| channel.name().to_owned()).collect();
        Self {
            model_identity: Some("You are ChatGPT, a large language model trained by OpenAI.".into()),
            reasoning_effort: Some(Effort::Medium),
            conversation_start_date: None,
            knowledge_cutoff: Some("2024-06".into()),
            channel_config: Some(ChannelConfig { valid_channels, channel_required: true }),
            tools: None,
        }
    }
}

impl SystemContent {
    /// The text; `has_functions` says whether a developer's message declares functions.
    pub fn text(&self, has_functions: bool) -> String {
        let lines = [
            self.model_identity.clone(),
            self.knowledge_cutoff.as_ref().map(|date| format!("Knowledge cutoff: {date}")),
            self.conversation_start_date.as_ref().map(|date| format!("Current date: {date}")),
        ];
        let top: Vec<String> = lines.into_iter().flatten().collect();
        let mut sections = Vec::new();
        if !top.is_empty() {
            sections.push(top.join("\n"));
        }
        sections.extend(self.reasoning_effort.map(|effort| format!("Reasoning: {}", effort.name())));
        sections.extend(self.tools.as_ref().filter(|tools| !tools.is_empty()).map(tools::section));
        if let Some(config) = self.channel_config.as_ref().filter(|config| !config.valid_channels.is_empty()) {
            let required = if config.channel_required { " Channel must be included for every message." } else { "" };
            let functions = if has_functions {
                "\nCalls to these tools must go to the commentary channel: 'functions'."
            } else {
                ""
            };
            sections.push(format!("# Valid channels: {}.{required}{functions}", config.valid_channels.join(", ")));
        }
        sections.join("\n\n")
    }
}

/// What a developer message says; what is absent is not written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeveloperContent {
    /// The instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// Tools by the name of their namespace; functions are in `functions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<BTreeMap<String, ToolNamespace>>,
}

impl DeveloperContent {
    /// The text.
    pub fn text(&self) -> String {
        let instructions = self.instructions.as_ref().map(|text| format!("# Instructions\n\n{text}"));
        let tools = self.tools.as_ref().filter(|tools| !tools.is_empty()).map(tools::section);
        instructions.into_iter().chain(tools).collect::<Vec<_>>().join("\n\n")
    }

    fn has_functions(&self) -> bool {
        self.tools
            .as_ref()
            .and_then(|tools| tools.get("functions"))
            .is_some_and(|functions| !functions.tools.is_empty())
    }
}

/// A part of a message's content; parts follow each other without a separator, and no token spans two of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Text as it is.
    Text(String),
    /// The fields of a system message.
    System(Box<SystemContent>),
    /// The fields of a developer message.
    Developer(Box<DeveloperContent>),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// The name of the user or assistant, or the tool's, which it must have.
    pub name: Option<String>,
    /// Whom it is for: a tool's name, `assistant` for a tool's result, everybody when absent.
    pub recipient: Option<String>,
    /// What it is for.
    pub channel: Option<Channel>,
    /// What its content is written in.
    pub content_type: Option<ContentType>,
    /// What is said.
    pub content: Vec<Content>,
}

impl Message {
    /// A text of this role to everybody.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        let content = vec![Content::Text(text.into())];
        Self { role, name: None, recipient: None, channel: None, content_type: None, content }
    }

    /// A message of the model on a channel.
    pub fn assistant(channel: Channel, text: impl Into<String>) -> Self {
        Self { channel: Some(channel), ..Self::new(Role::Assistant, text) }
    }

    /// The model's call of a function, with its arguments as JSON.
    pub fn call(recipient: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self {
            recipient: Some(recipient.into()),
            content_type: Some(ContentType::Constrained("json".into())),
            ..Self::assistant(Channel::Commentary, arguments)
        }
    }

    /// The result of a tool, for the model.
    pub fn tool_result(name: impl Into<String>, channel: Channel, text: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            recipient: Some(Role::Assistant.name().into()),
            channel: Some(channel),
            ..Self::new(Role::Tool, text)
        }
    }

    /// The content as it is written; `has_functions` as for [`SystemContent::text`].
    pub fn text(&self, has_functions: bool) -> String {
        self.texts(has_functions).concat()
    }

    /// The parts of the content, which are encoded one by one.
    pub(super) fn texts(&self, has_functions: bool) -> Vec<String> {
        let text = |content: &Content| match content {
            Content::Text(text) => text.clone(),
            Content::System(system) => system.text(has_functions),
            Content::Developer(developer) => developer.text(),
        };
        self.content.iter().map(text).collect()
    }

    /// Whether it is the model's call of a tool.
    pub fn is_call(&self) -> bool {
        self.role == Role::Assistant && self.recipient.as_ref().is_some_and(|name| name != EVERYBODY)
    }

    /// Checks what can be said of the message without its content; `index` is its place in the conversation.
    ///
    /// # Errors
    /// [`ModelError::HarmonyMessage`] when a tool has no name or a role's, a name, recipient or content type is not one
    /// word, a system, developer or user message has a recipient or a channel, or a call stands on `final`.
    pub fn check_header(&self, index: usize) -> Result<(), ModelError> {
        let wrong = |what, expected, got: &str| {
            let got = got.escape_debug().to_string();
            Err(ModelError::HarmonyMessage { index, role: self.role.name(), what, expected, got })
        };
        let words = [
            ("name", self.name.as_deref()),
            ("recipient", self.recipient.as_deref()),
            ("content type", self.content_type.as_ref().map(ContentType::name)),
        ];
        for (what, word) in words.into_iter().filter_map(|(what, word)| word.map(|word| (what, word))) {
            let blank = |c: char| c.is_whitespace() || c.is_control();
            if word.is_empty() || word.contains(blank) || word.starts_with("to=") {
                return wrong(what, "one word that does not begin with `to=`", word);
            }
        }
        let recipient = self.recipient.as_deref().filter(|name| *name != EVERYBODY);
        match (self.role, self.name.as_deref()) {
            (Role::Tool, None) => return wrong("name", "the name of the tool", "none"),
            (Role::Tool, Some(name)) if claims_role(name) => {
                return wrong("name", "a tool's name, which no role has", name);
            }
            (Role::Tool, Some(name)) if recipient.is_none() && !is_tool_name(name) => {
                return wrong("recipient", "`assistant`, since the name alone does not show a tool", "none");
            }
            _ => {}
        }
        if !matches!(self.role, Role::Assistant | Role::Tool) {
            if let Some(name) = recipient {
                return wrong("recipient", "none, only an assistant or a tool addresses somebody", name);
            }
            if let Some(channel) = self.channel {
                return wrong("channel", "none, only an assistant or a tool has one", channel.name());
            }
        }
        if self.is_call() && self.channel == Some(Channel::Final) {
            return wrong("channel", "commentary or analysis for a call", Channel::Final.name());
        }
        Ok(())
    }

    /// Checks the content; `index` is the message's place in the conversation.
    ///
    /// # Errors
    /// [`ModelError::HarmonyMessage`] when system or developer fields stand in another role's message or a namespace
    /// of tools under another name, and [`ModelError::HarmonyCall`] when a call of content type json is not JSON.
    pub fn check_content(&self, index: usize) -> Result<(), ModelError> {
        let wrong = |what, expected, got: String| {
            Err(ModelError::HarmonyMessage { index, role: self.role.name(), what, expected, got })
        };
        for content in &self.content {
            let tools = match content {
                Content::System(system) if self.role == Role::System => &system.tools,
                Content::Developer(developer) if self.role == Role::Developer => &developer.tools,
                Content::Text(_) => continue,
                Content::System(_) => return wrong("content", "text", "system_content".into()),
                Content::Developer(_) => return wrong("content", "text", "developer_content".into()),
            };
            for (key, namespace) in tools.iter().flatten() {
                if *key != namespace.name {
                    let got = format!("`{}` under `{}`", namespace.name.escape_debug(), key.escape_debug());
                    return wrong("tools", "every namespace under its own name", got);
                }
            }
            if let Content::System(system) = content {
                let named = system.channel_config.iter().flat_map(|config| &config.valid_channels);
                named.map(|channel| channel.parse::<Channel>()).collect::<Result<Vec<_>, _>>()?;
            }
        }
        let json = self.content_type.as_ref().is_some_and(|content_type| content_type.name() == "json");
        match &self.recipient {
            Some(recipient) if json && self.is_call() => {
                let parsed = serde_json::from_str::<IgnoredAny>(&self.text(false));
                let reason = |error: serde_json::Error| ModelError::HarmonyCall {
                    index,
                    recipient: recipient.escape_debug().to_string(),
                    reason: error.to_string(),
                };
                parsed.map(drop).map_err(reason)
            }
            _ => Ok(()),
        }
    }
}

/// Whether a tool of this name would be taken for a role.
fn claims_role(name: &str) -> bool {
    let first = name.split(':').next().unwrap_or(name);
    Role::ALL.iter().any(|role| role.name() == first)
}

/// Whether the name alone shows a tool: a function in its namespace, or a built-in one.
pub(super) fn is_tool_name(name: &str) -> bool {
    name.contains('.') || ToolNamespace::builtins().iter().any(|tool| tool.name == name)
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The messages in order.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// Whether a developer's message declares functions, which the system message then mentions.
    pub fn has_functions(&self) -> bool {
        let mut contents = self.messages.iter().flat_map(|message| &message.content);
        contents.any(|content| matches!(content, Content::Developer(developer) if developer.has_functions()))
    }

    /// The first system message's fields, to change the effort or the built-in tools.
    ///
    /// # Errors
    /// [`ModelError::HarmonyNoSystem`] when there is none with fields.
    pub fn system_mut(&mut self) -> Result<&mut SystemContent, ModelError> {
        let mut contents = self.messages.iter_mut().flat_map(|message| &mut message.content);
        let found = contents.find_map(|content| match content {
            Content::System(system) => Some(&mut **system),
            _ => None,
        });
        found.ok_or(ModelError::HarmonyNoSystem)
    }

    /// The same conversation with every content as the one text that is written, which is what parsing gives back.
    pub fn flattened(&self) -> Self {
        let has_functions = self.has_functions();
        let flat = |message: &Message| Message {
            content: vec![Content::Text(message.text(has_functions))],
            ..message.clone()
        };
        Self { messages: self.messages.iter().map(flat).collect() }
    }

    /// Checks every message.
    ///
    /// # Errors
    /// As [`Message::check_header`] and [`Message::check_content`].
    pub fn check(&self) -> Result<(), ModelError> {
        self.messages.iter().enumerate().try_for_each(|(index, message)| {
            message.check_header(index)?;
            message.check_content(index)
        })
    }
}
