//! Codes and scales against transformers and the published rounding; every form of a GPT-OSS folder gives one model.

use std::path::{Path, PathBuf};

use serde_json::json;

use kernels_cubecl::{Packed, quantise_mxfp4};

use super::*;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::hf::names::{leaf_values, split_leaf};
use crate::hf::tensor_file::Values;
use crate::hf::{FloatType, LoadOptions, SaveOptions, TensorFile, leaf_map, write_tensors};

type Model = Decoder<Cpu>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn map(n: usize, out: usize, columns: usize) -> LeafMap {
    let part = Part { name: "e".to_owned(), shape: vec![n, columns, out], rows: n * out };
    LeafMap { leaf: "e".to_owned(), dims: vec![n * out, columns], parts: vec![part], n_experts: Some(n) }
}

fn load(dir: &Path, packed_experts: bool) -> Result<Model, ModelError> {
    let options = LoadOptions { packed_experts: packed_experts.into(), ..LoadOptions::default() };
    Model::load_with(dir, options, &Default::default())
}

fn values(model: &Model) -> Vec<(String, Vec<f32>)> {
    model.leaves().into_iter().map(|named| (named.name, leaf_values(named.leaf))).collect()
}

/// A fixture of the crate that owns the format.
fn of_kernels(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels-cubecl/tests/fixtures").join(name)
}

/// The fixture's model with experts in MXFP4.
fn packed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let options = SaveOptions { max_shard_bytes: 100_000, float: FloatType::F32, packed_experts: true };
    load(&fixture("gptoss"), false).unwrap().save_with(dir.path(), options).unwrap();
    dir
}

#[test]
fn codes_decode_as_in_transformers() {
    let file = TensorFile::open(&of_kernels("mxfp4.safetensors")).unwrap();
    let map = map(3, 8, 64);
    let [of_blocks, of_scales] = packed_shapes(&map).unwrap();
    let blocks = file.read_packed("blocks", &of_blocks).unwrap();
    let scales = file.read_packed("scales", &of_scales).unwrap();
    let got = decode(&blocks, &scales, &map).unwrap();
    let got = &split_leaf(&map, &got)[0].2;
    for name in ["dequant_f32", "dequant_bf16"] {
        let want = file.read_weight(name, &[3, 64, 8], false).unwrap();
        assert!(std::iter::zip(got.iter(), &want).all(|(g, w)| g.to_bits() == w.to_bits()), "{name}");
    }
}

#[test]
fn numbers_are_rounded_by_the_published_rule() {
    let file = TensorFile::open(&of_kernels("mxfp4_quant.safetensors")).unwrap();
    let map = map(2, 3, 128);
    let [blocks, scales] = encode(&file.read_f32("w").unwrap(), &map, quantise_mxfp4).unwrap();
    assert_eq!(scales, file.read_bytes("scales").unwrap());
    assert_eq!(blocks, file.read_bytes("blocks").unwrap());
    let back = decode(&blocks, &scales, &map).unwrap();
    assert_eq!(back, file.read_f32("dequant").unwrap());
    // A block without its largest code may get a smaller scale the second time; the numbers stay.
    let [blocks, scales] = encode(&back, &map, quantise_mxfp4).unwrap();
    assert_eq!(decode(&blocks, &scales, &map).unwrap(), back);
}

#[test]
fn packed_experts_come_back_unchanged() {
    let first = packed();
    let (dense, frozen) = (load(first.path(), false).unwrap(), load(first.path(), true).unwrap());
    assert_eq!(frozen.packed().len(), 8);
    assert_eq!(frozen.leaves().len() + 8, dense.leaves().len());
    for (name, weight) in frozen.packed() {
        let (_, want) = values(&dense).into_iter().find(|(leaf, _)| *leaf == name).unwrap();
        assert_eq!(weight.decode().into_data().into_vec::<f32>().unwrap(), want, "{name}");
    }
    for model in [&dense, &frozen] {
        for packed_experts in [true, false] {
            let again = tempfile::tempdir().unwrap();
            let options = SaveOptions { max_shard_bytes: u64::MAX, float: FloatType::F32, packed_experts };
            model.save_with(again.path(), options).unwrap();
            assert_eq!(values(&load(again.path(), false).unwrap()), values(&dense), "packed {packed_experts}");
        }
    }
}

/// Writes the packed fixture under OpenAI's names, with their configuration; `packed` leaves the experts in MXFP4.
fn original(packed: &Model, keep_packed: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "num_hidden_layers": 4, "num_experts": 6, "experts_per_token": 2, "vocab_size": 96, "hidden_size": 32,
        "intermediate_size": 64, "swiglu_limit": 1.0, "head_dim": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 4, "initial_context_length": 4096, "rope_theta": 150_000,
        "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let maps = leaf_map(&packed.config);
    let shape = |name: &str| {
        let map = maps.iter().find(|map| map.leaf == name).unwrap();
        match map.n_experts {
            Some(n) => vec![n, map.dims[0] / n, map.dims[1]],
            None if map.parts.len() == 1 => map.parts[0].shape.clone(),
            None => map.dims.clone(),
        }
    };
    let (mut floats, mut bytes) = (Vec::new(), Vec::new());
    for (name, values) in values(packed) {
        floats.push((original_name(&name).unwrap(), shape(&name), values));
    }
    for (name, weight) in packed.packed() {
        let new = original_name(&name).unwrap();
        if !keep_packed {
            floats.push((new, shape(&name), weight.decode().into_data().into_vec().unwrap()));
            continue;
        }
        let Packed::Mxfp4(weight) = weight else { panic!("{name} is not in MXFP4") };
        let (blocks, scales) = weight.to_bytes();
        let [of_blocks, of_scales] = packed_shapes(maps.iter().find(|map| map.leaf == name).unwrap()).unwrap();
        bytes.push((format!("{new}.blocks"), of_blocks, blocks));
        bytes.push((format!("{new}.scales"), of_scales, scales));
    }
    let mut tensors: Vec<_> = floats.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Float(v))).collect();
    tensors.extend(bytes.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Bytes(v))));
    write_tensors(&dir.path().join("model.safetensors"), tensors, FloatType::F32).unwrap();
    dir
}

