//! Byte-level BPE tokenizers from `tokenizer.json`, encoding ordinary text only.
//!
//! Text is never searched for control tokens: the encoder is built from the file *without* its added tokens, so no
//! sequence of characters can produce one. Control ids enter a sequence only where [`crate::chat`] puts them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::ModelError;

mod file;

use file::{AddedToken, TokenizerFile};
pub(crate) use file::{Split, known_split};

/// Largest `tokenizer.json` that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Embedding rows that a model may have beyond the tokenizer's ids, as padding for its products.
pub const VOCAB_SLACK: usize = 1024;

/// A byte-level BPE tokenizer whose added tokens cannot come from text.
#[derive(Clone)]
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    ids: HashMap<String, u32>,
    added: BTreeMap<String, u32>,
    added_ids: HashSet<u32>,
    bytes_by_id: Vec<Option<Box<[u8]>>>,
    json: Vec<u8>,
    hash: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("added", &self.added)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or the file of that name when `path` is a folder.
    ///
    /// # Errors
    /// When the file cannot be read, is not a byte-level BPE, lacks a byte, repeats a token or an id, has a merge of
    /// unknown tokens, or splits text with a pattern that is not on the list of known ones.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let io = |source| ModelError::TokenizerRead { path: path.clone(), source };
        let size = std::fs::metadata(&path).map_err(io)?.len();
        if size > MAX_FILE_BYTES {
            return Err(invalid(&path, format!("the file has {size} bytes, at most {MAX_FILE_BYTES} are read")));
        }
        Self::from_json(std::fs::read(&path).map_err(io)?, &path)
    }

    /// Builds the tokenizer from the bytes of a `tokenizer.json`; `origin` only names it in errors.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_json(json: Vec<u8>, origin: &Path) -> Result<Self, ModelError> {
        let file = TokenizerFile::parse(&json, origin)?;
        let hash = blake3::hash(&json).to_hex().to_string();
        let encoder = ordinary_encoder(&json, &file, origin)?;
        let added: BTreeMap<String, u32> = file.added_tokens.iter().map(|t| (t.content.clone(), t.id)).collect();
        let added_ids = added.values().copied().collect();
        let bytes_by_id = file.bytes_by_id();
        let ids = file.model.vocab.0.into_iter().chain(added.clone()).collect();
        Ok(Self { encoder, ids, added, added_ids, bytes_by_id, json, hash })
    }

    /// Encodes text as ordinary text: control tokens written out in it become plain characters.
    ///
    /// Decoding gives the text back exactly, except that a tokenizer with an NFC step returns the NFC form.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let encoding =
            self.encoder.encode_fast(text, false).expect("every byte has a token, so every text can be encoded");
        let ids = encoding.get_ids().to_vec();
        assert!(
            !ids.iter().any(|id| self.added_ids.contains(id)),
            "encoding ordinary text gave an added token; the encoder is built without them"
        );
        ids
    }

    /// The text of the tokens, control tokens written out; bytes that are not UTF-8 and unknown ids become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id).unwrap_or("\u{fffd}".as_bytes()));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes a token stands for, `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes_by_id.get(id as usize)?.as_deref()
    }

    /// The id of a token, ordinary or added, by the spelling it has in the file.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The id of an added token, which no text can produce.
    pub fn control_id(&self, token: &str) -> Option<u32> {
        self.added.get(token).copied()
    }

    /// Whether the id is an added token.
    pub fn is_control(&self, id: u32) -> bool {
        self.added_ids.contains(&id)
    }

    /// The added tokens with their ids, by name.
    pub fn control_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.added.iter().map(|(token, &id)| (token.as_str(), id))
    }

    /// One more than the largest id, the least number of embedding rows a model needs.
    pub fn vocab_size(&self) -> usize {
        self.bytes_by_id.len()
    }

    /// Checks that a model with that many embedding rows can be this tokenizer's.
    ///
    /// # Errors
    /// [`ModelError::VocabMismatch`] when there are fewer rows than ids, or more than [`VOCAB_SLACK`] beyond them.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), ModelError> {
        let tokenizer = self.vocab_size();
        if (tokenizer..=tokenizer + VOCAB_SLACK).contains(&vocab_size) {
            return Ok(());
        }
        Err(ModelError::VocabMismatch { tokenizer, model: vocab_size, slack: VOCAB_SLACK })
    }

    /// BLAKE3 of the file in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The bytes of the file, to write next to a checkpoint.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

/// The encoder without added tokens, truncation, padding and post-processing: text in, ordinary ids out.
fn ordinary_encoder(json: &[u8], file: &TokenizerFile, origin: &Path) -> Result<tokenizers::Tokenizer, ModelError> {
    let mut value: Value = serde_json::from_slice(json).map_err(|e| invalid(origin, e.to_string()))?;
    for key in ["truncation", "padding", "post_processor"] {
        value[key] = Value::Null;
    }
    value["added_tokens"] = Value::Array(Vec::new());
    if let Some(vocab) = value["model"]["vocab"].as_object_mut() {
        for AddedToken { content, .. } in &file.added_tokens {
            vocab.remove(content);
        }
    }
    let stripped = serde_json::to_vec(&value).map_err(|e| invalid(origin, e.to_string()))?;
    tokenizers::Tokenizer::from_bytes(stripped).map_err(|e| invalid(origin, e.to_string()))
}

fn invalid(path: &Path, reason: String) -> ModelError {
    ModelError::TokenizerInvalid { path: PathBuf::from(path), reason }
}

#[cfg(test)]
pub(crate) mod tests;
