//! Tokens to messages, one token at a time: a conversation, or what the model wrote after its prompt.

use super::Harmony;
use super::conversation::{Channel, Content, ContentType, Message, Role, is_tool_name};
use crate::error::ModelError;

/// Where the tokens begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// At the first message of a conversation, which must be whole.
    Conversation,
    /// Behind the `<|start|>` and this role of a prompt; the last message may be cut off in its content.
    Completion(Role),
}

/// What ended a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// `<|end|>`: another message follows.
    End,
    /// `<|call|>`: a tool is to answer.
    Call,
    /// `<|return|>`: the model is done.
    Return,
    /// Nothing: the tokens stop inside the content, perhaps inside a character.
    Cut,
}

impl End {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Call => "call",
            Self::Return => "return",
            Self::Cut => "cut",
        }
    }
}

/// Messages out of tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// The messages, each with one text as its content.
    pub messages: Vec<Message>,
    /// What ended each of them; only the last can be [`End::Cut`].
    pub ends: Vec<End>,
}

impl Parsed {
    /// Whether the last message is whole.
    pub fn is_complete(&self) -> bool {
        self.ends.last() != Some(&End::Cut)
    }
}

/// How far the message in work has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Partial<'p> {
    /// Between two messages: nothing is missing.
    Nothing,
    /// In the header.
    Header,
    /// In the content: the message with an empty content, and the text so far, whole characters only.
    Content(&'p Message, &'p str),
}

/// A part of a header as it came.
#[derive(Debug)]
enum Piece {
    Channel,
    Constrain,
    Text(Vec<u8>),
}

#[derive(Debug)]
enum State {
    Between,
    Header {
        preset: Option<Role>,
        pieces: Vec<Piece>,
    },
    /// `tail` are bytes of a character that is not whole yet.
    Content {
        message: Message,
        text: String,
        tail: Vec<u8>,
    },
}

/// Reads tokens one at a time.
///
/// After an error the rest of the tokens has no meaning and the parser is to be dropped.
#[derive(Debug)]
pub struct Parser<'h> {
    harmony: Harmony<'h>,
    opening: Opening,
    state: State,
    parsed: Parsed,
    position: usize,
}

impl<'h> Parser<'h> {
    /// A parser before its first token.
    pub fn new(harmony: Harmony<'h>, opening: Opening) -> Self {
        let state = match opening {
            Opening::Conversation => State::Between,
            Opening::Completion(role) => State::Header { preset: Some(role), pieces: Vec::new() },
        };
        Self { harmony, opening, state, parsed: Parsed::default(), position: 0 }
    }

    /// Takes a token; returns what it ended, if it ended a message.
    ///
    /// # Errors
    /// [`ModelError::HarmonyToken`] for an id without a token and for a control token in a place where it cannot
    /// stand, [`ModelError::HarmonyHeader`], [`ModelError::HarmonyRole`], [`ModelError::HarmonyChannel`], and those
    /// of [`Message::check_header`].
    pub fn push(&mut self, id: u32) -> Result<Option<End>, ModelError> {
        let position = self.position;
        self.position += 1;
        let harmony = self.harmony;
        let unexpected = |expected| {
            let got =
                harmony.vocabulary.bytes(id).map(|bytes| String::from_utf8_lossy(&bytes).escape_debug().to_string());
            let got = got.map_or_else(|| format!("{id}"), |token| format!("{id} `{token}`"));
            Err(ModelError::HarmonyToken { position, expected, got })
        };
        let ordinary = harmony.vocabulary.bytes(id).filter(|_| !harmony.vocabulary.is_control(id));
        match &mut self.state {
            State::Between if id == harmony.start => self.state = State::Header { preset: None, pieces: Vec::new() },
            State::Between => return unexpected("<|start|>"),
            State::Header { pieces, .. } => match ordinary {
                Some(bytes) => match pieces.last_mut() {
                    Some(Piece::Text(text)) => text.extend_from_slice(&bytes),
                    _ => pieces.push(Piece::Text(bytes.into_owned())),
                },
                None if id == harmony.channel => pieces.push(Piece::Channel),
                None if id == harmony.constrain => pieces.push(Piece::Constrain),
                None if id == harmony.message => self.open_content(position)?,
                None => return unexpected("the rest of a header and <|message|>"),
            },
            State::Content { text, tail, .. } => match ordinary {
                Some(bytes) => {
                    tail.extend_from_slice(&bytes);
                    take_characters(text, tail);
                }
                None if id == harmony.end => return Ok(self.close_content(End::End)),
                None if id == harmony.call => return Ok(self.close_content(End::Call)),
                None if id == harmony.done => return Ok(self.close_content(End::Return)),
                None => return unexpected("content or a token that ends it"),
            },
        }
        Ok(None)
    }

