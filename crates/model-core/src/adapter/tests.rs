//! Adapters against peft's numbers, and everything that must be refused.

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::{Int, TensorData};
use kernels_cubecl::{Cpu, Leaf, linear, linear_cross_entropy};
use serde_json::{Value, json};

use super::*;
use crate::hf::TensorFile;
use crate::leaves::NamedLeaf;
use crate::rows::Rows;

mod experts;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tiny() -> Decoder<Cpu> {
    let config = ModelConfig { init_std: 0.2, ..ModelConfig::from_depth(2, 50) };
    Decoder::init(&config, 3, &Default::default())
}

fn lora(targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    LoraConfig { r: 4, alpha: 6.0, dropout: 0.0, rslora: false, targets, rank_pattern: Default::default() }
}

/// The model with an adapter whose B is not zero any more.
fn adapted(config: &LoraConfig) -> Decoder<Cpu> {
    let mut model = tiny();
    model.attach_lora(config, 1).unwrap();
    let shaken = |leaf: NamedLeaf<Cpu>| match leaf.leaf {
        Leaf::Matrix(value) if leaf.name.ends_with("lora_B.weight") => {
            let noise = Stream::new(8, &leaf.name).normals(value.dims().iter().product(), 0.1);
            Leaf::Matrix(value.clone() + Tensor::from_data(TensorData::new(noise, value.dims()), &value.device()))
        }
        other => other,
    };
    let leaves = model.leaves().into_iter().map(shaken).collect();
    model.with_leaves(leaves)
}

fn rows(n_rows: usize, seq_len: usize, vocab_size: usize) -> Rows {
    let ids = (0..n_rows * seq_len).map(|i| ((i * i + 3 * i) % vocab_size) as i32).collect();
    Rows::from_segments(n_rows, seq_len, ids, vec![0; n_rows * seq_len]).unwrap()
}

