//! Byte-level BPE: train, load, encode ordinary text, decode.
//!
//! Text is never searched for special tokens: the encoder knows only bytes and merges, so `<|im_end|>` written in a
//! document becomes the ids of its characters. The encoder is this crate's own, because it has to be fast and linear
//! for any input; tests compare it with the tokenizers library id by id.

mod bpe;
mod file;
mod split;
mod train;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{DataError, Result, TokenizerProblem};
use crate::rows::TokenRow;
use bpe::Scratch;
pub use train::{tokenizer_config, train};

/// The token after every document, also the padding.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The special tokens of a tokenizer that is trained for ChatML, in the order of their ids at the end of the vocabulary.
pub const SPECIAL_TOKENS: [&str; 3] = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"];
/// The same for Harmony, the format of GPT-OSS.
pub const HARMONY_TOKENS: [&str; 8] =
    [END_OF_TEXT, "<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];
/// Name of the file in a tokenizer or model folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A byte-level BPE tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    bpe: bpe::Bpe,
    split: split::SplitPattern,
    tokens: Vec<Option<Box<[u8]>>>,
    ids: HashMap<String, u32>,
    specials: BTreeMap<String, u32>,
    end_of_text: u32,
    json: Vec<u8>,
    hash: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("Tokenizer");
        s.field("vocab_size", &self.vocab_size()).field("specials", &self.specials).field("hash", &self.hash);
        s.finish_non_exhaustive()
    }
}

thread_local! {
    /// Caches depend on the tokenizer, so each remembers whose it is.
    static SCRATCH: RefCell<Option<(String, Scratch)>> = const { RefCell::new(None) };
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the file of that name in a folder.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] for anything but a byte-level BPE with a known split pattern and all 256 bytes, for
    /// repeated tokens or ids, merges of unknown tokens, and a missing [`END_OF_TEXT`].
    pub fn load(path: &Path) -> Result<Self> {
        let path: PathBuf = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_path_buf() };
        let json = crate::folder::read_bounded(&path, "file size in bytes", MAX_FILE_BYTES)?;
        Self::from_json(json, &path)
    }

    /// Builds the tokenizer from the bytes of a `tokenizer.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_json(json: Vec<u8>, path: &Path) -> Result<Self> {
        let file::Parts { bpe, split, tokens, ids, specials } = file::parse(&json, path)?;
        let missing = || DataError::tokenizer(path, TokenizerProblem::MissingSpecial(END_OF_TEXT.to_owned()));
        let end_of_text = *specials.get(END_OF_TEXT).ok_or_else(missing)?;
        let hash = blake3::hash(&json).to_hex().to_string();
        Ok(Self { bpe, split, tokens, ids, specials, end_of_text, json, hash })
    }

    /// Encodes text as ordinary text; decoding the result gives the text back exactly.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.as_ref().is_none_or(|(hash, _)| *hash != self.hash) {
                *scratch = Some((self.hash.clone(), Scratch::new()));
            }
            let (_, scratch) = scratch.as_mut().expect("set just above");
            let mut ids = Vec::with_capacity(text.len() / 3);
            for piece in self.split.pieces(text) {
                self.bpe.encode(piece.as_bytes(), scratch, &mut ids);
            }
            ids
        })
    }

    /// Encodes many texts in parallel; the result does not depend on the number of threads.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Vec<Vec<u32>> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// The text of the tokens; special tokens are written out, bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id).unwrap_or("\u{fffd}".as_bytes()));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of a token; `None` for an id without one.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// The id of a token as it is written in the file.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The id of [`END_OF_TEXT`].
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Whether the id is a special token, which no text encodes to.
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.values().any(|&special| special == id)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// BLAKE3 (hex) of the file.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The bytes of the file.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// UTF-8 bytes of the tokens of `rows` that have a weight above 0; special tokens count 0: what
    /// [`crate::ShardMeta::text_bytes`] holds.
    pub fn text_bytes(&self, rows: &[TokenRow]) -> u64 {
        let mut bytes: Vec<u64> = self.tokens.iter().map(|t| t.as_ref().map_or(0, |t| t.len() as u64)).collect();
        for &special in self.specials.values() {
            bytes[special as usize] = 0;
        }
        let in_row = |row: &TokenRow| {
            let predicted = row.ids.iter().zip(&row.weights).filter(|(_, weight)| **weight > 0.0);
            predicted.map(|(&id, _)| bytes.get(id as usize).copied().unwrap_or(0)).sum::<u64>()
        };
        rows.iter().map(in_row).sum()
    }
}

#[cfg(test)]
mod tests;
