//! Model folders: identical bytes after a round trip, and every way a folder can be incomplete.

use kernels_cubecl::Cpu;

use super::*;

type Model = Decoder<Cpu>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(dir: &Path) -> Result<Model, ModelError> {
    Model::load(dir, &Default::default())
}

fn small() -> Model {
    let config = ModelConfig { tied: false, ..ModelConfig::from_depth(2, 70) };
    Model::init(&config, 11, &Default::default())
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// A saved copy of [`small`] in shards of `max_shard_bytes`.
fn saved(max_shard_bytes: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path(), max_shard_bytes).unwrap();
    dir
}

fn refused(dir: &Path, part: &str) {
    let error = load(dir).unwrap_err().to_string();
    assert!(error.contains(part), "`{part}` is not in: {error}");
}

#[test]
fn load_and_save_give_identical_bytes() {
    for max_shard_bytes in [u64::MAX, 100_000, 1] {
        let first = saved(max_shard_bytes);
        let second = tempfile::tempdir().unwrap();
        load(first.path()).unwrap().save(second.path(), max_shard_bytes).unwrap();
        assert_eq!(contents(first.path()), contents(second.path()), "shards of {max_shard_bytes}");
    }
}

#[test]
fn bf16_round_trips_and_halves_the_size() {
    let options = SaveOptions { max_shard_bytes: u64::MAX, float: FloatType::Bf16, packed_experts: false };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    small().save_with(first.path(), options).unwrap();
    load(first.path()).unwrap().save_with(second.path(), options).unwrap();
    assert_eq!(contents(first.path()), contents(second.path()));
    let half = contents(first.path())[SINGLE_FILE].len() as f64;
    let full = contents(saved(u64::MAX).path())[SINGLE_FILE].len() as f64;
    assert!(half / full < 0.52, "{half} of {full} bytes");
}

#[test]
fn files_of_the_reference_implementation_come_back_byte_for_byte() {
    for name in ["llama", "llama_tied", "gptoss"] {
        let out = tempfile::tempdir().unwrap();
        load(&fixture(name)).unwrap().save(out.path(), u64::MAX).unwrap();
        let want = std::fs::read(fixture(name).join(SINGLE_FILE)).unwrap();
        assert!(contents(out.path())[SINGLE_FILE] == want, "{name}: the weights file differs");
    }
}

#[test]
fn shards_are_numbered_and_indexed() {
    let dir = saved(100_000);
    let files = contents(dir.path());
    let n = files.keys().filter(|name| name.starts_with("model-")).count();
    assert!(n > 2, "{n} shards");
    assert!(files.contains_key(&format!("model-00001-of-{n:05}.safetensors")));
    let index: Value = serde_json::from_slice(&files[INDEX_FILE]).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * small().config.n_params());
    let listed = index["weight_map"].as_object().unwrap();
    let names: Vec<String> = super::super::hf_shapes(&small().config).into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed.len(), names.len());
    assert!(names.iter().all(|name| listed.contains_key(name)));
}

#[test]
fn a_missing_or_cut_shard_is_named() {
    let dir = saved(100_000);
    let path = dir.path().join(contents(dir.path()).keys().find(|n| n.starts_with("model-00002")).unwrap());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(dir.path(), "truncated");
    std::fs::remove_file(&path).unwrap();
    refused(dir.path(), "model-00002");
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let change = |edit: &dyn Fn(&mut Value)| {
        let dir = saved(100_000);
        let path = dir.path().join(INDEX_FILE);
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut index);
        std::fs::write(&path, index.to_string()).unwrap();
        load(dir.path()).unwrap_err().to_string()
    };
    let norm = "model.norm.weight";
    let error = change(&|index| index["weight_map"][norm] = json!("../model.safetensors"));
    assert!(error.contains("file names ending in .safetensors"), "{error}");
    let error = change(&|index| index["weight_map"][norm] = json!("model-00001-of-00099.safetensors"));
    assert!(error.contains("model-00001-of-00099"), "{error}");
    let error = change(&|index| index["weight_map"][norm] = index["weight_map"]["model.embed_tokens.weight"].clone());
    assert!(error.contains("the shard that has the tensor"), "{error}");
    let error = change(&|index| drop(index["weight_map"].as_object_mut().unwrap().remove(norm)));
    assert!(error.contains("no entry for `model.norm.weight`"), "{error}");
    let error = change(&|index| drop(index.as_object_mut().unwrap().remove("weight_map")));
    assert!(error.contains("an object `weight_map`"), "{error}");
}