fn logits(model: &Decoder<Cpu>, rows: &Rows) -> Vec<f32> {
    let hidden = model.hidden(&rows.to_input(&model.config, &Default::default()), false);
    linear(hidden, model.head()).into_data().into_vec().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = std::iter::zip(a, b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}

/// Mean next-token loss and its gradients by leaf name.
fn loss_and_gradients(model: &Decoder<Cpu>, rows: &Rows, recompute: bool) -> (f32, Vec<(String, Vec<f32>)>) {
    let device = Default::default();
    let model = model.to_autodiff();
    let hidden = model.hidden(&rows.to_input(&model.config, &device), recompute);
    let [b, t, d] = hidden.dims();
    let target = |i: usize| if (i + 1).is_multiple_of(t) { -100 } else { rows.ids[i + 1] };
    let targets: Vec<i32> = (0..b * t).map(target).collect();
    let weight = 1.0 / (b * (t - 1)) as f32;
    let targets = Tensor::<Autodiff<Cpu>, 1, Int>::from_ints(targets.as_slice(), &device);
    let weights = Tensor::from_floats(vec![weight; b * t].as_slice(), &device);
    let loss = linear_cross_entropy(hidden.reshape([b * t, d]), model.head(), targets, weights, 0.0).loss;
    let value = loss.clone().into_data().into_vec::<f32>().unwrap()[0];
    let gradients = loss.backward();
    let leaves = model.leaves().into_iter().filter(|leaf| leaf.trainable);
    let of_leaf = |leaf: NamedLeaf<Autodiff<Cpu>>| {
        let gradient = leaf.leaf.grad(&gradients).map(|g| g.into_data().into_vec::<f32>().unwrap());
        (leaf.name, gradient.unwrap_or_default())
    };
    (value, leaves.map(of_leaf).collect())
}

/// Loss and gradients are those that PEFT left in the case, recomputed or not, and nothing else trains.
fn assert_pefts_gradients(model: &Decoder<Cpu>, case: &TensorFile, rows: &Rows) {
    for recompute in [false, true] {
        let (loss, gradients) = loss_and_gradients(model, rows, recompute);
        let want = case.read_f32("out.loss").unwrap()[0];
        assert!((loss - want).abs() <= 1e-6 * want, "loss {loss}, expected {want}");
        let n_wanted = case.names().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(gradients.len(), n_wanted, "every adapter leaf and nothing else trains");
        for ((_, gradient), (_, at)) in std::iter::zip(gradients, model.peft_tensors()) {
            let want = case.read_weight(&format!("grad.{}", at.name), &at.shape, false).unwrap();
            let scale = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let difference = largest_difference(&at.to_file(gradient), &want);
            assert!(difference <= 1e-4 * scale, "{}: gradient differs by {difference}, largest {scale}", at.name);
        }
    }
}

#[test]
fn pefts_numbers_come_out() {
    let device = Default::default();
    let mut model = Decoder::<Cpu>::load(&fixture("llama"), &device).unwrap();
    let hash = weights_hash(&fixture("llama")).unwrap();
    let adapter = model.load_peft(&fixture("llama_lora"), &hash).unwrap();
    assert_eq!((adapter.config.r, adapter.config.rslora, adapter.base_hash), (3, true, None));
    let case = TensorFile::open(&fixture("llama_lora/case.safetensors")).unwrap();
    let ids: Vec<i32> = case.read_i64("in.input_ids").unwrap().into_iter().map(|id| id as i32).collect();
    let rows = Rows::from_segments(2, 9, ids, vec![0; 18]).unwrap();
    let difference = largest_difference(&logits(&model, &rows), &case.read_f32("out.logits").unwrap());
    assert!(difference <= 2e-5, "logits differ by {difference}");
    assert_pefts_gradients(&model, &case, &rows);
    let mut merged = model.clone();
    assert_eq!(merged.merge().unwrap(), 12);
    let difference = largest_difference(&logits(&merged, &rows), &case.read_f32("out.merged_logits").unwrap());
    assert!(difference <= 2e-5, "merged logits differ by {difference}");
}

#[test]
fn a_fresh_adapter_changes_no_logit() {
    let (plain, rows) = (tiny(), rows(2, 11, 50));
    let mut model = plain.clone();
    model.attach_lora(&lora(&[ALL_LINEAR]), 1).unwrap();
    assert_eq!(logits(&model, &rows), logits(&plain, &rows));
    assert!(model.leaves().iter().all(|leaf| leaf.trainable == leaf.is_adapter()));
    let of = |model: &Decoder<Cpu>| model.leaves().into_iter().map(|l| l.leaf.into_data()).collect::<Vec<_>>();
    let mut again = plain.clone();
    again.attach_lora(&lora(&[ALL_LINEAR]), 1).unwrap();
    assert_eq!(of(&again), of(&model), "the same seed gives the same adapter");
    let mut other = plain;
    other.attach_lora(&lora(&[ALL_LINEAR]), 2).unwrap();
    assert_ne!(of(&other), of(&model));
}

#[test]
fn parameters_are_counted_exactly() {
    let model = tiny();
    for targets in [&[ALL_LINEAR][..], &["q_proj", "v_proj"], &["mlp.down_proj"], &["model.layers.1.self_attn.o_proj"]]
    {
        let config = lora(targets);
        let mut adapted = model.clone();
        adapted.attach_lora(&config, 0).unwrap();
        let (base, config) = (&model.config, config.n_params(&model.config).unwrap());
        assert_eq!(adapted.n_adapter_params(), config, "{targets:?}");
        let trainable: usize = adapted.leaves().iter().filter(|l| l.trainable).map(|l| l.leaf.n_elements()).sum();
        assert_eq!(trainable as u64, config, "{targets:?} of {base:?}");
    }
    // 7b, rank 16 on everything: 16 · Σ (in + out) over 32 blocks of q, k, v, o, gate, up, down.
    let sizes = [8192, 5120, 5120, 8192, 15_104, 15_104, 15_104];
    let want = 16 * 32 * sizes.iter().sum::<u64>();
    let config = LoraConfig { r: 16, ..lora(&[ALL_LINEAR]) };
    assert_eq!(config.n_params(&ModelConfig::preset("7b").unwrap()).unwrap(), want);
}

#[test]
fn rslora_divides_by_the_root_of_the_rank() {
    assert_eq!(LoraConfig { r: 16, alpha: 32.0, ..lora(&[]) }.scale(16), 2.0);
    assert_eq!(LoraConfig { r: 16, alpha: 32.0, rslora: true, ..lora(&[]) }.scale(16), 8.0);
}

#[test]
fn bad_settings_are_refused_and_leave_the_model_alone() {
    let mut model = tiny();
    for (wrong, key) in [
        (LoraConfig { r: 0, ..lora(&["q_proj"]) }, "`r`"),
        (LoraConfig { alpha: 0.0, ..lora(&["q_proj"]) }, "`alpha`"),
        (LoraConfig { alpha: f32::INFINITY, ..lora(&["q_proj"]) }, "`alpha`"),
        (LoraConfig { dropout: 1.0, ..lora(&["q_proj"]) }, "`dropout`"),
        (LoraConfig { dropout: f32::NAN, ..lora(&["q_proj"]) }, "`dropout`"),
        (lora(&[]), "`targets`"),
    ] {
        let error = model.attach_lora(&wrong, 0).unwrap_err();
        assert!(matches!(error, ModelError::LoraInvalid { .. }) && error.to_string().contains(key), "{error}");
    }
    for typo in ["q_porj", "proj", "", "embed_tokens", "layers.9.mlp.up_proj"] {
        let error = model.attach_lora(&lora(&["v_proj", typo]), 0).unwrap_err();
        let ModelError::LoraTarget { target, available } = &error else { panic!("{error}") };
        assert_eq!(target, typo);
        assert_eq!(available, "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
        assert!(lora(&[typo]).n_params(&model.config).is_err());
    }
    assert!(!model.has_adapter());
    let merging = model.merge().unwrap_err();
    assert!(matches!(merging, ModelError::NoAdapter { .. }), "{merging}");
    model.attach_lora(&lora(&["q_proj"]), 0).unwrap();
    let twice = model.attach_lora(&lora(&["v_proj"]), 0).unwrap_err();
    assert!(twice.to_string().contains("without an adapter"), "{twice}");
}

/// Some steps of plain gradient descent; returns the model before and after and the gradients' sizes.
fn train(model: &Decoder<Cpu>, steps: usize) -> (Decoder<Cpu>, GradientNorms) {
    train_on(model, &rows(2, 11, 50), steps)
}

fn train_on(model: &Decoder<Cpu>, rows: &Rows, steps: usize) -> (Decoder<Cpu>, GradientNorms) {
    let mut model = model.clone();
    let mut norms = GradientNorms::new();
    for _ in 0..steps {
        let (_, gradients) = loss_and_gradients(&model, rows, true);
        let of: std::collections::HashMap<_, _> = gradients.into_iter().collect();
        let step = |leaf: NamedLeaf<Cpu>| match (of.get(&leaf.name), leaf.leaf) {
            (Some(gradient), Leaf::Matrix(value)) => {
                let squares: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
                *norms.entry(leaf.name).or_default() += squares;
                let gradient = Tensor::from_data(TensorData::new(gradient.clone(), value.dims()), &value.device());
                Leaf::Matrix(value - gradient * 0.5)
            }
            (_, other) => other,
        };
        let leaves = model.leaves().into_iter().map(step).collect();
        model = model.with_leaves(leaves);
    }
    (model, norms)
}

#[test]
fn s26_every_adapter_leaf_trains_and_nothing_else_does() {
    let mut before = tiny();
    before.attach_lora(&LoraConfig { dropout: 0.1, ..lora(&[ALL_LINEAR]) }, 1).unwrap();
    before.set_dropout_seed(Some(4));
    let (after, norms) = train(&before, 2);
    check_liveness(&before.leaves(), &after.leaves(), &norms).unwrap();
    assert_eq!(norms.len(), 2 * 7 * 2);

    let refused = |after: &Decoder<Cpu>, norms: &GradientNorms| {
        let error = check_liveness(&before.leaves(), &after.leaves(), norms).unwrap_err();
        assert!(matches!(error, ModelError::AdapterInert { .. }), "{error}");
        error.to_string()
    };
    // After one step only, A has had no gradient: B was zero.
    let (first, first_norms) = train(&before, 1);
    assert!(refused(&first, &first_norms).contains("q_proj.lora_A.weight"));
    for dead in [0.0, f64::NAN] {
        let mut norms = norms.clone();
        norms.insert("model.layers.1.mlp.up_proj.lora_B.weight".to_owned(), dead);
        assert!(refused(&after, &norms).contains("got 1 that do not: model.layers.1.mlp.up_proj.lora_B.weight"));
    }
    let mut missing = norms.clone();
    missing.remove("model.layers.0.self_attn.k_proj.lora_A.weight");
    assert!(refused(&after, &missing).contains("layers.0.self_attn.k_proj.lora_A"));
    assert!(refused(&before, &norms).contains("to change"));
    let mut thawed = after.clone();
    thawed.final_norm.gamma = thawed.final_norm.gamma * 1.5;
    assert!(refused(&thawed, &norms).contains("model.norm.weight"));
    let plain = tiny();
    let error = check_liveness(&plain.leaves(), &plain.leaves(), &norms).unwrap_err();
    assert!(matches!(error, ModelError::NoAdapter { .. }), "{error}");
}

#[test]
fn dropout_is_a_function_of_its_seed() {
    let rows = rows(1, 13, 50);
    let mut model = adapted(&LoraConfig { dropout: 0.5, ..lora(&["v_proj", "down_proj"]) });
    let quiet = logits(&model, &rows);
    let mut with = |seed| {
        model.set_dropout_seed(seed);
        logits(&model, &rows)
    };
    let (first, other) = (with(Some(1)), with(Some(2)));
    assert!(largest_difference(&first, &quiet) > 1e-3 && largest_difference(&first, &other) > 1e-3);
    assert_eq!(with(Some(1)), first);
    assert_eq!(with(None), quiet);
    model.set_dropout_seed(Some(1));
    let (plain, again) = (loss_and_gradients(&model, &rows, false), loss_and_gradients(&model, &rows, true));
    assert_eq!(plain, again, "a block that runs again drops the same elements");
}

#[test]
fn a_merged_model_answers_as_with_its_adapter() {
    let rows = [rows(2, 11, 50), rows(1, 300, 50)];
    for config in [lora(&[ALL_LINEAR]), LoraConfig { rslora: true, ..lora(&["k_proj", "up_proj"]) }] {
        let model = adapted(&config);
        let mut merged = model.clone();
        merged.merge().unwrap();
        assert!(!merged.has_adapter() && merged.leaves().iter().all(|leaf| leaf.trainable));
        let report = merge_check(&model, &merged, &rows, &MergeBounds::F32).unwrap();
        assert_eq!(report.n_tokens, 322);
        assert!(report.max_abs_logit > 0.0 && report.mean_kl.abs() < 1e-9, "{report:?}");
        let drift = |other: &Decoder<Cpu>| merge_check(&model, other, &rows, &MergeBounds::F32).unwrap_err();
        let error = drift(&tiny());
        assert!(matches!(error, ModelError::MergeDrift { .. }), "{error}");
        let mut broken = merged.clone();
        broken.final_norm.gamma = broken.final_norm.gamma * f32::NAN;
        let error = drift(&broken);
        assert!(matches!(error, ModelError::MergeDrift { got, .. } if got.is_nan()), "{error}");
        assert!(matches!(drift(&model), ModelError::LoraInvalid { .. }));
        let error = merge_check(&merged, &merged, &rows, &MergeBounds::F32).unwrap_err();
        assert!(matches!(error, ModelError::NoAdapter { .. }), "two equal models prove nothing: {error}");
        let error = merge_check(&model, &merged, &[], &MergeBounds::F32).unwrap_err();
        assert!(matches!(error, ModelError::Rows { .. }), "{error}");
    }
}

#[test]
fn each_measure_of_the_merge_check_can_fail() {
    let rows = [rows(2, 11, 50)];
    let model = adapted(&lora(&[ALL_LINEAR]));
    let mut merged = model.clone();
    merged.merge().unwrap();
    let strict = |bounds| merge_check(&model, &merged, &rows, &bounds).unwrap_err().to_string();
    assert!(strict(MergeBounds { max_abs_logit: 0.0, ..MergeBounds::F32 }).contains("largest logit difference"));
    assert!(strict(MergeBounds { mean_kl: -1.0, ..MergeBounds::F32 }).contains("KL divergence"));
    assert!(strict(MergeBounds { top1_agreement: 1.1, ..MergeBounds::F32 }).contains("top-1"));
}

#[test]
fn the_folder_is_what_peft_expects() {
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { dropout: 0.1, ..lora(&["v_proj", "q_proj"]) };
    let files = adapted(&config).save_peft(folder.path(), &config, "abc").unwrap();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["adapter_model.safetensors", "adapter_config.json", "firebrick.json"]);
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap() };
    assert_eq!(
        read("adapter_config.json"),
        json!({
            "base_model_name_or_path": null, "bias": "none", "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "lora_alpha": 6, "lora_dropout": 0.1, "modules_to_save": null,
            "peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
            "use_dora": false, "use_rslora": false
        })
    );
    assert_eq!(read("firebrick.json"), json!({ "version": 1, "base_weights_hash": "abc" }));
    let tensors = TensorFile::open(&files[0]).unwrap();
    let of_block = |i: usize| {
        ["q_proj", "v_proj"]
            .map(|p| ["A", "B"].map(|l| format!("base_model.model.model.layers.{i}.self_attn.{p}.lora_{l}.weight")))
    };
    let want: Vec<String> = [of_block(0), of_block(1)].concat().concat();
    assert_eq!(tensors.names().collect::<Vec<_>>(), want);
    let d_model = tiny().config.d_model;
    assert_eq!(tensors.shape(&want[0]).unwrap(), [4, d_model]);
    assert_eq!(tensors.dtype(&want[1]).unwrap(), "F32");
}

