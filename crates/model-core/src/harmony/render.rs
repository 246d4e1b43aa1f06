//! Conversations to tokens: which messages are written, where each one lies, and which tokens are trained on.

use std::ops::Range;

use super::conversation::{Channel, ContentType, Conversation, EVERYBODY, Message, Role};
use super::{Harmony, MAX_BLANKS};
use crate::error::ModelError;

/// What the tokens are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The messages, each ended as in a stored conversation.
    Conversation,
    /// The messages and the beginning of the next one, by this role: a prompt.
    Completion(Role),
    /// The messages, with `<|return|>` at the end when the last one is the model's answer.
    Training,
}

/// Which messages are trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supervise {
    /// None.
    Nothing,
    /// Every message of the model.
    All,
    /// The messages of the model after the last one of the user.
    LastTurn,
    /// These messages of the model, by their place in the conversation.
    Messages(Vec<usize>),
}

/// Where one message lies in the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The place of the message in the conversation, dropped ones counted.
    pub message: usize,
    /// All its tokens, from `<|start|>` to the one that ends it.
    pub tokens: Range<usize>,
    /// The tokens of its content.
    pub content: Range<usize>,
    /// The tokens that are trained on, up to and with the one that ends the message.
    ///
    /// They begin behind `<|start|>assistant`, which the prompt gives. Where the model went on from its own message
    /// that ended with `<|end|>`, it wrote those two as well and they are included.
    pub supervised: Option<Range<usize>>,
}

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The messages that were written, in order; together they are all tokens except the beginning of a next message.
    pub spans: Vec<Span>,
}

impl Rendered {
    /// For each token whether it is trained on.
    pub fn mask(&self) -> Vec<bool> {
        let mut mask = vec![false; self.ids.len()];
        for range in self.spans.iter().filter_map(|span| span.supervised.clone()) {
            mask[range].fill(true);
        }
        mask
    }
}

impl Conversation {
    /// The places of the messages that are written when old analysis is dropped.
    ///
    /// The official rule: when the model's last message is on `final`, every analysis before the first message on
    /// `final` is dropped; while a call is open, nothing is. Training on thoughts therefore needs a conversation that
    /// is not dropped from.
    pub fn without_old_analysis(&self) -> Vec<usize> {
        let is_final = |message: &Message| message.channel == Some(Channel::Final);
        let last = self.messages.iter().rev().find(|message| message.role == Role::Assistant);
        let first_final = self.messages.iter().position(is_final).filter(|_| last.is_some_and(is_final));
        let kept = |&index: &usize| {
            let old = first_final.is_some_and(|first| index < first);
            !(old && self.messages[index].channel == Some(Channel::Analysis))
        };
        (0..self.messages.len()).filter(kept).collect()
    }

    /// Whether each message is to be trained on, by its place.
    fn supervised(&self, supervise: &Supervise, kept: &[usize]) -> Result<Vec<bool>, ModelError> {
        let is_models = |index: usize| self.messages.get(index).is_some_and(|m| m.role == Role::Assistant);
        let turn = self.messages.iter().rposition(|message| message.role == Role::User).map_or(0, |last| last + 1);
        let n = self.messages.len();
        let chosen: Vec<usize> = match supervise {
            Supervise::Nothing => Vec::new(),
            Supervise::All => (0..n).filter(|&index| is_models(index)).collect(),
            Supervise::LastTurn => (turn..n).filter(|&index| is_models(index)).collect(),
            Supervise::Messages(indices) => {
                let bad = |index: &&usize| !is_models(**index) || !kept.contains(index);
                if let Some(&index) = indices.iter().find(bad) {
                    let got = match self.messages.get(index) {
                        None => format!("{index} of {n} messages"),
                        Some(_) if is_models(index) => format!("{index}, whose analysis is dropped"),
                        Some(message) => format!("{index}, which is from {}", message.role),
                    };
                    return Err(ModelError::HarmonySupervise { got });
                }
                indices.clone()
            }
        };
        Ok((0..n).map(|index| chosen.contains(&index)).collect())
    }
}

