//! Records of GPT-OSS's line to token sequences: conversations in JSON or as tokens, prompts with two answers.

use std::path::Path;

use data_pipeline::records::read_json_lines;
use data_pipeline::{DataError, LineProblem, Sequence};
use model_core::ModelError;
use model_core::harmony::{Channel, Conversation, ExampleOptions, Harmony, Message, MessageJson, Rendered, Role};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::TrainError;

/// A conversation to learn the model's turns of: messages, or the tokens of their rendering.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConversationRecord {
    messages: Option<Vec<MessageJson>>,
    tokens: Option<Vec<u32>>,
    /// Places of the model's messages that are not trained on, such as attempts that turn out wrong.
    #[serde(default)]
    untrained: Vec<usize>,
    #[serde(default, rename = "id")]
    _id: IgnoredAny,
    #[serde(default, rename = "task")]
    _task: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default, rename = "licence")]
    _licence: IgnoredAny,
}

/// Two answers to one prompt.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PreferenceRecord {
    prompt: Said,
    chosen: Said,
    rejected: Said,
    #[serde(default, rename = "id")]
    _id: IgnoredAny,
    #[serde(default, rename = "task")]
    _task: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default, rename = "licence")]
    _licence: IgnoredAny,
}

/// Messages, or one text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of messages")]
enum Said {
    Text(String),
    Messages(Vec<MessageJson>),
}

/// How records become examples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Examples<'a> {
    pub(super) harmony: Harmony<'a>,
    pub(super) options: ExampleOptions,
    /// Channel of the model's messages that name none; without one they are refused.
    pub(super) channel: Option<Channel>,
}

impl Examples<'_> {
    /// Every turn of every conversation with its line, in order.
    ///
    /// # Errors
    /// [`TrainError::Record`] and [`DataError::BadLine`] with file and line.
    pub(super) fn conversations(&self, path: &Path) -> Result<Vec<(usize, Sequence)>, TrainError> {
        let mut all = Vec::new();
        read_json_lines(path, &mut |file: &Path, line, record: ConversationRecord| {
            let conversation = match (record.messages, record.tokens) {
                (Some(messages), None) => self.conversation(messages),
                (None, Some(tokens)) => self.harmony.conversation_of(&tokens),
                (None, None) => return Err(bad_line(file, line, LineProblem::MissingField("messages"))),
                (Some(_), Some(_)) => return Err(bad_line(file, line, LineProblem::BothFields("messages", "tokens"))),
            };
            let examples = conversation.and_then(|c| self.harmony.examples(&c, self.options).map(|all| (c, all)));
            let examples = examples.and_then(|(c, all)| leave_out(&c, all, &record.untrained));
            let examples = examples.map_err(|source| TrainError::record(file, line, source))?;
            all.extend(examples.into_iter().map(|example| (line, sequence(example))));
            Ok::<_, TrainError>(())
        })?;
        Ok(all)
    }

    /// Every pair with its line: the prompt with the chosen and with the rejected answer.
    ///
    /// # Errors
    /// As [`Self::conversations`].
    pub(super) fn pairs(&self, path: &Path) -> Result<Vec<(usize, [Sequence; 2])>, TrainError> {
        let mut all = Vec::new();
        read_json_lines(path, &mut |file: &Path, line, record: PreferenceRecord| {
            let [chosen, rejected] = self.pair(record).map_err(|source| TrainError::record(file, line, source))?;
            if chosen.ids == rejected.ids {
                return Err(bad_line(file, line, LineProblem::ChosenIsRejected));
            }
            all.push((line, [sequence(chosen), sequence(rejected)]));
            Ok::<_, TrainError>(())
        })?;
        Ok(all)
    }

    fn pair(&self, record: PreferenceRecord) -> Result<[Rendered; 2], ModelError> {
        let prompt = match record.prompt {
            Said::Text(text) => Conversation { messages: vec![Message::new(Role::User, text)] },
            Said::Messages(messages) => self.conversation(messages)?,
        };
        let answer = |said| {
            let answer = match said {
                Said::Text(text) => Conversation { messages: vec![Message::assistant(Channel::Final, text)] },
                Said::Messages(messages) => self.conversation(messages)?,
            };
            self.harmony.answer(&prompt, &answer, self.options)
        };
        Ok([answer(record.chosen)?, answer(record.rejected)?])
    }

    fn conversation(&self, messages: Vec<MessageJson>) -> Result<Conversation, ModelError> {
        let mut conversation = Conversation::try_from(messages)?;
        for message in conversation.messages.iter_mut().filter(|message| message.role == Role::Assistant) {
            message.channel = message.channel.or(self.channel);
        }
        Ok(conversation)
    }
}

/// The examples without the messages at these places among what is trained on; those that then teach nothing are left out.
fn leave_out(
    conversation: &Conversation,
    mut examples: Vec<Rendered>,
    untrained: &[usize],
) -> Result<Vec<Rendered>, ModelError> {
    let models = |at: usize| conversation.messages.get(at).is_some_and(|message| message.role == Role::Assistant);
    if let Some(at) = untrained.iter().find(|at| !models(**at)) {
        return Err(ModelError::HarmonySupervise {
            got: format!("{at} under `untrained`, which is none of the model's"),
        });
    }
    for span in examples.iter_mut().flat_map(|example| &mut example.spans) {
        if untrained.contains(&span.message) {
            span.supervised = None;
        }
    }
    examples.retain(|example| example.spans.iter().any(|span| span.supervised.is_some()));
    Ok(examples)
}

fn sequence(rendered: Rendered) -> Sequence {
    let weights = rendered.mask().into_iter().map(|on| if on { 1.0 } else { 0.0 }).collect();
    Sequence { ids: rendered.ids, weights }
}

fn bad_line(path: &Path, line: usize, problem: LineProblem) -> TrainError {
    TrainError::Data(DataError::BadLine { path: path.to_path_buf(), line, problem })
}

#[cfg(test)]
mod tests;
