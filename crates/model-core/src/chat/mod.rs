//! Conversations as token ids by construction: who said every token, and which tokens are trained on.
//!
//! A conversation becomes ids piece by piece: control ids come from the format, contents from
//! [`Tokenizer::encode`], which cannot produce a control id. So a content that spells `<|im_end|>` stays a content,
//! and no piece merges with its neighbour.

use std::fmt;
use std::str::FromStr;

use crate::error::ModelError;
use crate::tokenizer::Tokenizer;

mod template;

/// Who a message is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model: the only role that is trained on.
    Assistant,
    /// The result of a tool the model called.
    Tool,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::System, Self::User, Self::Assistant, Self::Tool];

    /// The name in data files and chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
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
        found.ok_or_else(|| ModelError::UnknownRole { role: name.escape_debug().to_string() })
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said, always ordinary text.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chat {
    /// The messages in order.
    pub messages: Vec<Message>,
}

/// One token of a rendered conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatToken {
    /// The token.
    pub id: u32,
    /// The role of the message it belongs to, header and end included.
    pub role: Role,
    /// Whether it is trained on: the content of an assistant message and the token that ends it.
    pub supervised: bool,
}

/// What the model said, cut out of generated ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The text before the first control token.
    pub content: String,
    /// Whether a control token closed the turn; without one the reply was cut off.
    pub ended: bool,
    /// Tokens after the control token that closed the turn, which are thrown away.
    pub discarded: usize,
}

/// How a conversation is written as tokens.
///
/// # Source
/// ChatML: OpenAI, "Chat Markup Language" (2023). Llama 3: Meta, "Llama 3 model card and prompt formats" (2024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChatFormat {
    /// `<|im_start|>role⏎content<|im_end|>⏎`.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|>⏎⏎content<|eot_id|>` after one `<|begin_of_text|>`.
    Llama3,
}

/// A stretch of a rendered message: a control token by name, or ordinary text.
enum Piece<'a> {
    Control(&'static str),
    Text(&'a str),
}

impl FromStr for ChatFormat {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| ModelError::UnknownChatFormat { format: name.escape_debug().to_string() })
    }
}