    /// How far the message in work has come.
    pub fn partial(&self) -> Partial<'_> {
        match &self.state {
            State::Between => Partial::Nothing,
            State::Header { .. } => Partial::Header,
            State::Content { message, text, .. } => Partial::Content(message, text),
        }
    }

    /// The messages that are whole.
    pub fn messages(&self) -> &[Message] {
        &self.parsed.messages
    }

    /// Everything, after the last token.
    ///
    /// # Errors
    /// [`ModelError::HarmonyUnterminated`] when the tokens stop in a header, or in the content of a conversation's
    /// message; a completion's message that is cut off in its content ends with [`End::Cut`].
    pub fn finish(mut self) -> Result<Parsed, ModelError> {
        let unterminated = |part, missing| {
            let (message, n_tokens) = (self.parsed.messages.len(), self.position);
            ModelError::HarmonyUnterminated { message, part, missing, n_tokens }
        };
        match (&self.state, self.opening) {
            (State::Between, _) => {}
            (State::Header { .. }, _) => return Err(unterminated("header", "<|message|>")),
            (State::Content { .. }, Opening::Conversation) => {
                return Err(unterminated("content", "<|end|>, <|call|> or <|return|>"));
            }
            (State::Content { .. }, Opening::Completion(_)) => _ = self.close_content(End::Cut),
        }
        Ok(self.parsed)
    }

    fn open_content(&mut self, position: usize) -> Result<(), ModelError> {
        let State::Header { preset, pieces } = std::mem::replace(&mut self.state, State::Between) else {
            return Ok(());
        };
        let message = read_header(preset, pieces, position)?;
        message.check_header(self.parsed.messages.len())?;
        self.state = State::Content { message, text: String::new(), tail: Vec::new() };
        Ok(())
    }

    fn close_content(&mut self, end: End) -> Option<End> {
        let State::Content { mut message, mut text, tail } = std::mem::replace(&mut self.state, State::Between) else {
            return None;
        };
        text.push_str(&String::from_utf8_lossy(&tail));
        message.content = vec![Content::Text(text)];
        self.parsed.messages.push(message);
        self.parsed.ends.push(end);
        Some(end)
    }
}

impl Harmony<'_> {
    /// The messages in tokens.
    ///
    /// # Errors
    /// As [`Parser::push`] and [`Parser::finish`], and as [`Message::check_content`] for every whole message.
    pub fn parse(&self, ids: &[u32], opening: Opening) -> Result<Parsed, ModelError> {
        let mut parser = Parser::new(*self, opening);
        for &id in ids {
            parser.push(id)?;
        }
        let parsed = parser.finish()?;
        let whole = parsed.messages.iter().zip(&parsed.ends).enumerate().filter(|(_, (_, end))| **end != End::Cut);
        for (index, (message, _)) in whole {
            message.check_content(index)?;
        }
        Ok(parsed)
    }
}

/// Moves every whole character from `tail` to `text`, bytes that begin none as U+FFFD.
fn take_characters(text: &mut String, tail: &mut Vec<u8>) {
    let mut taken = 0;
    for chunk in tail.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let rest = &tail[taken..];
        // An error at the very end may be the beginning of a character whose rest is in the next token.
        let unfinished = rest == chunk.invalid() && std::str::from_utf8(rest).is_err_and(|e| e.error_len().is_none());
        if !chunk.invalid().is_empty() && !unfinished {
            text.push(char::REPLACEMENT_CHARACTER);
            taken += chunk.invalid().len();
        }
    }
    tail.drain(..taken);
}

