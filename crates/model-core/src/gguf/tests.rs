//! Files read back by a reader of their own, blocks against the Python package's, and everything that is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernels_cubecl::{Cpu, Leaf};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::config::{Family, GptOss, ModelConfig};
use crate::decoder::Decoder;
use crate::hf::names::{leaf_from_values, leaf_map, leaf_values, split_leaf};
use crate::hf::{FloatType, SaveOptions, TensorFile};
use crate::random::Stream;
use crate::rope::{Rope, RopeScaling};
use crate::tokenizer::tests::{CHATML, trained_json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn blocks_are_those_of_the_python_package_to_the_bit() {
    let file = TensorFile::open(&fixture("gguf_blocks.safetensors")).unwrap();
    for (kind, name, x) in
        [(Kind::Q8_0, "q8_0", "x"), (Kind::Mxfp4, "mxfp4", "x"), (Kind::Bf16, "bf16", "x"), (Kind::F16, "f16", "f16.x")]
    {
        let (x, want, n) = (file.read_f32(x).unwrap(), file.read_bytes(name).unwrap(), 64);
        for (row, (x, want)) in x.chunks(n).zip(want.chunks(kind.row_bytes(n))).enumerate() {
            let mut got = vec![0; kind.row_bytes(n)];
            kind.encode(x, &mut got);
            assert_eq!(got, want, "{name} row {row}");
        }
        assert_eq!(x.len() / n * kind.row_bytes(n), want.len());
    }
    let [blocks, scales, want] = ["blocks", "scales", "gguf"].map(|x| file.read_bytes(&format!("packed.{x}")).unwrap());
    let mut got = vec![0; want.len()];
    repack(&blocks, &scales, &mut got);
    assert_eq!(got, want);
}

/// A file as the format's specification says to read it.
struct Read {
    keys: BTreeMap<String, Json>,
    tensors: BTreeMap<String, (Vec<usize>, u32, Vec<u8>)>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().unwrap()
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn long(&mut self) -> usize {
        u64::from_le_bytes(self.take()) as usize
    }

    fn text(&mut self) -> String {
        let n = self.long();
        self.at += n;
        String::from_utf8(self.bytes[self.at - n..self.at].to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Json {
        match kind {
            4 => self.word().into(),
            5 => (self.word() as i32).into(),
            6 => f32::from_bits(self.word()).into(),
            7 => (self.take::<1>()[0] == 1).into(),
            8 => self.text().into(),
            9 => {
                let (kind, n) = (self.word(), self.long());
                (0..n).map(|_| self.value(kind)).collect()
            }
            other => panic!("kind {other}"),
        }
    }
}

fn read(path: &Path) -> Read {
    let bytes = std::fs::read(path).unwrap();
    let mut cursor = Cursor { bytes: &bytes, at: 0 };
    assert_eq!((&cursor.take::<4>(), cursor.word()), (b"GGUF", 3));
    let (n_tensors, n_keys) = (cursor.long(), cursor.long());
    let keys: BTreeMap<String, Json> = (0..n_keys)
        .map(|_| {
            let (key, kind) = (cursor.text(), cursor.word());
            (key, cursor.value(kind))
        })
        .collect();
    assert_eq!(keys.len(), n_keys, "no key twice");
    let mut infos = Vec::new();
    for _ in 0..n_tensors {
        let (name, rank) = (cursor.text(), cursor.word());
        let mut shape: Vec<usize> = (0..rank).map(|_| cursor.long()).collect();
        shape.reverse();
        infos.push((name, shape, cursor.word(), cursor.long()));
    }
    let start = cursor.at.next_multiple_of(32);
    let mut end = start;
    let mut tensors = BTreeMap::new();
    for (name, shape, kind, offset) in infos {
        let (block, size) = match kind {
            0 => (1, 4),
            1 | 30 => (1, 2),
            8 => (32, 34),
            39 => (32, 17),
            other => panic!("type {other}"),
        };
        let n = shape.iter().product::<usize>() / block * size;
        assert_eq!(start + offset, end, "{name} follows the one before, aligned");
        tensors.insert(name, (shape, kind, bytes[start + offset..start + offset + n].to_vec()));
        end = (start + offset + n).next_multiple_of(32);
    }
    assert_eq!((tensors.len(), end), (n_tensors, bytes.len()));
    Read { keys, tensors }
}

impl Read {
    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, kind, bytes) = &self.tensors[name];
        assert_eq!(*kind, 0, "{name}");
        let values = bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        (shape.clone(), values)
    }
}

fn llama() -> ModelConfig {
    ModelConfig { tied: false, eos_ids: vec![258, 256], pad_id: Some(256), ..ModelConfig::from_depth(2, 352) }
}

fn gpt_oss() -> ModelConfig {
    let mut family = GptOss::released(3, 4);
    family.experts.top_k = 2;
    ModelConfig {
        family: Family::GptOss(family),
        d_model: 64,
        d_ff: 96,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 32,
        rope: GptOss::released_rope(),
        ..llama()
    }
}

/// A folder with a model of random numbers, none of them the same, and a tokenizer.
fn folder(config: &ModelConfig, packed_experts: bool) -> (TempDir, Decoder<Cpu>) {
    let device = Default::default();
    let leaves: Vec<Leaf<Cpu>> = leaf_map(config)
        .iter()
        .map(|leaf| {
            leaf_from_values(leaf, Stream::new(5, &leaf.leaf).normals(leaf.dims.iter().product(), 0.3), &device)
        })
        .collect();
    let model = Decoder::from_leaves(config, leaves);
    let dir = tempfile::tempdir().unwrap();
    model
        .save_with(dir.path(), SaveOptions { max_shard_bytes: 40_000, float: FloatType::F32, packed_experts })
        .unwrap();
    put_tokenizer(dir.path(), &trained_json(CHATML));
    (dir, model)
}

fn put_tokenizer(dir: &Path, file: &Json) {
    std::fs::write(dir.join("tokenizer.json"), file.to_string()).unwrap();
}

fn exported(dir: &Path, kind: GgufType, packed_experts: bool) -> Read {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.gguf");
    let made = export_gguf(dir, &path, GgufOptions { kind, packed_experts }).unwrap();
    let found = read(&path);
    assert_eq!((made.n_tensors, made.bytes), (found.tensors.len(), std::fs::metadata(&path).unwrap().len()));
    found
}

/// The tensors of a model under their Hugging Face names.
fn tensors(model: &Decoder<Cpu>) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let leaves = leaf_map(&model.config).into_iter().zip(model.leaves());
    let parts = leaves.flat_map(|(map, leaf)| {
        let values = leaf_values(leaf.leaf);
        split_leaf(&map, &values).into_iter().map(|(n, shape, v)| (n, (shape, v.into_owned()))).collect::<Vec<_>>()
    });
    parts.collect()
}

