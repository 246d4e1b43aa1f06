//! Frequencies and attention factors against transformers.

use std::path::Path;

use super::*;
use crate::config::{GptOss, ModelConfig};
use crate::hf::TensorFile;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// At most `ulps` steps of f32 apart.
fn assert_close(name: &str, got: &[f32], want: &[f32], ulps: u32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in std::iter::zip(got, want).enumerate() {
        let apart = g.to_bits().abs_diff(w.to_bits());
        assert!(apart <= ulps, "{name} pair {i}: got {g:e}, want {w:e}, {apart} steps apart");
    }
}

#[test]
fn every_variant_matches_transformers() {
    let text = std::fs::read_to_string(fixture("rope.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let config = ModelConfig::from_hf(&case["config"].to_string()).unwrap();
        let want: Vec<f32> = case["inv_freq"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert_close(name, &config.rope.inv_freq(config.d_head), &want, 2);
        let factor = case["attention_scaling"].as_f64().unwrap() as f32;
        assert_close(name, &[config.rope.attention_factor()], &[factor], 0);
    }
}

#[test]
fn yarn_of_gpt_oss_matches_its_fixture() {
    let rope = GptOss::released_rope();
    let file = TensorFile::open(&fixture("yarn.safetensors")).unwrap();
    assert_close("inv_freq", &rope.inv_freq(64), &file.read_f32("inv_freq").unwrap(), 2);
    assert_close("factor", &[rope.attention_factor()], &file.read_f32("attention_scaling").unwrap(), 0);
}

#[test]
fn tables_hold_one_row_per_position() {
    let rope = Rope::plain(10_000.0);
    let (cos, sin) = rope.table(4, &[0, 3]);
    assert_eq!(cos[..2], [1.0, 1.0]);
    assert_eq!(sin[..2], [0.0, 0.0]);
    assert_eq!([cos[2], sin[2]], [3f64.cos() as f32, 3f64.sin() as f32]);
    let slow = f64::from(3.0 * 0.01f32);
    assert_eq!([cos[3], sin[3]], [slow.cos() as f32, slow.sin() as f32]);
}
