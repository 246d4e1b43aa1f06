//! Records to token sequences: the one place where the data pipeline's records meet the model's chat format.
//!
//! Every stage and the evaluator render through these functions, so training and evaluation cannot disagree about a
//! token. Records of a GPT-OSS model are Harmony's, see `render/harmony.rs`. Loss weights follow the supervision that the chat format gives each token: 1 for what the assistant says and
//! for the token that ends its turn, 0 for everything else.

use std::path::Path;

use data_pipeline::records::{Message, PreferenceRecord, Role, SftRecord, read_preferences, read_sft};
use data_pipeline::{Overlong, Sequence, TokenRow, pack_rows};
use model_core::chat::{Chat, ChatFormat, ChatToken, Message as ChatMessage, Role as ChatRole};
use model_core::harmony::{Channel, ExampleOptions, Harmony};
use model_core::tokenizer::Tokenizer;
use model_core::{ModelConfig, ModelError};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::config::{is_default, require};

mod harmony;

use harmony::Examples;

/// The data pipeline's messages as the model's chat.
pub fn to_chat(messages: &[Message]) -> Chat {
    let role = |message: &Message| match message.role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
        Role::Tool => ChatRole::Tool,
    };
    Chat { messages: messages.iter().map(|m| ChatMessage::new(role(m), m.content.clone())).collect() }
}

fn to_sequence(tokens: &[ChatToken]) -> Sequence {
    Sequence {
        ids: tokens.iter().map(|token| token.id).collect(),
        weights: tokens.iter().map(|token| if token.supervised { 1.0 } else { 0.0 }).collect(),
    }
}

/// A conversation as tokens; only assistant turns carry weight.
///
/// # Errors
/// A conversation without a supervised token, or a tokenizer without the format's control tokens.
pub fn sft_sequence(record: &SftRecord, format: ChatFormat, tokenizer: &Tokenizer) -> Result<Sequence, ModelError> {
    Ok(to_sequence(&format.render(&to_chat(&record.messages), tokenizer)?))
}

/// Prompt plus chosen answer and prompt plus rejected answer; only the answer (and its end of turn) carries weight,
/// assistant turns inside the prompt do not.
///
/// # Errors
/// As [`sft_sequence`].
pub fn preference_sequences(
    record: &PreferenceRecord,
    format: ChatFormat,
    tokenizer: &Tokenizer,
) -> Result<(Sequence, Sequence), ModelError> {
    let prompt_tokens = prompt_ids(&record.prompt, format, tokenizer)?.len();
    let side = |answer: &str| -> Result<Sequence, ModelError> {
        let mut messages = record.prompt.clone();
        messages.push(Message::new(Role::Assistant, answer));
        let mut sequence = to_sequence(&format.render(&to_chat(&messages), tokenizer)?);
        sequence.weights[..prompt_tokens].fill(0.0);
        Ok(sequence)
    };
    Ok((side(&record.chosen)?, side(&record.rejected)?))
}

/// A conversation up to and including the header of the assistant's next turn.
///
/// # Errors
/// As [`sft_sequence`], except that nothing need be supervised.
pub fn prompt_ids(messages: &[Message], format: ChatFormat, tokenizer: &Tokenizer) -> Result<Vec<u32>, ModelError> {
    Ok(format.render_prompt(&to_chat(messages), tokenizer)?.iter().map(|token| token.id).collect())
}

/// How the records of a stage are written as tokens; every key has a default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatKeys {
    /// The format; without it Harmony for a GPT-OSS model, else the one whose control tokens the tokenizer has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ChatStyle>,
    /// Whether thoughts of earlier turns stay before the turn that is trained on; Harmony only.
    #[serde(skip_serializing_if = "is_default")]
    pub keep_analysis: bool,
    /// Channel of the model's messages that name none, which are refused otherwise; Harmony only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<DefaultChannel>,
}

/// A chat format by its name in configuration files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatStyle {
    /// ChatML.
    ChatMl,
    /// Llama 3.
    Llama3,
    /// Harmony, which GPT-OSS speaks.
    Harmony,
}

/// Where the answers of records without channels stand: plain answers are no thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultChannel {
    /// The channel of answers.
    Final,
}

/// Records to packed tokens, in one format over one tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct ChatRenderer<'a> {
    style: Style<'a>,
    tokenizer: &'a Tokenizer,
}

#[derive(Clone, Copy, Debug)]
enum Style<'a> {
    Chat(ChatFormat),
    Harmony(Examples<'a>),
}

/// Conversations packed into rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRows {
    /// The rows.
    pub rows: Vec<TokenRow>,
    /// Hash over records, tokenizer, format and row length.
    pub fingerprint: String,
}

impl<'a> ChatRenderer<'a> {
    /// The renderer that the keys ask for, for a model and its tokenizer.
    ///
    /// # Errors
    /// A tokenizer without the control tokens of the format; another format than Harmony for a GPT-OSS model, which was
    /// made with no other; keys of Harmony with another format.
    pub fn new(keys: &ChatKeys, tokenizer: &'a Tokenizer, model: &ModelConfig) -> Result<Self, TrainError> {
        let is_gpt_oss = model.as_gpt_oss().is_some();
        let style = match keys.format {
            Some(ChatStyle::Harmony) => Style::Harmony(keys.examples(tokenizer)?),
            None if is_gpt_oss => Style::Harmony(keys.examples(tokenizer)?),
            Some(ChatStyle::ChatMl) => Style::Chat(ChatFormat::ChatMl),
            Some(ChatStyle::Llama3) => Style::Chat(ChatFormat::Llama3),
            None => match ChatFormat::detect(tokenizer) {
                Ok(format) => Style::Chat(format),
                Err(error) => Style::Harmony(keys.examples(tokenizer).map_err(|_| error)?),
            },
        };
        if let Style::Chat(format) = style {
            require(!is_gpt_oss, || {
                format!("key `chat.format`: expected harmony, since the model is a GPT-OSS, got {}", format.name())
            })?;
            require(!keys.keep_analysis && keys.channel.is_none(), || {
                let name = format.name();
                format!("key `chat`: expected `keep_analysis` and `channel` with harmony only, the format is {name}")
            })?;
        }
        Ok(Self { style, tokenizer })
    }