impl ChatFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::ChatMl, Self::Llama3];

    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ChatMl => "chatml",
            Self::Llama3 => "llama3",
        }
    }

    /// The format whose control tokens the tokenizer has.
    ///
    /// # Errors
    /// When it has none of them complete.
    pub fn detect(tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        let complete = |format: &Self| format.control_tokens().iter().all(|t| tokenizer.control_id(t).is_some());
        let found = Self::ALL.into_iter().find(complete);
        found.ok_or_else(|| Self::ChatMl.missing(Self::ChatMl.end_of_turn()))
    }

    /// The control tokens this format cannot do without.
    pub fn control_tokens(self) -> &'static [&'static str] {
        match self {
            Self::ChatMl => &["<|im_start|>", "<|im_end|>"],
            Self::Llama3 => &["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        }
    }

    /// The token that ends a message.
    pub fn end_of_turn(self) -> &'static str {
        match self {
            Self::ChatMl => "<|im_end|>",
            Self::Llama3 => "<|eot_id|>",
        }
    }

    /// The token that ends a document outside conversations; it also pads.
    pub fn end_of_document(self) -> &'static str {
        match self {
            Self::ChatMl => "<|endoftext|>",
            Self::Llama3 => "<|end_of_text|>",
        }
    }

    /// The token every sequence begins with, if any.
    pub fn begin(self) -> Option<&'static str> {
        match self {
            Self::ChatMl => None,
            Self::Llama3 => Some("<|begin_of_text|>"),
        }
    }

    /// The name of a role inside the header.
    fn header_name(self, role: Role) -> &'static str {
        match (self, role) {
            (Self::Llama3, Role::Tool) => "ipython",
            _ => role.name(),
        }
    }

    /// The tokens of a conversation, for training.
    ///
    /// # Errors
    /// When the conversation has nothing to train on (no assistant message), or the tokenizer lacks a control token.
    pub fn render(self, chat: &Chat, tokenizer: &Tokenizer) -> Result<Vec<ChatToken>, ModelError> {
        let tokens = self.messages(chat, tokenizer)?;
        if !tokens.iter().any(|token| token.supervised) {
            return Err(ModelError::NothingSupervised { n_messages: chat.messages.len() });
        }
        Ok(tokens)
    }

    /// The tokens of a conversation and the header of the assistant's answer to it, for generation.
    ///
    /// A prefix of what [`Self::render`] makes of the conversation with that answer.
    ///
    /// # Errors
    /// When the tokenizer lacks a control token.
    pub fn render_prompt(self, chat: &Chat, tokenizer: &Tokenizer) -> Result<Vec<ChatToken>, ModelError> {
        let mut tokens = self.messages(chat, tokenizer)?;
        self.header(Role::Assistant, tokenizer, &mut tokens)?;
        Ok(tokens)
    }

    /// The ids that end a reply: every control token, since none belongs inside one.
    pub fn stop_ids(self, tokenizer: &Tokenizer) -> Vec<u32> {
        tokenizer.control_tokens().map(|(_, id)| id).collect()
    }

    /// The reply in generated ids: up to the first control token, whatever that is.
    pub fn parse_reply(self, ids: &[u32], tokenizer: &Tokenizer) -> Reply {
        let end = ids.iter().position(|&id| tokenizer.is_control(id));
        let content = tokenizer.decode(&ids[..end.unwrap_or(ids.len())]);
        Reply { content, ended: end.is_some(), discarded: end.map_or(0, |at| ids.len() - at - 1) }
    }

    fn messages(self, chat: &Chat, tokenizer: &Tokenizer) -> Result<Vec<ChatToken>, ModelError> {
        let mut tokens = Vec::new();
        if let Some(begin) = self.begin() {
            let role = chat.messages.first().map_or(Role::System, |message| message.role);
            self.push(Piece::Control(begin), role, false, tokenizer, &mut tokens)?;
        }
        for message in &chat.messages {
            let (role, supervised) = (message.role, message.role == Role::Assistant);
            self.header(role, tokenizer, &mut tokens)?;
            self.push(Piece::Text(&message.content), role, supervised, tokenizer, &mut tokens)?;
            self.push(Piece::Control(self.end_of_turn()), role, supervised, tokenizer, &mut tokens)?;
            if self == Self::ChatMl {
                self.push(Piece::Text("\n"), role, false, tokenizer, &mut tokens)?;
            }
        }
        Ok(tokens)
    }

    fn header(self, role: Role, tokenizer: &Tokenizer, tokens: &mut Vec<ChatToken>) -> Result<(), ModelError> {
        let name = self.header_name(role);
        let line = format!("{name}\n");
        let pieces = match self {
            Self::ChatMl => vec![Piece::Control("<|im_start|>"), Piece::Text(&line)],
            Self::Llama3 => vec![
                Piece::Control("<|start_header_id|>"),
                Piece::Text(name),
                Piece::Control("<|end_header_id|>"),
                Piece::Text("\n\n"),
            ],
        };
        pieces.into_iter().try_for_each(|piece| self.push(piece, role, false, tokenizer, tokens))
    }

    fn push(
        self,
        piece: Piece<'_>,
        role: Role,
        supervised: bool,
        tokenizer: &Tokenizer,
        tokens: &mut Vec<ChatToken>,
    ) -> Result<(), ModelError> {
        let ids = match piece {
            Piece::Text(text) => tokenizer.encode(text),
            Piece::Control(name) => vec![tokenizer.control_id(name).ok_or_else(|| self.missing(name))?],
        };
        tokens.extend(ids.into_iter().map(|id| ChatToken { id, role, supervised }));
        Ok(())
    }

    fn missing(self, token: &'static str) -> ModelError {
        ModelError::MissingControlToken { token, format: self.name() }
    }
}

#[cfg(test)]
mod tests;