#[test]
fn openais_own_files_give_the_same_model() {
    let hugging_face = packed();
    let frozen = load(hugging_face.path(), true).unwrap();
    let want = load(hugging_face.path(), false).unwrap();
    for keep_packed in [true, false] {
        let dir = original(&frozen, keep_packed);
        let got = load(dir.path(), false).unwrap();
        assert_eq!(values(&got), values(&want), "packed {keep_packed}");
        let same = ModelConfig { bos_id: Some(1), eos_ids: vec![2], ..got.config.clone() };
        let balance = want.config.experts().unwrap().balance_coef;
        let mut expected = want.config.clone();
        if let crate::config::Family::GptOss(gpt_oss) = &mut expected.family {
            assert_eq!(balance, 0.1);
            gpt_oss.experts.balance_coef = 0.9;
        }
        assert_eq!(same, expected);
    }
    let dir = original(&frozen, true);
    assert_eq!(values(&load(dir.path(), true).unwrap()), values(&frozen));
}

/// The message of loading a copy of the packed fixture in which `change` has seen every tensor's name, shape and bytes.
fn broken(packed_experts: bool, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) -> String {
    let from = tempfile::tempdir().unwrap();
    let options = SaveOptions { max_shard_bytes: u64::MAX, float: FloatType::F32, packed_experts: true };
    load(&fixture("gptoss"), false).unwrap().save_with(from.path(), options).unwrap();
    let file = TensorFile::open(&from.path().join("model.safetensors")).unwrap();
    let (mut floats, mut bytes) = (Vec::new(), Vec::new());
    for name in file.names() {
        let mut shape = file.shape(name).unwrap().to_vec();
        match file.is_bytes(name).unwrap() {
            false => floats.push((name.to_owned(), shape, file.read_f32(name).unwrap())),
            true => {
                let mut values = file.read_bytes(name).unwrap();
                if change(name, &mut shape, &mut values) {
                    bytes.push((name.to_owned(), shape, values));
                }
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.path().join("config.json"), dir.path().join("config.json")).unwrap();
    let mut tensors: Vec<_> = floats.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Float(v))).collect();
    tensors.extend(bytes.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Bytes(v))));
    write_tensors(&dir.path().join("model.safetensors"), tensors, FloatType::F32).unwrap();
    load(dir.path(), packed_experts).unwrap_err().to_string()
}

#[test]
fn blocks_and_scales_that_do_not_fit_are_refused() {
    const BLOCKS: &str = "model.layers.1.mlp.experts.down_proj_blocks";
    const SCALES: &str = "model.layers.1.mlp.experts.down_proj_scales";
    for packed in [true, false] {
        let error = broken(packed, |name, shape, _| {
            if name == BLOCKS {
                shape.swap(1, 2);
            }
            true
        });
        assert!(error.contains(BLOCKS) && error.contains("expected shape [6, 32, 2, 16]"), "{error}");
        let error = broken(packed, |name, shape, values| {
            if name == SCALES {
                (shape[0], shape[2]) = (5, 2);
                values.truncate(5 * 32 * 2);
            }
            true
        });
        assert!(error.contains(SCALES) && error.contains("got [5, 32, 2]"), "{error}");
        let error = broken(packed, |name, _, _| name != SCALES);
        assert!(error.contains(SCALES) && error.contains("missing"), "{error}");
    }
    let error = broken(false, |name, _, values| {
        if name == SCALES {
            values[3] = 255;
        }
        true
    });
    assert!(error.contains(SCALES) && error.contains("NaN"), "{error}");
}

#[test]
fn experts_that_are_not_packed_or_not_there_cannot_stay_packed() {
    let error = load(&fixture("gptoss"), true).unwrap_err();
    let ModelError::TensorMissing { n_missing: 16, names, .. } = &error else { panic!("{error}") };
    assert!(names.contains("down_proj_blocks"), "{names}");
    let error = load(&fixture("llama"), true).unwrap_err().to_string();
    assert!(error.contains("expected a model with experts"), "{error}");
}

#[test]
fn another_number_of_experts_is_refused() {
    let dir = packed();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"num_local_experts\": 6", "\"num_local_experts\": 7")).unwrap();
    for packed in [true, false] {
        let error = load(dir.path(), packed).unwrap_err();
        assert!(
            matches!(&error, ModelError::TensorShape { expected, got, .. } if expected[0] == 7 && got[0] == 6),
            "{error}"
        );
    }
}

#[test]
fn rows_of_no_whole_blocks_cannot_be_packed() {
    let config = ModelConfig { d_ff: 40, ..load(&fixture("gptoss"), false).unwrap().config };
    let model = Model::init(&config, 1, &Default::default());
    let dir = tempfile::tempdir().unwrap();
    let options = SaveOptions { max_shard_bytes: u64::MAX, float: FloatType::F32, packed_experts: true };
    let error = model.save_with(dir.path(), options).unwrap_err().to_string();
    assert!(error.contains("multiples of 32") && error.contains("rows of 40"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