    /// Whether records are Harmony's.
    pub fn is_harmony(&self) -> bool {
        matches!(self.style, Style::Harmony(_))
    }

    /// Reads conversations, renders them and packs them whole into rows of `seq_len` tokens, each a segment of its own;
    /// in Harmony each turn of the model is one.
    ///
    /// # Errors
    /// A record that cannot be read or rendered, or that is longer than a row, by file and number.
    pub fn conversations(&self, path: &Path, seq_len: usize) -> Result<ChatRows, TrainError> {
        let numbered: Vec<(usize, Sequence)> = match &self.style {
            Style::Harmony(examples) => examples.conversations(path)?,
            Style::Chat(format) => {
                let records = read_sft(path)?.records;
                let sequence = |(i, record): (usize, &SftRecord)| {
                    sft_sequence(record, *format, self.tokenizer).map(|sequence| (i + 1, sequence))
                };
                records.iter().enumerate().map(sequence).collect::<Result<_, _>>()?
            }
        };
        for (number, sequence) in &numbered {
            require_fit(path, *number, sequence.ids.len(), seq_len)?;
        }
        let sequences: Vec<Sequence> = numbered.into_iter().map(|(_, sequence)| sequence).collect();
        let rows = pack_rows(&sequences, seq_len, Overlong::Split, self.pad_id()?);
        Ok(ChatRows { rows, fingerprint: self.fingerprint(path, seq_len)? })
    }

    /// Reads and renders preference records: prompt and chosen answer, prompt and rejected answer.
    ///
    /// # Errors
    /// As [`Self::conversations`]; both sides of a pair have to fit one row together.
    pub fn pairs(&self, path: &Path, seq_len: usize) -> Result<Vec<[Sequence; 2]>, TrainError> {
        let numbered: Vec<(usize, [Sequence; 2])> = match &self.style {
            Style::Harmony(examples) => examples.pairs(path)?,
            Style::Chat(format) => {
                let records = read_preferences(path)?.records;
                let pair = |(i, record): (usize, &PreferenceRecord)| {
                    preference_sequences(record, *format, self.tokenizer).map(|(a, b)| (i + 1, [a, b]))
                };
                records.iter().enumerate().map(pair).collect::<Result<_, _>>()?
            }
        };
        for (number, pair) in &numbered {
            require_fit(path, *number, pair.iter().map(|side| side.ids.len()).sum(), seq_len)?;
        }
        Ok(numbered.into_iter().map(|(_, pair)| pair).collect())
    }

    /// Id that fills the tail of a row.
    ///
    /// # Errors
    /// When the tokenizer lacks the format's end-of-document token.
    pub fn pad_id(&self) -> Result<u32, TrainError> {
        let name = match self.style {
            Style::Chat(format) => format.end_of_document(),
            Style::Harmony(_) => "<|endoftext|>",
        };
        self.tokenizer.control_id(name).ok_or_else(|| TrainError::Batch {
            problem: format!("the tokenizer has no {name} to fill rows with; use the tokenizer of the model"),
        })
    }

    /// Hash of everything that decides the tokens of rendered records.
    ///
    /// # Errors
    /// When the records cannot be hashed.
    pub fn fingerprint(&self, path: &Path, seq_len: usize) -> Result<String, TrainError> {
        let data = gates::artifact::hash_tree(path)?;
        let name = match self.style {
            Style::Chat(format) => format.name().to_owned(),
            Style::Harmony(Examples { options, channel, .. }) => {
                format!("harmony keep_analysis={} channel={}", options.keep_analysis, channel.map_or("", Channel::name))
            }
        };
        let text = format!("{data} {name} {} {seq_len}", self.tokenizer.hash());
        Ok(gates::artifact::hash_bytes(text.as_bytes()))
    }
}

impl ChatKeys {
    fn examples<'a>(&self, tokenizer: &'a Tokenizer) -> Result<Examples<'a>, ModelError> {
        Ok(Examples {
            harmony: Harmony::new(tokenizer)?,
            options: ExampleOptions { keep_analysis: self.keep_analysis },
            channel: self.channel.map(|DefaultChannel::Final| Channel::Final),
        })
    }
}

/// Refuses a record that does not fit a row: cutting it would teach half an answer. Records count from 1.
///
/// # Errors
/// [`TrainError::Batch`] with file, record number and both lengths.
fn require_fit(path: &Path, number: usize, found: usize, seq_len: usize) -> Result<(), TrainError> {
    if found <= seq_len {
        return Ok(());
    }
    let file = path.display();
    Err(TrainError::Batch {
        problem: format!(
            "{file}: record {number} has {found} tokens, a row holds {seq_len}; raise seq_len or shorten the record"
        ),
    })
}