impl Harmony<'_> {
    /// The tokens of a conversation.
    ///
    /// `drop_analysis` leaves out what [`Conversation::without_old_analysis`] does. That nothing is supervised is no
    /// error here: a caller that trains looks at the spans.
    ///
    /// # Errors
    /// As [`Conversation::check`]; [`ModelError::HarmonySupervise`] when a message to train on is not the model's or is
    /// dropped; [`ModelError::HarmonyBlanks`] when a text has more than [`MAX_BLANKS`] blank characters in a row.
    pub fn render(
        &self,
        conversation: &Conversation,
        kind: Kind,
        drop_analysis: bool,
        supervise: &Supervise,
    ) -> Result<Rendered, ModelError> {
        conversation.check()?;
        let messages = &conversation.messages;
        let kept = if drop_analysis { conversation.without_old_analysis() } else { (0..messages.len()).collect() };
        let supervised = conversation.supervised(supervise, &kept)?;
        let has_functions = conversation.has_functions();
        let mut rendered = Rendered { ids: Vec::new(), spans: Vec::new() };
        let mut before: Option<&Message> = None;
        for index in kept {
            let message = &messages[index];
            let start = rendered.ids.len();
            let header = self.header(message, index, &mut rendered.ids)?;
            let content = rendered.ids.len();
            for text in message.texts(has_functions) {
                self.text(&text, index, &mut rendered.ids)?;
            }
            let end = rendered.ids.len();
            rendered.ids.push(if ends_with_call(message) { self.call } else { self.end });
            let goes_on = before.is_some_and(continues);
            let first = if goes_on { start } else { header };
            rendered.spans.push(Span {
                message: index,
                tokens: start..end + 1,
                content: content..end,
                supervised: supervised[index].then_some(first..end + 1),
            });
            before = Some(message);
        }
        match kind {
            Kind::Conversation => {}
            Kind::Completion(role) => {
                rendered.ids.push(self.start);
                rendered.ids.extend(self.vocabulary.encode(role.name()));
            }
            Kind::Training => {
                let is_answer = |m: &Message| m.role == Role::Assistant && m.channel == Some(Channel::Final);
                if let Some(last) = rendered.ids.last_mut().filter(|_| messages.last().is_some_and(is_answer)) {
                    *last = self.done;
                }
            }
        }
        Ok(rendered)
    }

    /// Writes the header and `<|message|>`; returns the place behind the role, where the model begins to write.
    fn header(&self, message: &Message, index: usize, ids: &mut Vec<u32>) -> Result<usize, ModelError> {
        ids.push(self.start);
        let role = match (&message.name, message.role) {
            (Some(name), Role::Tool) => name,
            _ => message.role.name(),
        };
        self.text(role, index, ids)?;
        let behind_role = ids.len();
        if let Some(name) = message.name.as_ref().filter(|_| message.role != Role::Tool) {
            self.text(&format!(":{name}"), index, ids)?;
        }
        if let Some(recipient) = message.recipient.as_ref().filter(|name| *name != EVERYBODY) {
            self.text(&format!(" to={recipient}"), index, ids)?;
        }
        if let Some(channel) = message.channel {
            ids.push(self.channel);
            self.text(channel.name(), index, ids)?;
        }
        match &message.content_type {
            None => {}
            Some(ContentType::Plain(name)) => self.text(&format!(" {name}"), index, ids)?,
            Some(ContentType::Constrained(name)) => {
                self.text(" ", index, ids)?;
                ids.push(self.constrain);
                self.text(name, index, ids)?;
            }
        }
        ids.push(self.message);
        Ok(behind_role)
    }

    fn text(&self, text: &str, index: usize, ids: &mut Vec<u32>) -> Result<(), ModelError> {
        let mut blanks = 0;
        for character in text.chars() {
            blanks = if character.is_whitespace() { blanks + 1 } else { 0 };
            if blanks > MAX_BLANKS {
                return Err(ModelError::HarmonyBlanks { index, max: MAX_BLANKS });
            }
        }
        ids.extend(self.vocabulary.encode(text));
        Ok(())
    }
}

/// A message of the model with a recipient, even everybody, ends with `<|call|>`, as the official renderer has it.
fn ends_with_call(message: &Message) -> bool {
    message.role == Role::Assistant && message.recipient.is_some()
}

/// Whether the model goes on by itself after this message.
fn continues(message: &Message) -> bool {
    message.role == Role::Assistant && !ends_with_call(message) && message.channel != Some(Channel::Final)
}