#[test]
fn a_folder_without_usable_weights_says_what_it_has() {
    let dir = saved(u64::MAX);
    std::fs::rename(dir.path().join(SINGLE_FILE), dir.path().join("pytorch_model.bin")).unwrap();
    refused(dir.path(), "only `pytorch_model.bin`");
    std::fs::remove_file(dir.path().join("pytorch_model.bin")).unwrap();
    refused(dir.path(), "got neither");
    std::fs::remove_file(dir.path().join(CONFIG_FILE)).unwrap();
    refused(dir.path(), CONFIG_FILE);
    let dir = saved(u64::MAX);
    std::fs::write(dir.path().join(INDEX_FILE), "{}").unwrap();
    refused(dir.path(), "got both");
}

#[test]
fn s18_vocab_mismatch_is_refused() {
    let dir = saved(u64::MAX);
    let config = ModelConfig { vocab_size: 71, ..small().config };
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_hf()).unwrap();
    let error = load(dir.path()).unwrap_err();
    let ModelError::TensorShape { tensor, expected, got, .. } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), expected[0], got[0]), ("model.embed_tokens.weight", 71, 70));
}

#[test]
fn missing_and_unexpected_tensors_are_named() {
    let rewrite = |config: ModelConfig| {
        let dir = saved(u64::MAX);
        std::fs::write(dir.path().join(CONFIG_FILE), config.to_hf()).unwrap();
        load(dir.path()).unwrap_err()
    };
    let error = rewrite(ModelConfig { n_layers: 3, ..small().config });
    let ModelError::TensorMissing { expected, n_missing, names, .. } = &error else { panic!("{error}") };
    assert_eq!((*expected, *n_missing), (30, 9));
    assert!(names.contains("`model.layers.2.input_layernorm.weight`") && names.ends_with("and 4 more"), "{names}");
    let error = rewrite(ModelConfig { tied: true, ..small().config });
    let ModelError::TensorUnexpected { n_unexpected: 1, names, .. } = &error else { panic!("{error}") };
    assert_eq!(names, "`lm_head.weight`");
}

#[test]
fn old_rotary_buffers_are_ignored() {
    let dir = saved(u64::MAX);
    let file = TensorFile::open(&dir.path().join(SINGLE_FILE)).unwrap();
    let all: Vec<_> =
        file.names().map(|n| (n.to_owned(), file.shape(n).unwrap().to_vec(), file.read_f32(n).unwrap())).collect();
    let mut tensors: Vec<_> = all.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Float(v))).collect();
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![1], Values::Float(&[1.0])));
    std::fs::remove_file(dir.path().join(SINGLE_FILE)).unwrap();
    write_tensors(&dir.path().join(SINGLE_FILE), tensors, FloatType::F32).unwrap();
    load(dir.path()).unwrap();
}

#[test]
fn broken_weights_are_refused_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = small();
    let mut leaves: Vec<_> = model.leaves().into_iter().map(|l| l.leaf).collect();
    let n = leaves[0].n_elements();
    let mut values = leaf_values(leaves[0].clone());
    values[n - 1] = f32::NAN;
    leaves[0] = leaf_from_values(&leaf_map(&model.config)[0], values, &Default::default());
    model.with_leaves(leaves).save(dir.path(), u64::MAX).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::TensorNonFinite { index, .. } if *index == n - 1), "{error}");
    Model::load_with(dir.path(), LoadOptions { allow_non_finite: true, ..LoadOptions::default() }, &Default::default())
        .unwrap();
}

#[test]
fn saving_never_overwrites() {
    let dir = saved(u64::MAX);
    assert!(matches!(small().save(dir.path(), u64::MAX), Err(ModelError::OutputExists { .. })));
}

#[test]
fn forms_of_packed_experts_are_spelled_as_before_and_by_name() {
    let read = |text: &str| serde_json::from_str::<PackedExperts>(text);
    for (text, want, written) in [
        ("false", PackedExperts::No, "false"),
        ("true", PackedExperts::Mxfp4, "true"),
        ("\"mxfp4\"", PackedExperts::Mxfp4, "true"),
        ("\"fp8\"", PackedExperts::Fp8, "\"fp8\""),
    ] {
        assert_eq!(read(text).unwrap(), want);
        assert_eq!(serde_json::to_string(&want).unwrap(), written);
    }
    let error = read("\"int4\"").unwrap_err().to_string();
    assert!(error.contains("expected false, true, \"mxfp4\" or \"fp8\""), "{error}");
}