#[test]
fn an_adapter_comes_back_and_only_onto_its_base() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), rows(2, 11, 50));
    let config = LoraConfig { alpha: 2.5, rslora: true, ..lora(&[ALL_LINEAR]) };
    let model = adapted(&config);
    model.save_peft(folder.path(), &config, "abc").unwrap();
    let exists = model.save_peft(folder.path(), &config, "abc").unwrap_err();
    assert!(matches!(exists, ModelError::OutputExists { .. }), "{exists}");

    let mut loaded = tiny();
    let error = loaded.load_peft(folder.path(), "abd").unwrap_err();
    assert!(matches!(error, ModelError::AdapterBase { .. }) && !loaded.has_adapter(), "{error}");
    let adapter = loaded.load_peft(folder.path(), "abc").unwrap();
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    assert_eq!(adapter.config, LoraConfig { targets: targets.map(str::to_owned).into(), ..config });
    assert_eq!(logits(&loaded, &rows), logits(&model, &rows));
    let again = loaded.load_peft(folder.path(), "abc").unwrap_err();
    assert!(matches!(again, ModelError::LoraInvalid { .. }), "{again}");
}

#[test]
fn a_setting_that_is_not_the_attached_one_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let config = lora(&["q_proj", "v_proj"]);
    let model = adapted(&config);
    let refused = |config: &LoraConfig| model.save_peft(folder.path(), config, "abc").unwrap_err().to_string();
    assert!(refused(&LoraConfig { r: 8, ..config.clone() }).contains("`r`"));
    assert!(refused(&LoraConfig { rslora: true, ..config.clone() }).contains("`alpha`"));
    assert!(refused(&lora(&["q_proj"])).contains("`targets`"));
    let error = tiny().save_peft(folder.path(), &config, "abc").unwrap_err();
    assert!(matches!(error, ModelError::NoAdapter { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left half-written");
}

#[test]
fn foreign_folders_are_checked_whole() {
    let source = tempfile::tempdir().unwrap();
    let config = lora(&["q_proj"]);
    adapted(&config).save_peft(source.path(), &config, "abc").unwrap();
    let text = std::fs::read_to_string(source.path().join("adapter_config.json")).unwrap();
    let load = |key: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        std::fs::write(folder.path().join("adapter_config.json"), json.to_string()).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(source.path().join(weights), folder.path().join(weights)).unwrap();
        tiny().load_peft(folder.path(), "xyz").map(|adapter| adapter.base_hash)
    };
    assert_eq!(load("peft_version", json!("0.21.2")).unwrap(), None, "another program's adapter records no base");
    assert!(load("layers_to_transform", json!(null)).is_ok());
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("init_lora_weights", json!("pissa")),
        ("rank_pattern", json!({ "q_proj": 0 })),
        ("rank_pattern", json!({ ".*_proj": 4 })),
        ("rank_pattern", json!({ "v_proj": 4 })),
        ("rank_pattern", json!([4])),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0])),
        ("some_future_switch", json!(1)),
        ("target_modules", json!(".*_proj")),
        ("lora_alpha", json!(null)),
        ("r", json!(0)),
    ] {
        let error = load(key, value).unwrap_err().to_string();
        assert!(error.contains(key) || error.contains("alpha"), "{key}: {error}");
    }
    let missing = load("target_modules", json!(["q_proj", "v_proj"])).unwrap_err();
    assert!(matches!(missing, ModelError::TensorMissing { n_missing: 4, .. }), "{missing}");
    let extra = load("target_modules", json!(["model.layers.0.self_attn.q_proj"])).unwrap_err();
    assert!(matches!(extra, ModelError::TensorUnexpected { n_unexpected: 2, .. }), "{extra}");
    let shape = load("r", json!(5)).unwrap_err();
    assert!(matches!(shape, ModelError::TensorShape { .. }), "{shape}");
    let typo = load("target_modules", json!(["q_porj"])).unwrap_err();
    assert!(matches!(typo, ModelError::LoraTarget { .. }), "{typo}");
}

#[test]
fn the_weights_hash_sees_values_not_files() {
    let model = tiny();
    let hash = |model: &Decoder<Cpu>, shard_bytes| {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), shard_bytes).unwrap();
        weights_hash(folder.path()).unwrap()
    };
    let whole = hash(&model, u64::MAX);
    assert_eq!(hash(&model, 100_000), whole, "shards do not matter");
    let mut other = model.clone();
    other.final_norm.gamma = other.final_norm.gamma * 1.000_001;
    assert_ne!(hash(&other, u64::MAX), whole);
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(weights_hash(empty.path()), Err(ModelError::NoWeights { .. })));
}
