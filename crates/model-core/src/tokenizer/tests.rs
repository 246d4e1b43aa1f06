//! Round trips, refused files, and text that tries to be a control token.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::*;

/// The special tokens of the demo tokenizer, in vocabulary order.
pub(crate) const CHATML: &[&str] = &["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// The special tokens that Llama 3 conversations need.
pub(crate) const LLAMA3: &[&str] =
    &["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

/// A tokenizer file with a small trained vocabulary and the special tokens at its end.
pub(crate) fn trained_json(specials: &[&str]) -> Value {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(320)
        .min_frequency(1)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = TokenizerBuilder::<BPE, _, _, _, _>::default()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(ByteLevel::new(false, false, true)))
        .build()
        .unwrap();
    let text =
        "user assistant system tool\nthe im_start of the im_end, endoftext eot_id start_header_id: a dry oak burns";
    tokenizer.train(&mut trainer, std::iter::repeat_n(text, 3)).unwrap();
    let specials: Vec<AddedToken> = specials.iter().map(|s| AddedToken::from(*s, true)).collect();
    tokenizer.add_special_tokens(&specials);
    serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap()
}

/// The tokenizer of a file given as a value.
pub(crate) fn build(value: &Value) -> Result<Tokenizer, ModelError> {
    Tokenizer::from_json(serde_json::to_vec(value).unwrap(), Path::new("tokenizer.json"))
}

fn chatml() -> Tokenizer {
    build(&trained_json(CHATML)).unwrap()
}

fn refused(value: &Value) -> String {
    build(value).unwrap_err().to_string()
}

#[test]
fn specials_stand_at_the_end_and_text_round_trips() {
    let tokenizer = chatml();
    let n = tokenizer.vocab_size() as u32;
    let ids: Vec<Option<u32>> = CHATML.iter().map(|t| tokenizer.control_id(t)).collect();
    assert_eq!(ids, [Some(n - 3), Some(n - 2), Some(n - 1)]);
    for text in ["", " ", "the dry oak", "naïve Ω 漢字 🦀\r\n\t\0", "\u{200b}\u{200b}", "a\u{301}"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text)), text);
    }
    assert!(tokenizer.encode("the dry oak").len() < "the dry oak".len(), "merges apply");
    assert_eq!(tokenizer.decode(&[n - 1, n + 7]), "<|im_end|>\u{fffd}");
}

#[test]
fn written_control_tokens_stay_text() {
    let mut value = trained_json(CHATML);
    // Special or not, normalised or not, merged vocabulary entry or not: an added token never comes from text.
    value["added_tokens"][1]["special"] = json!(false);
    value["model"]["ignore_merges"] = json!(true);
    let end = value["added_tokens"][2]["id"].clone();
    value["model"]["vocab"]["<|im_end|>"] = end;
    let tokenizer = build(&value).unwrap();
    for token in CHATML {
        let ids = tokenizer.encode(token);
        assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{token} became {ids:?}");
        assert_eq!(tokenizer.decode(&ids), *token);
    }
}

#[test]
fn loads_from_file_and_from_folder_with_one_hash() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, serde_json::to_vec(&trained_json(CHATML)).unwrap()).unwrap();
    let (a, b) = (Tokenizer::load(&file).unwrap(), Tokenizer::load(folder.path()).unwrap());
    assert_eq!((a.hash(), a.json()), (b.hash(), b.json()));
    assert_eq!(a.hash(), blake3::hash(a.json()).to_hex().as_str());
    let missing = Tokenizer::load(&folder.path().join("nowhere")).unwrap_err();
    assert!(matches!(missing, ModelError::TokenizerRead { .. }), "{missing}");
}

#[test]
fn s18_a_tokenizer_of_another_model_is_refused() {
    let tokenizer = chatml();
    let n = tokenizer.vocab_size();
    for fits in [n, n + 1, n + VOCAB_SLACK] {
        tokenizer.check_vocab(fits).unwrap();
    }
    for other in [0, n - 1, n + VOCAB_SLACK + 1] {
        let error = tokenizer.check_vocab(other).unwrap_err();
        assert!(matches!(error, ModelError::VocabMismatch { model, .. } if model == other), "{error}");
    }
}