/// Rows `[heads · d, columns]` as llama.cpp rotates them: number `2j + s` of a head is number `s·d/2 + j`.
fn interleaved(values: &[f32], d: usize, columns: usize) -> Vec<f32> {
    let row = |r: usize| &values[r * columns..][..columns];
    let rows = (0..values.len() / columns).flat_map(|r| row(r / d * d + r % d % 2 * (d / 2) + r % d / 2));
    rows.copied().collect()
}

#[test]
fn a_llama_has_every_tensor_under_its_name_with_interleaved_rotations() {
    let (dir, model) = folder(&llama(), false);
    let (got, want) = (exported(dir.path(), GgufType::F32, false), tensors(&model));
    assert_eq!(got.tensors.len(), want.len());
    for (name, theirs) in [("q_proj", "attn_q"), ("k_proj", "attn_k")] {
        let (shape, values) = &want[&format!("model.layers.1.self_attn.{name}.weight")];
        let columns = shape[1];
        assert_eq!(
            got.floats(&format!("blk.1.{theirs}.weight")),
            (shape.clone(), interleaved(values, model.config.d_head, columns))
        );
    }
    for (name, theirs) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
        ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.1.mlp.gate_proj.weight", "blk.1.ffn_gate.weight"),
        ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
    ] {
        assert_eq!(got.floats(theirs), want[name], "{name}");
    }
    for (key, value) in [
        ("general.architecture", json!("llama")),
        ("general.file_type", json!(0)),
        ("llama.block_count", json!(2)),
        ("llama.embedding_length", json!(128)),
        ("llama.attention.head_count_kv", json!(1)),
        ("llama.attention.key_length", json!(64)),
        ("llama.rope.freq_base", json!(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", json!(1e-5f32)),
    ] {
        assert_eq!(got.keys[key], value, "{key}");
    }
}

#[test]
fn experts_are_apart_and_gate_and_up_too() {
    let (dir, model) = folder(&gpt_oss(), false);
    let (got, want) = (exported(dir.path(), GgufType::F32, false), tensors(&model));
    let (n, d, f) = (4, 64, 96);
    let of = |name: &str| &want[&format!("model.layers.2.mlp.experts.{name}")].1;
    for (first, theirs) in [(0, "gate"), (1, "up")] {
        // The file of transformers has `[expert, in, out]` with gate and up in turn.
        let weight = |e: usize, o: usize, i: usize| of("gate_up_proj")[(e * d + i) * 2 * f + 2 * o + first];
        let values = (0..n).flat_map(|e| (0..f).flat_map(move |o| (0..d).map(move |i| weight(e, o, i)))).collect();
        assert_eq!(got.floats(&format!("blk.2.ffn_{theirs}_exps.weight")), (vec![n, f, d], values));
        let bias: Vec<f32> = of("gate_up_proj_bias").iter().skip(first).step_by(2).copied().collect();
        assert_eq!(got.floats(&format!("blk.2.ffn_{theirs}_exps.bias")), (vec![n, f], bias));
    }
    let down = |e: usize, o: usize, i: usize| of("down_proj")[(e * f + i) * d + o];
    let values = (0..n).flat_map(|e| (0..d).flat_map(move |o| (0..f).map(move |i| down(e, o, i)))).collect();
    assert_eq!(got.floats("blk.2.ffn_down_exps.weight"), (vec![n, d, f], values));
    for (name, theirs) in [
        ("self_attn.q_proj.weight", "attn_q.weight"),
        ("self_attn.k_proj.bias", "attn_k.bias"),
        ("self_attn.o_proj.bias", "attn_output.bias"),
        ("self_attn.sinks", "attn_sinks.weight"),
        ("post_attention_layernorm.weight", "post_attention_norm.weight"),
        ("mlp.router.weight", "ffn_gate_inp.weight"),
        ("mlp.router.bias", "ffn_gate_inp.bias"),
    ] {
        assert_eq!(got.floats(&format!("blk.2.{theirs}")), want[&format!("model.layers.2.{name}")], "{name}");
    }
    for (key, value) in [
        ("general.architecture", json!("gpt-oss")),
        ("gpt-oss.attention.sliding_window", json!(128)),
        ("gpt-oss.expert_count", json!(4)),
        ("gpt-oss.expert_used_count", json!(2)),
        ("gpt-oss.expert_feed_forward_length", json!(96)),
        ("gpt-oss.rope.scaling.type", json!("yarn")),
        ("gpt-oss.rope.scaling.factor", json!(32.0)),
        ("gpt-oss.rope.scaling.original_context_length", json!(4096)),
    ] {
        assert_eq!(got.keys[key], value, "{key}");
    }
    let tied = ModelConfig { tied: true, ..gpt_oss() };
    let (dir, _) = folder(&tied, false);
    let got = exported(dir.path(), GgufType::F32, false);
    assert_eq!(got.floats("output.weight"), got.floats("token_embd.weight"), "llama.cpp wants a head");
}

#[test]
fn packed_experts_pass_through_and_floats_are_rounded_once() {
    let (packed, _) = folder(&gpt_oss(), true);
    let (floats, model) = folder(&gpt_oss(), false);
    let stored =
        Checkpoint::open(packed.path(), LoadOptions { packed_experts: true.into(), ..Default::default() }).unwrap();
    let at = stored.leaves().position(|leaf| leaf.leaf == "model.layers.0.mlp.experts.gate_up_proj").unwrap();
    let Numbers::Packed { blocks, scales } = stored.read(at).unwrap() else { panic!("packed") };
    let (d, f) = (64, 96);
    let theirs = |read: &Read, name: &str| read.tensors[&format!("blk.0.ffn_{name}_exps.weight")].clone();
    for (kind, file_type, rest) in [(GgufType::Mxfp4, 38, 8), (GgufType::Bf16, 38, 30)] {
        let got = exported(packed.path(), kind, true);
        assert_eq!(got.keys["general.file_type"], json!(file_type));
        assert_eq!(got.tensors["blk.0.attn_q.weight"].1, rest);
        assert_eq!(got.tensors["blk.0.ffn_gate_inp.weight"].1, 0, "a router stays whole");
        for (first, name) in [(0, "gate"), (1, "up")] {
            let (shape, kind, bytes) = theirs(&got, name);
            assert_eq!((shape, kind), (vec![4, f, d], 39));
            for row in 0..4 * f {
                let from = (2 * row + first) * d / 32;
                let mut want = vec![0; d / 32 * 17];
                repack(&blocks[from * 16..][..d / 2], &scales[from..][..d / 32], &mut want);
                assert_eq!(bytes[row * want.len()..][..want.len()], want, "{name} row {row}");
            }
        }
    }
    // A folder of floats is rounded by ggml's rule; one in MXFP4 can also be written as floats.
    let got = exported(floats.path(), GgufType::Mxfp4, false);
    let down =
        leaf_values(model.leaves().into_iter().find(|l| l.name.ends_with("0.mlp.experts.down_proj")).unwrap().leaf);
    let mut want = vec![0; Kind::Mxfp4.row_bytes(down.len())];
    Kind::Mxfp4.encode(&down, &mut want);
    assert_eq!(theirs(&got, "down").2, want);
    let unpacked = exported(packed.path(), GgufType::F32, false);
    let decoded = Decoder::<Cpu>::load(packed.path(), &Default::default()).unwrap();
    let down = &decoded.leaves().into_iter().find(|l| l.name.ends_with("0.mlp.experts.down_proj")).unwrap().leaf;
    assert_eq!(unpacked.floats("blk.0.ffn_down_exps.weight").1, leaf_values(down.clone()));
}

#[test]
fn narrow_types_hold_matrices_and_vectors_stay_whole() {
    let (dir, model) = folder(&llama(), false);
    let head = leaf_values(model.leaves().pop().unwrap().leaf);
    for (kind, file_type, stored) in
        [(GgufType::F16, 1, Kind::F16), (GgufType::Bf16, 32, Kind::Bf16), (GgufType::Q8_0, 7, Kind::Q8_0)]
    {
        let got = exported(dir.path(), kind, false);
        assert_eq!(got.keys["general.file_type"], json!(file_type));
        let (shape, id, bytes) = &got.tensors["output.weight"];
        let mut want = vec![0; stored.row_bytes(head.len())];
        stored.encode(&head, &mut want);
        assert_eq!((&shape[..], *id, bytes), (&[352, 128][..], stored.id(), &want));
        got.floats("blk.1.attn_norm.weight");
    }
}

#[test]
fn llama_3s_frequencies_are_a_tensor() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 8192 };
    let (dir, _) = folder(&ModelConfig { rope: Rope { theta: 500_000.0, scaling }, ..llama() }, false);
    let got = exported(dir.path(), GgufType::F32, false);
    let (shape, factors) = got.floats("rope_freqs.weight");
    assert_eq!((shape, factors[0], factors[31]), (vec![32], 1.0, 8.0));
    assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]) && factors.iter().any(|f| *f > 1.0 && *f < 8.0));
    let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
    let (dir, _) = folder(&ModelConfig { rope: linear, ..llama() }, false);
    let got = exported(dir.path(), GgufType::F32, false);
    assert_eq!(got.keys["llama.rope.scaling.type"], json!("linear"));
    assert_eq!(got.keys["llama.rope.scaling.factor"], json!(4.0));
}

