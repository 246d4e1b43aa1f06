//! Harmony, the chat format of GPT-OSS, over token ids: conversations to tokens, generated tokens to messages.
//!
//! As in [`crate::chat`], control tokens come from the format and every name and content is encoded as ordinary text,
//! so no text becomes a control token; [`Parser`] reads ids, so no text is taken for one either.
//!
//! ```text
//! conversation := message*
//! message := <|start|> header <|message|> content (<|end|> | <|call|> | <|return|>)
//! header  := role [":" name] [" to=" recipient] [<|channel|> channel] [" " [<|constrain|>] content_type]
//! ```
//! A tool's message begins with the tool's name in place of the role. Where the model writes a header, the recipient may
//! also follow the channel. Nothing stands between two messages.
//!
//! # Source
//! OpenAI, "OpenAI harmony response format" (2025), and the tokens that openai-harmony 0.0.8 gives.

use std::borrow::Cow;

use crate::error::ModelError;
use crate::tokenizer::Tokenizer;

mod conversation;
mod json;
mod o200k;
mod parse;
mod render;
mod tools;
mod training;
mod typescript;

pub use conversation::{
    Channel, ChannelConfig, Content, ContentType, Conversation, DeveloperContent, Effort, Message, Role, SystemContent,
};
pub use json::{MAX_JSON_BYTES, MessageJson, parse_json};
pub use o200k::O200kHarmony;
pub use parse::{End, Opening, Parsed, Parser, Partial};
pub use render::{Kind, Rendered, Span, Supervise};
pub use tools::{Tool, ToolNamespace};
pub use training::ExampleOptions;
pub use typescript::Json;

/// Most blank characters in a row that a text may have.
///
/// The encoders keep a state for each character of such a run, up to a limit of their own.
pub const MAX_BLANKS: usize = 1 << 16;

/// A vocabulary whose control tokens no text can produce.
pub trait Vocabulary {
    /// Encodes text as ordinary text.
    fn encode(&self, text: &str) -> Vec<u32>;

    /// The bytes a token stands for, a control token's being its spelling; `None` for an id without a token.
    fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>>;

    /// The id of a control token.
    fn control_id(&self, token: &str) -> Option<u32>;

    /// Whether the id is a control token.
    fn is_control(&self, id: u32) -> bool;
}

impl Vocabulary for Tokenizer {
    fn encode(&self, text: &str) -> Vec<u32> {
        self.encode(text)
    }

    fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.token_bytes(id).map(Cow::Borrowed)
    }

    fn control_id(&self, token: &str) -> Option<u32> {
        self.control_id(token)
    }

    fn is_control(&self, id: u32) -> bool {
        self.is_control(id)
    }
}

/// The format over one vocabulary.
#[derive(Clone, Copy)]
pub struct Harmony<'a> {
    vocabulary: &'a dyn Vocabulary,
    start: u32,
    message: u32,
    channel: u32,
    constrain: u32,
    end: u32,
    call: u32,
    done: u32,
}

impl std::fmt::Debug for Harmony<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harmony").field("start", &self.start).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Harmony<'static> {
    /// The format over GPT-OSS's own vocabulary, [`O200kHarmony`], which is built at the first call.
    ///
    /// # Errors
    /// As [`O200kHarmony::shared`].
    pub fn o200k() -> Result<Self, ModelError> {
        Self::new(O200kHarmony::shared()?)
    }
}

impl<'a> Harmony<'a> {
    /// The control tokens of the format.
    pub const CONTROL_TOKENS: [&'static str; 7] =
        ["<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];

    /// The format over a vocabulary.
    ///
    /// # Errors
    /// [`ModelError::MissingControlToken`] when the vocabulary lacks one of [`Self::CONTROL_TOKENS`].
    pub fn new(vocabulary: &'a dyn Vocabulary) -> Result<Self, ModelError> {
        let mut ids = [0; 7];
        for (id, token) in ids.iter_mut().zip(Self::CONTROL_TOKENS) {
            let missing = ModelError::MissingControlToken { token, format: "harmony" };
            *id = vocabulary.control_id(token).ok_or(missing)?;
        }
        let [start, message, channel, constrain, end, call, done] = ids;
        Ok(Self { vocabulary, start, message, channel, constrain, end, call, done })
    }

    /// The ids that end the model's turn: `<|return|>` and `<|call|>`.
    ///
    /// `<|end|>` is none of them: the model goes on with its next message.
    pub fn stop_ids(&self) -> [u32; 2] {
        [self.done, self.call]
    }

    /// The id of `<|end|>`, after which the model goes on with its next message.
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// The text of the tokens, control tokens written out; bytes that are not UTF-8 and unknown ids become U+FFFD.
    ///
    /// For people: the text does not tell a control token from one spelled in a content.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(&self.vocabulary.bytes(id).unwrap_or(Cow::Borrowed("\u{fffd}".as_bytes())));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests;