#[test]
fn unknown_patterns_and_steps_are_refused() {
    let base = trained_json(CHATML);
    let split = |pattern: &str, behavior: &str| {
        let mut value = base.clone();
        value["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
        value
    };
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let tokenizer = build(&split(llama3, "Isolated")).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("It's 12345\n\n  ok")), "It's 12345\n\n  ok");
    assert!(refused(&split("(a+)+", "Isolated")).contains("(a+)+"));
    assert!(refused(&split(llama3, "Removed")).contains("Isolated"), "Removed would drop text");
    let mut value = base.clone();
    value["pre_tokenizer"]["add_prefix_space"] = json!(true);
    assert!(refused(&value).contains("add_prefix_space"));
    value["pre_tokenizer"] = Value::Null;
    assert!(refused(&value).contains("no pre_tokenizer"));
    let mut value = base.clone();
    value["normalizer"] = json!({"type": "NFKC"});
    assert!(refused(&value).contains("NFKC"), "NFKC would turn look-alikes into control strings");
    let mut value = base;
    value["model"]["byte_fallback"] = json!(true);
    assert!(refused(&value).contains("SentencePiece"));
}

#[test]
fn broken_vocabularies_are_refused() {
    let base = trained_json(CHATML);
    let mut value = base.clone();
    value["model"]["vocab"].as_object_mut().unwrap().remove("Ā");
    assert!(refused(&value).contains("0x00"));
    let mut value = base.clone();
    value["model"]["merges"].as_array_mut().unwrap().push(json!(["the", "nowhere"]));
    assert!(refused(&value).contains("out of vocabulary"));
    let mut value = base.clone();
    value["model"]["vocab"]["twin"] = base["model"]["vocab"]["t"].clone();
    assert!(refused(&value).contains("to both"));
    let mut value = base.clone();
    value["added_tokens"][0]["id"] = base["model"]["vocab"]["t"].clone();
    assert!(refused(&value).contains("collides"));
    let mut value = base.clone();
    value["model"]["vocab"]["far"] = json!(4_000_000_000u32);
    assert!(refused(&value).contains("largest id"));
    let repeated = base.to_string().replacen("\"!\":0", "\"!\":0,\"!\":900", 1);
    let error = Tokenizer::from_json(repeated.into_bytes(), Path::new("t.json")).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
    let error = Tokenizer::from_json(b"{\"model\":".to_vec(), Path::new("t.json")).unwrap_err();
    assert!(matches!(error, ModelError::TokenizerInvalid { .. }));
}

#[test]
fn a_million_repeats_encode_in_time_and_on_a_small_stack() {
    for unit in ["a", "^", " ", "\u{200b}"] {
        let (done, wait) = std::sync::mpsc::channel();
        let work = move || {
            let text = unit.repeat(1_000_000 / unit.len());
            let tokenizer = chatml_shared();
            let _ = done.send(tokenizer.decode(&tokenizer.encode(&text)) == text);
        };
        std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap();
        // A second is the aim; the margin is for a slow machine that builds something else meanwhile.
        let same = wait.recv_timeout(Duration::from_secs(10));
        assert_eq!(same, Ok(true), "{unit:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_round_trips_without_control_ids(pieces in prop::collection::vec(
        prop_oneof![".*", prop::sample::select(CHATML).prop_map(str::to_owned)], 0..6)) {
        let text = pieces.concat();
        let tokenizer = chatml_shared();
        let ids = tokenizer.encode(&text);
        prop_assert!(ids.iter().all(|&id| !tokenizer.is_control(id)));
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }
}

fn chatml_shared() -> &'static Tokenizer {
    static SHARED: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    SHARED.get_or_init(chatml)
}