#[test]
fn the_tokenizer_goes_along() {
    let (dir, _) = folder(&llama(), false);
    let file = trained_json(CHATML);
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let keys = exported(dir.path(), GgufType::F32, false).keys;
    let text = |key: &str| keys[&format!("tokenizer.ggml.{key}")].clone();
    assert_eq!((text("model"), text("pre")), (json!("gpt2"), json!("gpt-2")));
    let n = file["model"]["vocab"].as_object().unwrap().len();
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        assert_eq!((&text("tokens")[id], &text("token_type")[id]), (&json!(token), &json!(1)));
    }
    let rest = |key: &str| text(key).as_array().unwrap()[n..n + 4].to_vec();
    assert_eq!(rest("tokens"), [CHATML[0], CHATML[1], CHATML[2], &format!("[PAD{}]", n + 3)].map(Json::from));
    assert_eq!(rest("token_type"), [3, 3, 3, 5].map(Json::from));
    assert_eq!(text("tokens").as_array().unwrap().len(), 352);
    let merges = file["model"]["merges"].as_array().unwrap();
    let joined = |merge: &Json| json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    assert_eq!(text("merges"), merges.iter().map(joined).collect::<Json>());
    let ids = ["eos_token_id", "eot_token_id", "bos_token_id", "padding_token_id"].map(text);
    assert_eq!(ids, [258, 256, 258, 256].map(Json::from));
    assert_eq!((text("add_bos_token"), &keys["tokenizer.chat_template"]), (json!(false), &json!("{{ messages }}")));
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"add_bos_token": true}"#).unwrap();
    assert_eq!(exported(dir.path(), GgufType::F32, false).keys["tokenizer.ggml.add_bos_token"], json!(true));
}

