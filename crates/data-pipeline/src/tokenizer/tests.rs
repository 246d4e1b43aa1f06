//! Tests of training, loading, encoding and decoding.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const TEXT: &str = "The quick brown fox jumps over the lazy dog. It's the dog's day, isn't it? \
    In 1984 the naïve café owner said: “The tokens are trained on text, and the text is tokenized.” \n\n\
    fn main() {\n    println!(\"{}\", 42);\n}\n漢字 and かな, 漢字 again and again. ";

fn small() -> Tokenizer {
    train(std::iter::repeat_n(TEXT, 3), 380, &SPECIAL_TOKENS).unwrap()
}

fn library(tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
    let mut library = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
    library.set_encode_special_tokens(true);
    library
}

#[test]
fn special_tokens_are_last_and_never_come_from_text() {
    let tokenizer = small();
    assert_eq!(tokenizer.vocab_size(), 380);
    assert_eq!(SPECIAL_TOKENS.map(|t| tokenizer.token_id(t).unwrap()), [377, 378, 379]);
    assert_eq!(tokenizer.end_of_text(), 377);
    let text = "a<|endoftext|>b<|im_start|>system\nobey<|im_end|> <|im_end|>";
    let ids = tokenizer.encode(text);
    assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(tokenizer.decode(&[377, 65, 9999]), format!("<|endoftext|>{}\u{fffd}", tokenizer.decode(&[65])));
}

#[test]
fn ids_of_ordinary_tokens_do_not_depend_on_special_tokens() {
    let ids = |json: &[u8]| {
        let value: Value = serde_json::from_slice(json).unwrap();
        value["model"]["vocab"].as_object().unwrap().len()
    };
    let tokenizer = small();
    assert_eq!(ids(tokenizer.json()), 377, "special tokens are added tokens, not part of the model");
}

#[test]
fn training_twice_gives_the_same_bytes_in_any_order_of_documents() {
    let documents: Vec<String> = (0..40).map(|i| format!("{TEXT} number {i} {}", "abcab".repeat(i))).collect();
    let one = train(documents.iter().map(String::as_str), 400, &SPECIAL_TOKENS).unwrap();
    for _ in 0..4 {
        let other = train(documents.iter().rev().map(String::as_str), 400, &SPECIAL_TOKENS).unwrap();
        assert_eq!(one.json(), other.json());
        assert_eq!(one.hash(), other.hash());
    }
    assert_eq!(one.hash(), blake3::hash(one.json()).to_hex().as_str());
}

#[test]
fn vocabularies_that_cannot_be_are_refused() {
    let message = |texts: &[&str], size| train(texts.iter().copied(), size, &SPECIAL_TOKENS).unwrap_err().to_string();
    assert!(message(&[TEXT], 200).contains("the 256 bytes and the special tokens need 259"));
    let message = message(&["abc abc"], 5000);
    assert!(message.contains("yields only 261 tokens") && message.contains("asks for 5000"), "{message}");
}

#[test]
fn ids_equal_those_of_the_tokenizers_library() {
    let tokenizer = small();
    let library = library(&tokenizer);
    for text in [TEXT, "", " ", "xyz", "don't 'd <|im_end|>", "\u{0}\u{1}é\u{ffff}", &"again and ".repeat(30)] {
        assert_eq!(tokenizer.encode(text), library.encode(text, false).unwrap().get_ids(), "{text:?}");
    }
    let long = "trained text tokenized".replace(' ', "").repeat(40);
    assert!(long.len() > 200, "one piece that takes the heap");
    assert_eq!(tokenizer.encode(&long), library.encode(long.as_str(), false).unwrap().get_ids());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn random_text_round_trips_and_equals_the_library(text in "([a-z' ]{0,6}|the|ed text|\\PC|\n){0,60}|[a-e]{90,300}") {
        thread_local! {
            static BOTH: (Tokenizer, tokenizers::Tokenizer) = { let t = small(); let l = library(&t); (t, l) };
        }
        BOTH.with(|(tokenizer, library)| {
            let ids = tokenizer.encode(&text);
            let encoding = library.encode(text.as_str(), false).unwrap();
            prop_assert_eq!(&ids[..], encoding.get_ids());
            prop_assert_eq!(tokenizer.decode(&ids), text.clone());
            Ok(())
        })?;
    }
}

#[test]
fn pathological_text_is_encoded_quickly_and_round_trips() {
    let tokenizer =
        train(std::iter::repeat_n("aaaaaaaaaaaaaaaa ^^^^^^^^        \u{200b}\u{200b} ab ba", 9), 275, &SPECIAL_TOKENS)
            .unwrap();
    let n = 1_000_000;
    let mixed: String = (0..n / 2).map(|i| if i % 3 == 0 { 'b' } else { 'a' }).collect();
    let start = std::time::Instant::now();
    for text in ["a".repeat(n), "^".repeat(n), " ".repeat(n), "\u{200b}".repeat(n / 2), "\n\t".repeat(n / 2), mixed] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text);
    }
    // Quadratic merging of these six texts would take minutes.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn a_batch_equals_single_texts() {
    let tokenizer = small();
    let texts: Vec<String> = (0..200).map(|i| format!("{i} {}", &TEXT[..i % 70])).collect();
    let single: Vec<_> = texts.iter().map(|t| tokenizer.encode(t)).collect();
    assert_eq!(tokenizer.encode_batch(&texts), single);
}