/// What the words of a header say so far.
struct Header {
    role: Option<Role>,
    /// Whether the role is known from the prompt, so that the header need not say it.
    preset: bool,
    name: Option<String>,
    recipient: Option<String>,
    channel: Option<Channel>,
    content_type: Option<ContentType>,
    /// A first word that is no role: a tool's name if anything shows that it is one.
    stranger: Option<String>,
    position: usize,
}

impl Header {
    fn wrong(&self, expected: &'static str, got: &str) -> ModelError {
        ModelError::HarmonyHeader { position: self.position, expected, got: got.escape_debug().to_string() }
    }

    /// The word that begins a header without a preset role, or repeats the preset one.
    fn first(&mut self, word: &str) -> Result<(), ModelError> {
        if let Some(role) = self.role.filter(|_| self.preset) {
            if word == role.name() { Ok(()) } else { self.further(word) }
        } else {
            let (role, name) = word.split_once(':').map_or((word, None), |(role, name)| (role, Some(name.to_owned())));
            match role.parse() {
                Ok(role) => (self.role, self.name) = (Some(role), name),
                Err(_) => self.stranger = Some(word.to_owned()),
            }
            Ok(())
        }
    }

    /// A word behind the role: a recipient, or a bare content type.
    fn further(&mut self, word: &str) -> Result<(), ModelError> {
        match word.strip_prefix("to=") {
            Some(_) if self.recipient.is_some() => Err(self.wrong("one recipient", word)),
            Some(recipient) => {
                self.recipient = Some(recipient.to_owned());
                Ok(())
            }
            None => self.set_type(ContentType::Plain(word.to_owned())),
        }
    }

    fn set_type(&mut self, content_type: ContentType) -> Result<(), ModelError> {
        if self.content_type.is_some() {
            return Err(self.wrong("role, recipient, channel and one content type", content_type.name()));
        }
        self.content_type = Some(content_type);
        Ok(())
    }

    /// The role is known now, or it is not.
    fn message(self) -> Result<Message, ModelError> {
        let (role, name) = match (self.role, self.stranger) {
            (Some(role), _) => (role, self.name),
            (None, Some(word)) if self.recipient.is_some() || is_tool_name(&word) => (Role::Tool, Some(word)),
            (None, Some(word)) => return Err(ModelError::HarmonyRole { role: word.escape_debug().to_string() }),
            (None, None) => return Err(ModelError::HarmonyRole { role: String::new() }),
        };
        let (recipient, channel, content_type) = (self.recipient, self.channel, self.content_type);
        Ok(Message { role, name, recipient, channel, content_type, content: Vec::new() })
    }
}

/// Reads a header: words, where the first one behind a control token belongs to that token.
fn read_header(preset: Option<Role>, pieces: Vec<Piece>, position: usize) -> Result<Message, ModelError> {
    let mut header = Header {
        role: preset,
        preset: preset.is_some(),
        name: None,
        recipient: None,
        channel: None,
        content_type: None,
        stranger: None,
        position,
    };
    let mut owner: Option<Piece> = None;
    let mut is_first_word = true;
    for piece in pieces {
        let Piece::Text(bytes) = piece else {
            if owner.is_some() {
                return Err(header.wrong("a word behind <|channel|> and <|constrain|>", "another control token"));
            }
            is_first_word = false;
            owner = Some(piece);
            continue;
        };
        let text =
            String::from_utf8(bytes).map_err(|e| header.wrong("text", &String::from_utf8_lossy(e.as_bytes())))?;
        if owner.is_some() && text.starts_with(|c: char| c.is_whitespace()) {
            return Err(header.wrong("a word right behind <|channel|> and <|constrain|>", &text));
        }
        for word in text.split_whitespace() {
            match owner.take() {
                Some(Piece::Channel) if header.channel.is_some() => return Err(header.wrong("one channel", word)),
                Some(Piece::Channel) => header.channel = Some(word.parse()?),
                Some(_) => header.set_type(ContentType::Constrained(word.to_owned()))?,
                None if is_first_word => header.first(word)?,
                None => header.further(word)?,
            }
            is_first_word = false;
        }
    }
    if owner.is_some() {
        return Err(header.wrong("a word behind <|channel|> and <|constrain|>", "<|message|>"));
    }
    header.message()
}
