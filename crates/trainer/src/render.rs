//! Records to token sequences: the one place where the data pipeline's records meet the model's chat format.
//!
//! Every stage and the evaluator render through these functions, so training and evaluation cannot disagree about a
//! token. Loss weights follow the supervision that the chat format gives each token: 1 for what the assistant says and
//! for the token that ends its turn, 0 for everything else.

use data_pipeline::Sequence;
use data_pipeline::records::{Message, PreferenceRecord, Role, SftRecord};
use model_core::ModelError;
use model_core::chat::{Chat, ChatFormat, ChatToken, Message as ChatMessage, Role as ChatRole};
use model_core::tokenizer::Tokenizer;

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
