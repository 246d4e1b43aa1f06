//! The tokenizer as llama.cpp wants it: every token with its kind, merges, the name of the split, and the special ids.
//!
//! # Source
//! llama.cpp's converter (`_set_vocab_gpt2`) and its loader (`llama-vocab.cpp`).

use std::path::Path;

use serde_json::Value as Json;

use super::file::{Metadata, Value};
use super::refused;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::hf::folder::read_limited;
use crate::hf::json;
use crate::tokenizer::{Split, Tokenizer, known_split};

/// Kinds of tokens in the file.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
}

const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
const MAX_BYTES: u64 = 16 << 20;

/// Keys of the tokenizer of a model folder.
///
/// # Errors
/// When there is no tokenizer, it is not the model's, or it splits text in a way that llama.cpp has no name for.
pub(super) fn metadata(dir: &Path, config: &ModelConfig) -> Result<Metadata, ModelError> {
    let tokenizer = Tokenizer::load(dir)?;
    tokenizer.check_vocab(config.vocab_size)?;
    let file: Json = serde_json::from_slice(tokenizer.json()).expect("a tokenizer that loaded is JSON");
    let beside = side_file(dir)?;
    let Some(&eos) = config.eos_ids.first() else {
        return Err(ModelError::ConfigMissing { key: "eos_token_id", expected: "the token that ends a text" });
    };
    // Without a key llama.cpp takes token 11 for either.
    let bos = config.bos_id.unwrap_or(eos);
    let (tokens, kinds) = tokens(&file, config.vocab_size);
    let ids = [
        ("bos_token_id", Some(bos)),
        ("eos_token_id", Some(eos)),
        ("eot_token_id", config.eos_ids.get(1).copied()),
        ("eom_token_id", config.eos_ids.get(2).copied()),
        ("padding_token_id", config.pad_id),
    ];
    let mut out = vec![
        ("tokenizer.ggml.model".to_owned(), Value::Text("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::Text(split_name(&file)?.to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Texts(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::I32s(kinds)),
        ("tokenizer.ggml.merges".to_owned(), Value::Texts(merges(&file))),
        ("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(adds_bos(&file, &beside, bos))),
    ];
    out.extend(ids.into_iter().filter_map(|(key, id)| Some((format!("tokenizer.ggml.{key}"), Value::U32(id?)))));
    out.extend(template(dir, &beside)?.map(|text| ("tokenizer.chat_template".to_owned(), Value::Text(text))));
    Ok(out)
}

/// Spelling and kind of every row of the embedding; rows without a token are there to pad it.
fn tokens(file: &Json, vocab_size: usize) -> (Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![kind::UNUSED; vocab_size];
    let mut put = |id: Option<u64>, token: &str, kind: i32| {
        let id = id.expect("a tokenizer that loaded has ids") as usize;
        (tokens[id], kinds[id]) = (token.to_owned(), kind);
    };
    for (token, id) in file["model"]["vocab"].as_object().into_iter().flatten() {
        put(id.as_u64(), token, kind::NORMAL);
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let special = added["special"].as_bool().unwrap_or_default();
        let token = added["content"].as_str().expect("a tokenizer that loaded has texts");
        put(added["id"].as_u64(), token, if special { kind::CONTROL } else { kind::USER_DEFINED });
    }
    (tokens, kinds)
}

/// Pairs with a blank between, whether the file has them so or as two texts.
fn merges(file: &Json) -> Vec<String> {
    let text = |merge: &Json| match merge {
        Json::Array(pair) => pair.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" "),
        merge => merge.as_str().unwrap_or_default().to_owned(),
    };
    file["model"]["merges"].as_array().into_iter().flatten().map(text).collect()
}

/// llama.cpp's name of the way text is cut, which also says whether whole words are looked up before pairs are merged.
fn split_name(file: &Json) -> Result<&'static str, ModelError> {
    let steps = match &file["pre_tokenizer"]["pretokenizers"] {
        Json::Array(steps) => steps.as_slice(),
        _ => std::slice::from_ref(&file["pre_tokenizer"]),
    };
    let (last, before) = steps.split_last().expect("a tokenizer that loaded has a step");
    let cuts = last["use_regex"] != Json::Bool(false);
    let whole_words = file["model"]["ignore_merges"] == Json::Bool(true);
    let split = |step: &Json| known_split(step["pattern"]["Regex"].as_str().unwrap_or_default());
    let known = match before {
        [] if cuts => Some(Split::Gpt2),
        [digits] if cuts && digits["type"] == "Digits" && digits["individual_digits"] == true && !whole_words => {
            return Ok("smollm");
        }
        [step] if !cuts => split(step),
        _ => None,
    };
    match (known, whole_words) {
        (Some(Split::Gpt2), false) => Ok("gpt-2"),
        (Some(Split::Qwen2), false) => Ok("qwen2"),
        (Some(Split::Llama3 | Split::Cl100k), true) => Ok("llama-bpe"),
        (Some(Split::Llama3 | Split::Cl100k), false) => Ok("dbrx"),
        // Every token of tiktoken's ranks is what its own bytes merge to, so that looking words up changes nothing.
        (Some(Split::O200k), _) => Ok("gpt-4o"),
        _ => {
            let expected = "the GPT-2, Llama 3, cl100k, Qwen 2 or o200k split, or single digits before GPT-2's";
            let lookup = if whole_words { " with ignore_merges" } else { "" };
            let got = format!("{}{lookup}", file["pre_tokenizer"]);
            Err(refused("pre_tokenizer", expected.to_owned(), got))
        }
    }
}

/// What the side file says, else whether the post-processor puts the token first.
fn adds_bos(file: &Json, beside: &Json, bos: u32) -> bool {
    if let Some(adds) = beside["add_bos_token"].as_bool() {
        return adds;
    }
    let mut processors = vec![&file["post_processor"]];
    processors.extend(file["post_processor"]["processors"].as_array().into_iter().flatten());
    let first = processors.into_iter().find_map(|step| step["single"].get(0)?.get("SpecialToken")?["id"].as_str());
    let spelled = |added: &&Json| added["id"].as_u64() == Some(u64::from(bos));
    let bos = file["added_tokens"].as_array().and_then(|all| all.iter().find(spelled));
    first.is_some() && first == bos.and_then(|bos| bos["content"].as_str())
}

fn side_file(dir: &Path) -> Result<Json, ModelError> {
    let path = dir.join(CONFIG_FILE);
    if !path.exists() {
        return Ok(Json::Null);
    }
    let text = read_limited(&path, MAX_BYTES)?;
    json::parse(CONFIG_FILE, &text, MAX_BYTES as usize).map_err(|error| error.in_file(&path))
}

fn template(dir: &Path, beside: &Json) -> Result<Option<String>, ModelError> {
    let path = dir.join(TEMPLATE_FILE);
    if !path.exists() {
        return Ok(beside["chat_template"].as_str().map(str::to_owned));
    }
    let text = read_limited(&path, MAX_BYTES)?;
    let not_utf8 = |error: std::string::FromUtf8Error| refused(TEMPLATE_FILE, "UTF-8".to_owned(), error);
    String::from_utf8(text).map(Some).map_err(not_utf8)
}
