//! Reads a `tokenizer.json` and refuses everything that this crate's encoder would not reproduce exactly.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::bpe::Bpe;
use super::split::SplitPattern;
use crate::error::{DataError, Result, TokenizerProblem};

/// Ids beyond this are not real.
const MAX_ID: u32 = 1 << 22;

/// What the encoder and decoder need.
pub(super) struct Parts {
    pub(super) bpe: Bpe,
    pub(super) split: SplitPattern,
    /// The bytes of each id; special tokens have their content.
    pub(super) tokens: Vec<Option<Box<[u8]>>>,
    pub(super) ids: HashMap<String, u32>,
    pub(super) specials: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocab,
    merges: Vec<Merge>,
}

/// Old files write a merge as one string, new ones as a pair.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

impl Merge {
    fn parts(&self) -> (&str, &str) {
        match self {
            Self::Pair(left, right) => (left, right),
            Self::Joined(both) => both.split_once(' ').unwrap_or((both, "")),
        }
    }
}

/// The vocabulary in file order; a map would hide repeated keys.
struct Vocab(Vec<(String, u64)>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Parses and checks the file.
pub(super) fn parse(json: &[u8], path: &Path) -> Result<Parts> {
    let file: File = serde_json::from_slice(json).map_err(|e| DataError::tokenizer(path, TokenizerProblem::Json(e)))?;
    build(file).map_err(|problem| DataError::tokenizer(path, problem))
}

fn build(file: File) -> Result<Parts, TokenizerProblem> {
    check_model(&file.model)?;
    if !file.normalizer.is_null() {
        return Err(unsupported("normalizer", "null, so that text comes back as it went in", &file.normalizer));
    }
    let split = split_pattern(&file.pre_tokenizer)?;
    let mut ids: HashMap<String, u32> = HashMap::with_capacity(file.model.vocab.0.len());
    let mut tokens: Vec<Option<Box<[u8]>>> = Vec::new();
    let specials: BTreeMap<String, u32> = file.added_tokens.iter().map(|t| (t.content.clone(), t.id)).collect();
    let bytes_of: HashMap<char, u8> = (0..=255).map(|byte| (byte_char(byte), byte)).collect();
    for (token, id) in file.model.vocab.0 {
        let id = u32::try_from(id).ok().filter(|&id| id <= MAX_ID).ok_or(TokenizerProblem::IdTooLarge(id, MAX_ID))?;
        if specials.get(&token).is_some_and(|&special| special == id) {
            continue; // Some files list special tokens in the vocabulary too.
        }
        let bytes: Option<Box<[u8]>> = token.chars().map(|c| bytes_of.get(&c).copied()).collect();
        let bytes = bytes.ok_or_else(|| TokenizerProblem::NotByteLevel(token.clone()))?;
        place(&mut tokens, &mut ids, token, id, bytes)?;
    }
    let byte_ids = byte_ids(&ids)?;
    let bpe = Bpe::new(byte_ids, &merges(&file.model.merges, &ids)?);
    for Added { id, content } in file.added_tokens {
        if id > MAX_ID {
            return Err(TokenizerProblem::IdTooLarge(id.into(), MAX_ID));
        }
        let bytes = content.as_bytes().into();
        place(&mut tokens, &mut ids, content, id, bytes)?;
    }
    Ok(Parts { bpe, split, tokens, ids, specials })
}

fn place(
    tokens: &mut Vec<Option<Box<[u8]>>>,
    ids: &mut HashMap<String, u32>,
    token: String,
    id: u32,
    bytes: Box<[u8]>,
) -> Result<(), TokenizerProblem> {
    if tokens.len() <= id as usize {
        tokens.resize(id as usize + 1, None);
    }
    let taken = tokens[id as usize].replace(bytes).is_some();
    if taken || ids.insert(token.clone(), id).is_some() {
        return Err(TokenizerProblem::Duplicate { token, id });
    }
    Ok(())
}

fn byte_ids(ids: &HashMap<String, u32>) -> Result<[u32; 256], TokenizerProblem> {
    let mut found = [0; 256];
    for byte in 0..=255u8 {
        let id = ids.get(byte_char(byte).to_string().as_str()).ok_or(TokenizerProblem::MissingByte(byte))?;
        found[usize::from(byte)] = *id;
    }
    Ok(found)
}

fn merges(merges: &[Merge], ids: &HashMap<String, u32>) -> Result<Vec<(u32, u32, u32)>, TokenizerProblem> {
    let mut found = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let (left, right) = merge.parts();
        let result = format!("{left}{right}");
        match (ids.get(left), ids.get(right), ids.get(&result)) {
            (Some(&left), Some(&right), Some(&result)) => found.push((left, right, result)),
            _ => return Err(TokenizerProblem::Merge { rank, left: left.into(), right: right.into() }),
        }
    }
    Ok(found)
}

fn check_model(model: &Model) -> Result<(), TokenizerProblem> {
    let empty = |value: &Value| value.is_null() || value == "";
    let no = |part, expected, value: &Value| Err(unsupported(part, expected, value));
    if !(model.kind.is_null() || model.kind == "BPE") {
        return no("model.type", "\"BPE\"", &model.kind);
    }
    if !(model.dropout.is_null() || model.dropout == 0.0) {
        return no("model.dropout", "null, since encoding must not be random", &model.dropout);
    }
    if !empty(&model.continuing_subword_prefix) || !empty(&model.end_of_word_suffix) {
        let value = Value::from(vec![model.continuing_subword_prefix.clone(), model.end_of_word_suffix.clone()]);
        return no("model.continuing_subword_prefix and end_of_word_suffix", "empty", &value);
    }
    if model.byte_fallback {
        return no("model.byte_fallback", "false", &Value::Bool(true));
    }
    if model.ignore_merges {
        return no("model.ignore_merges", "false", &Value::Bool(true));
    }
    Ok(())
}

/// `ByteLevel` with its own pattern, or a `Split` by a known expression before a `ByteLevel` without one.
fn split_pattern(value: &Value) -> Result<SplitPattern, TokenizerProblem> {
    let expected = "ByteLevel without prefix space, alone or after one Split by the GPT-2, Llama 3 or Qwen 2 pattern";
    let refuse = || unsupported("pre_tokenizer", expected, value);
    let alone = std::slice::from_ref(value);
    let steps =
        if value["type"] == "Sequence" { value["pretokenizers"].as_array().map_or(&[][..], |v| v) } else { alone };
    let is_byte_level = |step: &Value| step["type"] == "ByteLevel" && step["add_prefix_space"] == false;
    // Left out, `use_regex` means true to the library that wrote these files.
    let has_own_pattern = |step: &Value| step["use_regex"].as_bool().unwrap_or(true);
    match steps {
        [step] if is_byte_level(step) && has_own_pattern(step) => Ok(SplitPattern::Gpt2),
        [split, step] if is_byte_level(step) && !has_own_pattern(step) => {
            let isolated = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true;
            let pattern = split["pattern"]["Regex"].as_str().filter(|_| isolated);
            pattern.and_then(SplitPattern::from_regex).ok_or_else(refuse)
        }
        _ => Err(refuse()),
    }
}

fn unsupported(part: &'static str, expected: &'static str, found: &Value) -> TokenizerProblem {
    TokenizerProblem::Unsupported { part, expected, found: found.to_string() }
}

/// The visible character that byte-level vocabularies write a byte with.
///
/// # Source
/// Radford et al. 2019 (GPT-2): printable Latin-1 stands for itself, the other bytes for U+0100 upwards in order.
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).expect("68 characters from U+0100 on")
}
