//! Conversations to training examples: one for each turn of the model, rendered as the model would have met and written it.
//!
//! A turn is what the model and its tools say after a message of the user. Its context is what the official renderer makes
//! of the conversation when the turn begins, so an example begins with the tokens of the prompt; only the turn itself is
//! trained on, its thoughts included, up to the `<|return|>` or `<|call|>` that ends it.

use super::conversation::{Channel, Conversation, Message, Role};
use super::parse::Opening;
use super::render::{Kind, Rendered, Supervise};
use super::{Harmony, Vocabulary};
use crate::error::ModelError;

/// What an example is made of besides the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExampleOptions {
    /// Whether thoughts of earlier turns stay in the context; the official renderer drops those before the first answer.
    pub keep_analysis: bool,
}

impl Conversation {
    /// The places where the model's turns begin and end, half-open; the first place of each is its own first message.
    ///
    /// # Errors
    /// [`ModelError::HarmonyOpenTurn`] when a turn does not end with an answer on `final` or with a call, or the last message
    /// is not part of one.
    fn turns(&self) -> Result<Vec<(usize, usize)>, ModelError> {
        let mut turns = Vec::new();
        let mut begin = None;
        for (index, message) in self.messages.iter().enumerate() {
            match message.role {
                Role::Assistant if begin.is_none() => begin = Some(index),
                Role::User => {
                    if let Some(begin) = begin.take() {
                        turns.push((begin, index));
                    }
                }
                _ => {}
            }
        }
        let n = self.messages.len();
        let open = |index: usize, got: String| Err(ModelError::HarmonyOpenTurn { index, got });
        match begin {
            Some(begin) => turns.push((begin, n)),
            None if n == 0 => return open(0, "no message".to_owned()),
            None => return open(n - 1, format!("a last message from {}", self.messages[n - 1].role)),
        }
        for (_, end) in &turns {
            let last = &self.messages[end - 1];
            let closes = last.role == Role::Assistant && (last.channel == Some(Channel::Final) || last.is_call());
            if !closes {
                let channel = last.channel.map_or("no channel", Channel::name);
                return open(end - 1, format!("a message from {} on {channel}", last.role));
            }
        }
        Ok(turns)
    }

    /// Checks what only training asks for: every message of the model has a channel, and no text spells a control token,
    /// which would show the model that its control tokens are text.
    ///
    /// # Errors
    /// [`ModelError::HarmonyMessage`] and [`ModelError::HarmonyControlText`].
    fn check_examples(&self, vocabulary: &dyn Vocabulary) -> Result<(), ModelError> {
        let has_functions = self.has_functions();
        for (index, message) in self.messages.iter().enumerate() {
            if message.role == Role::Assistant && message.channel.is_none() {
                let (role, what, got) = (message.role.name(), "channel", "none".to_owned());
                let expected = "analysis, commentary or final in training data";
                return Err(ModelError::HarmonyMessage { index, role, what, expected, got });
            }
            if let Some(token) = message.texts(has_functions).iter().find_map(|text| spelled(text, vocabulary)) {
                return Err(ModelError::HarmonyControlText { index, token });
            }
        }
        Ok(())
    }
}

