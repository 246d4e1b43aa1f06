//! What a `tokenizer.json` says, checked before anything is built from it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::invalid;
use crate::error::ModelError;

/// How text is cut into pieces before pairs are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// GPT-2.
    Gpt2,
    /// Llama 3: cl100k as its converted files spell it.
    Llama3,
    /// Qwen 2: the same with single digits.
    Qwen2,
    /// cl100k with its possessive quantifiers.
    Cl100k,
    /// o200k.
    O200k,
}

/// The split that a pattern is, where it is a known one.
pub(crate) fn known_split(pattern: &str) -> Option<Split> {
    SPLIT_PATTERNS.iter().find(|(_, known)| *known == pattern).map(|(split, _)| *split)
}

/// Patterns that text may be split with. Each matches in time linear in the text; any other is refused, since a
/// tokenizer file can come from anywhere and a pattern can be made to take forever.
const SPLIT_PATTERNS: &[(Split, &str)] = &[
    (Split::Gpt2, r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    (
        Split::Llama3,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        Split::Qwen2,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        Split::Cl100k,
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    (
        Split::O200k,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// The parts of the file that are checked here; other keys are left to the encoder.
#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    pub(super) model: BpeModel,
}

/// One entry of `added_tokens`.
#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
}

/// The `model` section.
#[derive(Deserialize)]
pub(super) struct BpeModel {
    #[serde(rename = "type", default = "bpe")]
    kind: String,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    pub(super) vocab: Entries,
}

/// Old files leave the model's type out; they are BPE if they have merges.
fn bpe() -> String {
    "BPE".to_owned()
}

/// The vocabulary in file order with repeated keys kept, which a map would hide.
#[derive(Default)]
pub(super) struct Entries(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl TokenizerFile {
    /// Parses the file and checks everything that the encoder would accept silently.
    pub(super) fn parse(json: &[u8], origin: &Path) -> Result<Self, ModelError> {
        let file: Self = serde_json::from_slice(json).map_err(|e| invalid(origin, e.to_string()))?;
        file.model.check(origin)?;
        check_normalizer(file.normalizer.as_ref(), origin)?;
        check_pre_tokenizer(file.pre_tokenizer.as_ref(), origin)?;
        file.check_ids(origin)?;
        Ok(file)
    }

    /// Every token and id once, ids dense enough to index with, all 256 bytes spelled.
    fn check_ids(&self, origin: &Path) -> Result<(), ModelError> {
        let mut id_of: HashMap<&str, u32> = HashMap::new();
        let mut token_of: HashMap<u32, &str> = HashMap::new();
        for (token, id) in &self.model.vocab.0 {
            if let Some(first) = id_of.insert(token, *id) {
                return Err(invalid(origin, format!("model.vocab lists {token:?} twice, with ids {first} and {id}")));
            }
            if let Some(first) = token_of.insert(*id, token) {
                return Err(invalid(origin, format!("model.vocab gives id {id} to both {first:?} and {token:?}")));
            }
        }
        let mut added = HashSet::new();
        for token in &self.added_tokens {
            if token.content.is_empty() || !added.insert(token.content.as_str()) {
                let reason = format!("added_tokens has an empty or repeated token {:?}", token.content);
                return Err(invalid(origin, reason));
            }
            let known = id_of.insert(&token.content, token.id);
            let holder = token_of.insert(token.id, &token.content);
            if known.is_some_and(|id| id != token.id) || holder.is_some_and(|name| name != token.content) {
                let reason = format!("added token {:?} with id {} collides with model.vocab", token.content, token.id);
                return Err(invalid(origin, reason));
            }
        }
        // A stray huge id would otherwise size the table of all ids.
        let largest = token_of.keys().max().map_or(0, |&id| id as usize);
        if largest > 2 * token_of.len() + 65_536 {
            return Err(invalid(origin, format!("the largest id is {largest} among {} tokens", token_of.len())));
        }
        self.check_bytes(&added, origin)
    }

    /// All 256 bytes are ordinary tokens, so that every text can be encoded.
    fn check_bytes(&self, added: &HashSet<&str>, origin: &Path) -> Result<(), ModelError> {
        let ordinary: HashSet<&str> = self.model.vocab.0.iter().map(|(token, _)| token.as_str()).collect();
        let missing: Vec<String> = (0..=255u8)
            .filter(|&byte| {
                let spelling = byte_char(byte).to_string();
                !ordinary.contains(spelling.as_str()) || added.contains(spelling.as_str())
            })
            .map(|byte| format!("0x{byte:02x}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let shown = missing[..missing.len().min(8)].join(", ");
        Err(invalid(origin, format!("model.vocab has no token for {} of the 256 bytes: {shown}", missing.len())))
    }

    /// What every id decodes to: the bytes a token spells, the content of an added token as it is written.
    pub(super) fn bytes_by_id(&self) -> Vec<Option<Box<[u8]>>> {
        let byte_of: HashMap<char, u8> = (0..=255u8).map(|byte| (byte_char(byte), byte)).collect();
        let entries = &self.model.vocab.0;
        let largest = entries.iter().map(|(_, id)| *id).chain(self.added_tokens.iter().map(|t| t.id)).max();
        let mut table = vec![None; largest.map_or(0, |id| id as usize + 1)];
        for (token, id) in entries {
            let spelled: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
            table[*id as usize] = Some(spelled.unwrap_or_else(|| token.as_bytes().to_vec()).into_boxed_slice());
        }
        for token in &self.added_tokens {
            table[token.id as usize] = Some(token.content.as_bytes().into());
        }
        table
    }
}

impl BpeModel {
    fn check(&self, origin: &Path) -> Result<(), ModelError> {
        let affix = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
        let problem = if self.kind != "BPE" {
            Some(format!("model.type is {:?}", self.kind))
        } else if self.byte_fallback {
            Some("model.byte_fallback is set, as in SentencePiece vocabularies".to_owned())
        } else if self.dropout.is_some_and(|p| p != 0.0) {
            Some("model.dropout makes encoding random".to_owned())
        } else if affix(&self.continuing_subword_prefix) || affix(&self.end_of_word_suffix) {
            Some("model.continuing_subword_prefix or end_of_word_suffix is set".to_owned())
        } else {
            None
        };
        problem.map_or(Ok(()), |found| Err(unsupported(origin, found, "a byte-level BPE without these options")))
    }
}

/// NFC is the one rewriting of text that is accepted: it keeps meaning and sight of every character.
fn check_normalizer(normalizer: Option<&Value>, origin: &Path) -> Result<(), ModelError> {
    match normalizer {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value["type"] == "NFC" => Ok(()),
        Some(value) => {
            let found = format!("normalizer {}", value["type"]);
            Err(unsupported(origin, found, "none or NFC, since text must come back as it went in"))
        }
    }
}

/// A byte-level step, alone or after splits by known patterns.
fn check_pre_tokenizer(pre_tokenizer: Option<&Value>, origin: &Path) -> Result<(), ModelError> {
    let expected = "ByteLevel without prefix space, alone or after Split or Digits steps";
    let Some(value) = pre_tokenizer.filter(|value| !value.is_null()) else {
        return Err(unsupported(origin, "no pre_tokenizer".to_owned(), expected));
    };
    let alone = std::slice::from_ref(value);
    let steps =
        if value["type"] == "Sequence" { value["pretokenizers"].as_array().map_or(&[][..], |v| v) } else { alone };
    let Some((last, splits)) = steps.split_last() else {
        return Err(unsupported(origin, "an empty pre_tokenizer".to_owned(), expected));
    };
    if last["type"] != "ByteLevel" {
        return Err(unsupported(origin, format!("a pre_tokenizer that ends with {}", last["type"]), expected));
    }
    // Left out, `add_prefix_space` means true to the library that wrote these files.
    if last["add_prefix_space"] != Value::Bool(false) {
        return Err(unsupported(origin, "ByteLevel with add_prefix_space".to_owned(), expected));
    }
    splits.iter().try_for_each(|step| check_split(step, origin, expected))
}

fn check_split(step: &Value, origin: &Path, expected: &'static str) -> Result<(), ModelError> {
    if step["type"] == "Digits" {
        return Ok(());
    }
    if step["type"] != "Split" {
        return Err(unsupported(origin, format!("pre_tokenizer step {}", step["type"]), expected));
    }
    let pattern = step["pattern"]["Regex"].as_str().unwrap_or_default();
    if known_split(pattern).is_none() {
        let found = format!("split pattern {}", step["pattern"]);
        return Err(unsupported(origin, found, "one of the GPT-2, Llama 3, Qwen 2, cl100k or o200k patterns"));
    }
    if step["behavior"] != "Isolated" || step["invert"] == Value::Bool(true) {
        return Err(unsupported(origin, "a Split that is not Isolated or is inverted".to_owned(), expected));
    }
    Ok(())
}

fn unsupported(path: &Path, found: String, expected: &'static str) -> ModelError {
    ModelError::TokenizerUnsupported { path: path.to_path_buf(), found, expected }
}

/// The visible character that byte-level vocabularies spell a byte with.
///
/// # Source
/// Radford et al. 2019 (GPT-2): printable Latin-1 bytes stand for themselves, the other 68 for U+0100 upward in order.
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + nth).expect("U+0100 plus at most 67 is a character")
}
