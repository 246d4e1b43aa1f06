//! Trains a byte-level BPE tokenizer on text.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Trainer};

use super::file::byte_char;
use super::split::SplitPattern;
use super::{END_OF_TEXT, Tokenizer};
use crate::error::{DataError, Result, TrainingProblem};

/// Trains a tokenizer with exactly `vocab_size` tokens: the 256 bytes, the merges, and `specials` at the end, such as
/// [`super::SPECIAL_TOKENS`], so that ids of ordinary tokens do not depend on how many special tokens there are.
///
/// `texts` is text, not files: what is learnt is what the documents say. The same texts in any order give the same
/// tokenizer, on any number of threads: the trainer only counts pieces, and breaks ties by id.
///
/// # Errors
/// [`DataError::Training`] when `vocab_size` cannot hold bytes and special tokens, or the texts yield fewer tokens.
///
/// # Source
/// Sennrich et al., arXiv 1508.07909 (BPE); Radford et al. 2019, GPT-2 (byte level).
pub fn train<'a>(
    texts: impl Iterator<Item = &'a str> + Send,
    vocab_size: usize,
    specials: &[&str],
) -> Result<Tokenizer> {
    let least = 256 + specials.len();
    if vocab_size < least {
        return Err(DataError::Training(TrainingProblem::VocabTooSmall(vocab_size, least)));
    }
    let library = |e: tokenizers::Error| DataError::Training(TrainingProblem::Library(e.to_string()));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size - specials.len())
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet((0..=255).map(byte_char).collect())
        .build();
    trainer.feed(texts, |text| Ok(SplitPattern::Gpt2.pieces(text).map(spell).collect())).map_err(library)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(library)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let specials: Vec<_> = specials.iter().map(|token| AddedToken::from(*token, true)).collect();
    tokenizer.add_special_tokens(&specials);
    let found = tokenizer.get_vocab_size(true);
    if found != vocab_size {
        return Err(DataError::Training(TrainingProblem::TooLittleText { found, wanted: vocab_size }));
    }
    let json = tokenizer.to_string(true).map_err(library)?;
    Tokenizer::from_json(json.into_bytes(), Path::new("tokenizer.json"))
}

fn spell(piece: &str) -> String {
    piece.bytes().map(byte_char).collect()
}

/// The `tokenizer_config.json` that goes with a trained tokenizer, so that its folder opens in transformers.
///
/// The chat template is not here: it belongs to the model that learns it, and is written with its checkpoints.
pub fn tokenizer_config() -> String {
    let config = json!({
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    format!("{config:#}\n")
}