impl Harmony<'_> {
    /// One example for each turn of the model, in order.
    ///
    /// # Errors
    /// As [`Self::render`]; [`ModelError::HarmonyOpenTurn`], and [`ModelError::HarmonyControlText`] for a text that spells a
    /// control token; [`ModelError::HarmonyMessage`] for a message of the model without a channel.
    pub fn examples(&self, conversation: &Conversation, options: ExampleOptions) -> Result<Vec<Rendered>, ModelError> {
        conversation.check()?;
        conversation.check_examples(self.vocabulary)?;
        let turns = conversation.turns()?;
        let example = |(begin, end)| self.example(&conversation.messages[..end], begin, begin, options);
        turns.into_iter().map(example).collect()
    }

    /// The prompt with an answer to it, of which only the answer is trained on; both are given to tell where it begins.
    ///
    /// # Errors
    /// As [`Self::examples`]; [`ModelError::HarmonyOpenTurn`] also when the prompt does not end with the user or a tool.
    pub fn answer(
        &self,
        prompt: &Conversation,
        answer: &Conversation,
        options: ExampleOptions,
    ) -> Result<Rendered, ModelError> {
        let from = prompt.messages.len();
        let asks = prompt.messages.last().filter(|message| matches!(message.role, Role::User | Role::Tool));
        if asks.is_none() {
            let got = prompt
                .messages
                .last()
                .map_or("no message".to_owned(), |m| format!("a prompt that ends with {}", m.role));
            return Err(ModelError::HarmonyOpenTurn { index: from.saturating_sub(1), got });
        }
        let all = Conversation { messages: [&prompt.messages[..], &answer.messages].concat() };
        if let Some(index) =
            (from..all.messages.len()).find(|&at| !matches!(all.messages[at].role, Role::Assistant | Role::Tool))
        {
            let got = format!("an answer with a message from {}", all.messages[index].role);
            return Err(ModelError::HarmonyOpenTurn { index, got });
        }
        all.check()?;
        all.check_examples(self.vocabulary)?;
        let (begin, _) = *all.turns()?.last().expect("a conversation without a turn is refused");
        self.example(&all.messages, begin.min(from), from, options)
    }

    /// The conversation that tokens are, byte for byte: what is rendered again gives the same tokens.
    ///
    /// # Errors
    /// As [`Self::parse`]; [`ModelError::HarmonyToken`] at the first token that the renderer would not have written there.
    pub fn conversation_of(&self, ids: &[u32]) -> Result<Conversation, ModelError> {
        let messages = self.parse(ids, Opening::Conversation)?.messages;
        let conversation = Conversation { messages };
        let again = |kind| self.render(&conversation, kind, false, &Supervise::Nothing).map(|rendered| rendered.ids);
        let (stored, trained) = (again(Kind::Conversation)?, again(Kind::Training)?);
        if ids == stored || ids == trained {
            return Ok(conversation);
        }
        let position = std::iter::zip(ids, &trained).position(|(got, want)| got != want);
        let position = position.unwrap_or(ids.len().min(trained.len()));
        let got = ids
            .get(position)
            .map_or("the end".to_owned(), |&id| format!("{id} `{}`", self.decode(&[id]).escape_debug()));
        Err(ModelError::HarmonyToken { position, expected: "what the official renderer writes here", got })
    }

    /// `messages` up to the end of a turn that begins at `begin`, trained on from `from` on.
    fn example(
        &self,
        messages: &[Message],
        begin: usize,
        from: usize,
        options: ExampleOptions,
    ) -> Result<Rendered, ModelError> {
        let history = Conversation { messages: messages[..begin].to_vec() };
        let kept = if options.keep_analysis { (0..begin).collect() } else { history.without_old_analysis() };
        let places: Vec<usize> = kept.into_iter().chain(begin..messages.len()).collect();
        let conversation = Conversation { messages: places.iter().map(|&at| messages[at].clone()).collect() };
        let trained =
            |(at, &place): (usize, &usize)| (place >= from && messages[place].role == Role::Assistant).then_some(at);
        let supervise = Supervise::Messages(places.iter().enumerate().filter_map(trained).collect());
        let mut rendered = self.render(&conversation, Kind::Training, false, &supervise)?;
        for span in &mut rendered.spans {
            span.message = places[span.message];
        }
        Ok(rendered)
    }
}

/// The first control token that a text spells.
fn spelled(text: &str, vocabulary: &dyn Vocabulary) -> Option<String> {
    for (start, _) in text.match_indices("<|") {
        let Some(length) = text[start..].find("|>") else { break };
        let token = &text[start..start + length + 2];
        if vocabulary.control_id(token).is_some() {
            return Some(token.to_owned());
        }
    }
    None
}
