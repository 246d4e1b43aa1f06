//! Conversations in JSON, in the shape of openai-harmony's `Conversation.to_json`.

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::conversation::{Content, ContentType, Conversation, DeveloperContent, Message, SystemContent};
use crate::error::ModelError;
use crate::hf::json;

/// Largest JSON text that is read.
pub const MAX_JSON_BYTES: usize = 64 << 20;

/// A message as files have it: `role`, `name`, `content`, `channel`, `recipient`, `content_type`.
///
/// The content is a text, or a list of `{"type": "text", "text": …}`, of one `system_content` or `developer_content`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageJson {
    role: String,
    name: Option<String>,
    #[serde(deserialize_with = "text_or_parts")]
    content: Vec<RawContent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum RawContent {
    Text(RawText),
    SystemContent(Box<SystemContent>),
    DeveloperContent(Box<DeveloperContent>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawText {
    text: String,
}

/// A content is a list of parts, or one text.
fn text_or_parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RawContent>, D::Error> {
    struct TextOrParts;

    impl<'de> Visitor<'de> for TextOrParts {
        type Value = Vec<RawContent>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of contents")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![RawContent::Text(RawText { text: text.into() })])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
            let mut parts = Vec::new();
            while let Some(part) = sequence.next_element()? {
                parts.push(part);
            }
            Ok(parts)
        }
    }

    deserializer.deserialize_any(TextOrParts)
}

impl TryFrom<MessageJson> for Message {
    type Error = ModelError;

    fn try_from(raw: MessageJson) -> Result<Self, ModelError> {
        let content = raw.content.into_iter().map(|part| match part {
            RawContent::Text(RawText { text }) => Content::Text(text),
            RawContent::SystemContent(system) => Content::System(system),
            RawContent::DeveloperContent(developer) => Content::Developer(developer),
        });
        Ok(Self {
            role: raw.role.parse()?,
            name: raw.name,
            recipient: raw.recipient,
            channel: raw.channel.map(|name| name.parse()).transpose()?,
            content_type: raw.content_type.as_deref().map(ContentType::from_spelling),
            content: content.collect(),
        })
    }
}

impl From<&Message> for MessageJson {
    fn from(message: &Message) -> Self {
        let part = |content: &Content| match content.clone() {
            Content::Text(text) => RawContent::Text(RawText { text }),
            Content::System(system) => RawContent::SystemContent(system),
            Content::Developer(developer) => RawContent::DeveloperContent(developer),
        };
        Self {
            role: message.role.name().into(),
            name: message.name.clone(),
            content: message.content.iter().map(part).collect(),
            channel: message.channel.map(|channel| channel.name().into()),
            recipient: message.recipient.clone(),
            content_type: message.content_type.as_ref().map(ContentType::spelling),
        }
    }
}

/// Parses a JSON text of at most [`MAX_JSON_BYTES`] into a type that keeps the order of keys.
///
/// # Errors
/// [`ModelError::Json`] when the text is too long, is not JSON, gives a key twice, or does not fit the type.
pub fn parse_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &[u8]) -> Result<T, ModelError> {
    json::parse(what, text, MAX_JSON_BYTES)?;
    serde_json::from_slice(text).map_err(|error| ModelError::Json { what, reason: error.to_string() })
}

impl TryFrom<Vec<MessageJson>> for Conversation {
    type Error = ModelError;

    /// Reads the names; what the messages say is checked by [`Conversation::check`].
    fn try_from(messages: Vec<MessageJson>) -> Result<Self, ModelError> {
        Ok(Self { messages: messages.into_iter().map(Message::try_from).collect::<Result<_, _>>()? })
    }
}