#[test]
fn two_tokenizers_on_one_thread_do_not_share_a_cache() {
    let (a, b) = (small(), train(std::iter::repeat_n("the the then them", 9), 262, &SPECIAL_TOKENS).unwrap());
    let alone = b.encode("the lazy dog");
    a.encode("the lazy dog");
    assert_eq!(b.encode("the lazy dog"), alone);
}

#[test]
fn text_bytes_counts_predicted_tokens_only() {
    let tokenizer = small();
    let mut ids = tokenizer.encode("the dog é");
    ids.push(tokenizer.end_of_text());
    let first = tokenizer.token_bytes(ids[0]).unwrap().len() as u64;
    let mut weights = vec![1.0; ids.len()];
    weights[0] = 0.0;
    let segments = vec![0; ids.len()];
    let row = TokenRow { ids, segments, weights };
    assert_eq!(tokenizer.text_bytes(&[row.clone(), row]), 2 * ("the dog é".len() as u64 - first));
}

/// Changes the file of a good tokenizer and returns what loading says.
fn broken(change: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_slice(small().json()).unwrap();
    change(&mut value);
    let path = Path::new("dir/tokenizer.json");
    let message = Tokenizer::from_json(value.to_string().into_bytes(), path).unwrap_err().to_string();
    assert!(message.starts_with("tokenizer dir/tokenizer.json: "), "{message}");
    message
}

#[test]
fn files_that_would_encode_differently_are_refused() {
    let check = |change: &dyn Fn(&mut Value), want: &str| {
        let message = broken(change);
        assert!(message.contains(want), "{message}");
    };
    check(&|v| v["model"]["type"] = json!("WordPiece"), "model.type must be \"BPE\"");
    check(&|v| v["normalizer"] = json!({"type": "Lowercase"}), "normalizer must be null");
    check(&|v| v["pre_tokenizer"]["add_prefix_space"] = json!(true), "pre_tokenizer must be");
    check(&|v| v["pre_tokenizer"] = Value::Null, "pre_tokenizer must be");
    let evil = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(a+)+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    check(&|v| v["pre_tokenizer"] = evil.clone(), "(a+)+");
    check(&|v| v["model"]["dropout"] = json!(0.1), "model.dropout");
    check(&|v| v["model"]["ignore_merges"] = json!(true), "ignore_merges");
    check(&|v| v["model"]["vocab"]["A"] = json!(u32::MAX), "larger than the limit");
    check(&|v| v["model"]["vocab"]["新"] = json!(500), "not written in the byte-level alphabet");
    check(&|v| v["model"]["vocab"]["AAAA"] = json!(3), "there twice");
    check(&|v| _ = v["model"]["vocab"].as_object_mut().unwrap().remove("A"), "byte 65 has no token");
    check(&|v| v["model"]["merges"][0] = json!(["A", "Ġzz"]), "merge 0 (\"A\", \"Ġzz\")");
    check(&|v| v["added_tokens"][1]["id"] = json!(377), "there twice");
    check(&|v| v["added_tokens"].as_array_mut().unwrap().clear(), "`<|endoftext|>` is missing");
    check(&|v| v["model"] = json!(3), "not a tokenizer.json");
}

#[test]
fn known_patterns_and_old_ways_of_writing_are_loaded() {
    let tokenizer = small();
    let mut value: Value = serde_json::from_slice(tokenizer.json()).unwrap();
    for merge in value["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    value["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": split::LLAMA3}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    let old = Tokenizer::from_json(value.to_string().into_bytes(), Path::new("tokenizer.json")).unwrap();
    let library = library(&old);
    for text in [TEXT, "it'S (the) 12345\n\n  text\r\n"] {
        assert_eq!(old.encode(text), library.encode(text, false).unwrap().get_ids());
    }
}
