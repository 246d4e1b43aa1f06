//! A tiny untrained model, byte tokenizers and packed rows for the tests of this crate.

use std::path::Path;

use burn::tensor::backend::BackendTypes;
use data_pipeline::tokenizer::HARMONY_TOKENS;
use data_pipeline::{PADDING_SEGMENT, RowSet, ShardMeta, TokenRow, write_rows};
use kernels_cubecl::Cpu;
use model_core::{Decoder, Experts, Family, GptOss, ModelConfig, Tokenizer};

/// One block with untrained weights, and its device.
pub(crate) fn tiny() -> (Decoder<Cpu>, <Cpu as BackendTypes>::Device) {
    let device = Default::default();
    let config = ModelConfig { max_seq_len: 128, init_std: 0.2, ..ModelConfig::from_depth(1, 260) };
    (Decoder::init(&config, 3, &device), device)
}

/// One block with experts.
pub(crate) fn tiny_gpt_oss() -> (Decoder<Cpu>, <Cpu as BackendTypes>::Device) {
    let device = Default::default();
    let experts = Experts { n: 2, top_k: 1, limit: 7.0, alpha: 1.702, balance_coef: 0.0 };
    let family = Family::GptOss(GptOss { window: 8, sliding: vec![true], experts });
    let n = 256 + HARMONY_TOKENS.len();
    let config = ModelConfig { family, max_seq_len: 128, init_std: 0.2, ..ModelConfig::from_depth(1, n) };
    (Decoder::init(&config, 3, &device), device)
}

/// One token per byte, and the control tokens of Harmony.
pub(crate) fn harmony_tokenizer() -> Tokenizer {
    bytes_with(&HARMONY_TOKENS)
}

/// One token per byte, and the control tokens of ChatML.
pub(crate) fn tokenizer() -> Tokenizer {
    bytes_with(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
}

/// The same with another control token.
pub(crate) fn other_tokenizer() -> Tokenizer {
    bytes_with(&["<|endoftext|>"])
}

fn bytes_with(controls: &[&str]) -> Tokenizer {
    // The byte-level alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
    let printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 0x100..;
    let spell = |b: u8| match printable(&b) {
        true => char::from(b),
        false => others.next().and_then(char::from_u32).expect("a character for every byte"),
    };
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..=255).map(spell).enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    let added: Vec<serde_json::Value> = controls
        .iter()
        .enumerate()
        .map(|(i, content)| {
            serde_json::json!({ "id": 256 + i, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let byte_level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": true });
    let json = serde_json::json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [] } });
    Tokenizer::from_json(json.to_string().into_bytes(), Path::new("tokenizer.json")).unwrap()
}

/// Packs texts one after the other into rows of `seq_len` and writes them.
pub(crate) fn write_rows_of(dir: &Path, texts: &[&str], seq_len: usize, tokenizer: &Tokenizer) -> RowSet {
    let mut rows: Vec<TokenRow> = Vec::new();
    let mut text_bytes = 0;
    for text in texts {
        let ids = tokenizer.encode(text);
        assert!(ids.len() <= seq_len, "the test's text fits a row");
        if rows.last().is_none_or(|row| row.ids.len() + ids.len() > seq_len) {
            rows.push(TokenRow::default());
        }
        let row = rows.last_mut().expect("pushed above");
        let segment = row.segments.last().map_or(0, |last| last + 1);
        row.segments.extend(ids.iter().map(|_| segment));
        row.weights.extend((0..ids.len()).map(|i| if i == 0 { 0.0 } else { 1.0 }));
        text_bytes += text.len() as u64 - 1;
        row.ids.extend(ids);
    }
    for row in &mut rows {
        row.ids.resize(seq_len, 256);
        row.segments.resize(seq_len, PADDING_SEGMENT);
        row.weights.resize(seq_len, 0.0);
    }
    let meta = ShardMeta {
        version: ShardMeta::VERSION,
        tokenizer_hash: tokenizer.hash().into(),
        vocab_size: tokenizer.vocab_size() as u32,
        seq_len: seq_len as u32,
        sources: Vec::new(),
        kind: "test".into(),
        text_bytes,
    };
    write_rows(dir, &rows, &meta).unwrap();
    RowSet::open(dir).unwrap()
}