#[test]
fn ways_to_split_have_llama_cpps_names() {
    let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let digits = |single: bool| json!({"type": "Digits", "individual_digits": single});
    let (dir, _) = folder(&llama(), false);
    let name = |before: Option<Json>, use_regex: bool, ignore_merges: bool| {
        let last =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let mut file = trained_json(CHATML);
        let steps: Vec<Json> = before.into_iter().chain([last]).collect();
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        file["model"]["ignore_merges"] = json!(ignore_merges);
        put_tokenizer(dir.path(), &file);
        let keys = vocabulary::metadata(dir.path(), &llama())?;
        let pre = keys.into_iter().find(|(key, _)| key == "tokenizer.ggml.pre");
        Ok::<_, ModelError>(pre.map(|(_, value)| value))
    };
    for (before, use_regex, ignore_merges, want) in [
        (None, true, false, "gpt-2"),
        (Some(split(gpt2)), false, false, "gpt-2"),
        (Some(split(llama3)), false, true, "llama-bpe"),
        (Some(split(llama3)), false, false, "dbrx"),
        (Some(digits(true)), true, false, "smollm"),
    ] {
        assert_eq!(name(before, use_regex, ignore_merges).unwrap(), Some(Value::Text(want.to_owned())));
    }
    for (before, use_regex, ignore_merges) in [
        (None, false, false),
        (None, true, true),
        (Some(digits(false)), true, false),
        (Some(split(llama3)), true, false),
    ] {
        let error = name(before, use_regex, ignore_merges).unwrap_err();
        assert!(matches!(error, ModelError::Gguf { what: "pre_tokenizer", .. }), "{error}");
    }
}

