//! Records to token sequences: the one place where the data pipeline's records meet the model's chat format.
//!
//! Every stage and the evaluator render through these functions, so training and evaluation cannot disagree about a
//! token. Loss weights follow the supervision that the chat format gives each token: 1 for what the assistant says and
//! for the token that ends its turn, 0 for everything else.

use std::path::Path;

use data_pipeline::records::{Message, PreferenceRecord, Role, SftRecord, read_sft};
use data_pipeline::{Overlong, Sequence, TokenRow, pack_rows};
use model_core::ModelError;
use model_core::chat::{Chat, ChatFormat, ChatToken, Message as ChatMessage, Role as ChatRole};
use model_core::tokenizer::Tokenizer;

use crate::TrainError;

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

/// Conversations packed into rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRows {
    /// The rows.
    pub rows: Vec<TokenRow>,
    /// Hash over records, tokenizer, format and row length.
    pub fingerprint: String,
}

impl ChatRows {
    /// Reads conversations, renders them in the tokenizer's chat format and packs whole conversations into rows of
    /// `seq_len` tokens, each conversation its own segment.
    ///
    /// # Errors
    /// A record that cannot be read or rendered, or that is longer than a row, by file and number.
    pub fn sft(path: &Path, seq_len: usize, tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let format = ChatFormat::detect(tokenizer)?;
        let set = read_sft(path)?;
        let mut sequences = Vec::with_capacity(set.records.len());
        for (number, record) in set.records.iter().enumerate() {
            let sequence = sft_sequence(record, format, tokenizer)?;
            require_fit(path, number, sequence.ids.len(), seq_len)?;
            sequences.push(sequence);
        }
        let rows = pack_rows(&sequences, seq_len, Overlong::Split, pad_id(format, tokenizer)?);
        Ok(Self { rows, fingerprint: fingerprint(path, format, tokenizer, seq_len)? })
    }
}

/// Id that fills the tail of a row.
///
/// # Errors
/// When the tokenizer lacks the format's end-of-document token.
pub fn pad_id(format: ChatFormat, tokenizer: &Tokenizer) -> Result<u32, TrainError> {
    let name = format.end_of_document();
    tokenizer.control_id(name).ok_or_else(|| TrainError::Batch {
        problem: format!("the tokenizer has no {name} to fill rows with; use the tokenizer of the model"),
    })
}

/// Hash of everything that decides the tokens of rendered records.
///
/// # Errors
/// When the records cannot be hashed.
pub fn fingerprint(
    path: &Path,
    format: ChatFormat,
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<String, TrainError> {
    let data = gates::artifact::hash_tree(path)?;
    let text = format!("{data} {} {} {seq_len}", format.name(), tokenizer.hash());
    Ok(gates::artifact::hash_bytes(text.as_bytes()))
}

/// Refuses a record that does not fit a row: cutting it would teach half an answer.
///
/// # Errors
/// [`TrainError::Batch`] with file, record number and both lengths.
pub fn require_fit(path: &Path, number: usize, found: usize, seq_len: usize) -> Result<(), TrainError> {
    if found <= seq_len {
        return Ok(());
    }
    let (file, record) = (path.display(), number + 1);
    Err(TrainError::Batch {
        problem: format!(
            "{file}: record {record} has {found} tokens, a row holds {seq_len}; raise seq_len or shorten the record"
        ),
    })
}