#[test]
fn what_llama_cpp_cannot_compute_is_refused_and_leaves_nothing() {
    let refused = |config: &ModelConfig, kind: GgufType, spoil: &dyn Fn(&Path), says: &str| {
        let (dir, _) = folder(config, false);
        spoil(dir.path());
        let out = tempfile::tempdir().unwrap();
        let options = GgufOptions { kind, packed_experts: false };
        let error = export_gguf(dir.path(), &out.path().join("m.gguf"), options).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{error}");
    };
    let keep = |_: &Path| {};
    let narrow = ModelConfig { d_ff: 72, ..llama() };
    refused(&narrow, GgufType::Q8_0, &keep, "multiple of 32 numbers for q8_0, got 72 in `blk.0.ffn_down.weight`");
    refused(&llama(), GgufType::Mxfp4, &keep, "expected a model with experts");
    refused(&ModelConfig { eos_ids: vec![], ..llama() }, GgufType::F32, &keep, "eos_token_id");
    refused(&ModelConfig { vocab_size: 262, ..llama() }, GgufType::F32, &keep, "vocabulary mismatch");
    let no_tokenizer = |dir: &Path| std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    refused(&llama(), GgufType::F32, &no_tokenizer, "could not read the tokenizer");
    let unigram = |dir: &Path| {
        let mut file = trained_json(CHATML);
        file["model"]["type"] = json!("Unigram");
        put_tokenizer(dir, &file);
    };
    refused(&llama(), GgufType::F32, &unigram, "Unigram");
    let changed = |change: &dyn Fn(&mut GptOss)| {
        let mut config = gpt_oss();
        let Family::GptOss(family) = &mut config.family else { panic!("GPT-OSS") };
        change(family);
        config
    };
    refused(&changed(&|oss| oss.experts.limit = 1.0), GgufType::F32, &keep, "swiglu_limit and alpha");
    refused(&changed(&|oss| oss.sliding[1] = true), GgufType::F32, &keep, "sliding attention in block 1");
    let mut sharper = gpt_oss();
    let RopeScaling::Yarn(yarn) = &mut sharper.rope.scaling else { panic!("YaRN") };
    yarn.attention_factor = Some(1.0);
    refused(&sharper, GgufType::F32, &keep, "attention_factor");
}

#[test]
fn numbers_beyond_a_type_and_scales_that_are_none_are_refused() {
    let info = |kind| Info { name: "w".to_owned(), shape: vec![1, 32], kind };
    let target = |kind| Target { info: info(kind), rows: vec![0] };
    for (kind, fits, beyond) in
        [(Kind::F16, 65_504.0, 65_520.0), (Kind::Q8_0, 8.0e6, 8.4e6), (Kind::Bf16, 3.38e38, f32::MAX)]
    {
        encode(&target(kind), &Numbers::Floats(vec![fits; 32])).unwrap();
        let error = encode(&target(kind), &Numbers::Floats(vec![-beyond; 32])).unwrap_err();
        assert!(matches!(error, ModelError::Gguf { what: "weights", .. }), "{error}");
    }
    let packed = |scale| Numbers::Packed { blocks: vec![0; 16], scales: vec![scale] };
    encode(&target(Kind::Mxfp4), &packed(254)).unwrap();
    assert!(encode(&target(Kind::Mxfp4), &packed(255)).unwrap_err().to_string().contains("255 in `w`"));
}
