//! The program `model-core` as others call it: its files, its exit codes, and that nothing is left half-written.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use model_core::hf::tensor_file::Values;
use model_core::hf::{FloatType, TensorFile, hf_shapes, read_config, write_tensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_model-core")).args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = program(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a run that must end with `code`.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = program(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A batch file with these whole-number tensors of one row.
fn batch(dir: &Path, tensors: &[(&str, &[i64])]) -> PathBuf {
    let path = dir.join("in.safetensors");
    let tensors = tensors.iter().map(|(name, v)| ((*name).to_owned(), vec![1, v.len()], Values::Int(v))).collect();
    write_tensors(&path, tensors, FloatType::F32).unwrap();
    path
}

#[test]
fn forward_writes_logits_loss_and_every_gradient() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures: [(&str, &str, &[&str]); 4] = [
        ("llama", "llama", &[]),
        ("llama_tied", "llama_tied", &[]),
        ("gptoss", "gptoss", &[]),
        ("gptoss", "gptoss_aux", &["--router-aux-loss"]),
    ];
    for (model, cases, flags) in fixtures {
        for case in ["plain", "right_pad", "left_pad", "packed"] {
            let out = dir.path().join(format!("{cases}-{case}"));
            let input = fixture(cases).join(format!("{case}.safetensors"));
            let folder = fixture(model);
            let files = ["--model", text(&folder), "--input", text(&input), "--output", text(&out), "--grads"];
            succeeds(&[&["forward"], &files[..], flags].concat());
            let (got, want) = (TensorFile::open(&out).unwrap(), TensorFile::open(&input).unwrap());
            let loss = |file: &TensorFile| file.read_weight("out.loss", &[], false).unwrap()[0];
            assert!((loss(&got) - loss(&want)).abs() <= 1e-6 * loss(&want), "{model} {case}");
            assert_eq!(got.shape("out.logits").unwrap(), want.shape("out.logits").unwrap());
            let grads = |file: &TensorFile| -> Vec<String> {
                file.names().filter(|n| n.starts_with("grad.")).map(str::to_owned).collect()
            };
            assert_eq!(grads(&got), grads(&want), "{model} {case}");
            for name in grads(&want) {
                let want = want.read_f32(&name).unwrap();
                let got = got.read_f32(&name).unwrap();
                let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
                let worst = std::iter::zip(&got, &want).fold(0f32, |most, (g, w)| most.max((g - w).abs()));
                assert!(worst <= 1e-4 * largest, "{model} {case} {name}: {worst:e} of {largest:e}");
            }
        }
    }
    assert_eq!(names(dir.path()).len(), 16, "no temporary file is left");
}

#[test]
fn forward_with_an_adapter_writes_its_gradients_alone() {
    adapter_gradients("llama", "llama_lora", &["out.logits", "out.loss"]);
}

#[test]
fn adapters_of_experts_have_pefts_names_order_and_gradients() {
    adapter_gradients("gptoss", "gptoss_lora", &["out.aux_loss", "out.logits", "out.loss"]);
}

/// Runs the case of an adapter's fixture; the output has the gradients of its file's tensors, and `outputs`.
fn adapter_gradients(model: &str, adapter: &str, outputs: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let case = TensorFile::open(&fixture(adapter).join("case.safetensors")).unwrap();
    let (ids, shape) = (case.read_i64("in.input_ids").unwrap(), case.shape("in.input_ids").unwrap().to_vec());
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let tensor = |name: &str| (name.to_owned(), shape.clone(), Values::Int(&ids));
    write_tensors(&input, vec![tensor("in.input_ids"), tensor("in.labels")], FloatType::F32).unwrap();
    let (model, adapter) = (fixture(model), fixture(adapter));
    let folders = ["--model", text(&model), "--adapter", text(&adapter)];
    let files = ["--input", text(&input), "--output", text(&out), "--grads"];
    succeeds(&[&["forward"], &folders[..], &files].concat());
    let got = TensorFile::open(&out).unwrap();
    let adapter = TensorFile::open(&adapter.join("adapter_model.safetensors")).unwrap();
    let mut want: Vec<String> = adapter.names().map(|name| format!("grad.{name}")).collect();
    want.extend(outputs.iter().map(|name| (*name).to_owned()));
    assert_eq!(got.names().collect::<Vec<_>>(), want);
    for name in want.into_iter().filter(|name| case.contains(name)) {
        assert_eq!(got.shape(&name).unwrap(), case.shape(&name).unwrap(), "{name}");
        let (got, want) = (got.read_f32(&name).unwrap(), case.read_f32(&name).unwrap());
        let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        let worst = std::iter::zip(&got, &want).fold(0f32, |most, (g, w)| most.max((g - w).abs()));
        let bound = match name.as_str() {
            "out.logits" => 2e-5,
            "out.loss" => 1e-6 * largest,
            _ => 1e-4 * largest,
        };
        assert!(worst <= bound, "{name}: {worst:e}, largest {largest:e}");
    }
}

#[test]
fn forward_without_labels_writes_logits_only() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (batch(dir.path(), &[("in.input_ids", &[5, 6, 7])]), dir.path().join("out"));
    let model = fixture("llama");
    let arguments = ["forward", "--model", text(&model), "--input", text(&input), "--output", text(&out)];
    succeeds(&arguments);
    let file = TensorFile::open(&out).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["out.logits"]);
    assert_eq!(file.shape("out.logits").unwrap(), [1, 3, 96]);
    std::fs::write(&out, "an older result").unwrap();
    succeeds(&arguments);
    assert_eq!(TensorFile::open(&out).unwrap().names().count(), 1, "the older result is replaced");
}

#[test]
fn a_batch_without_labelled_tokens_has_loss_zero() {
    let dir = tempfile::tempdir().unwrap();
    let input = batch(dir.path(), &[("in.input_ids", &[5, 6, 7]), ("in.labels", &[5, -100, -100])]);
    let (model, out) = (fixture("llama"), dir.path().join("out"));
    succeeds(&["forward", "--model", text(&model), "--input", text(&input), "--output", text(&out), "--grads"]);
    let file = TensorFile::open(&out).unwrap();
    for name in file.names().filter(|name| *name != "out.logits") {
        assert!(file.read_f32(name).unwrap().iter().all(|v| *v == 0.0), "{name}");
    }
}

#[test]
fn forward_refuses_bad_input_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llama");
    let out = dir.path().join("out");
    let refused = |tensors: &[(&str, &[i64])], extra: &[&str], part: &str| {
        let input = batch(dir.path(), tensors);
        let mut arguments = vec!["forward", "--model", text(&model), "--input", text(&input), "--output", text(&out)];
        arguments.extend(extra);
        let message = fails(2, &arguments);
        assert!(message.contains(part), "`{part}` is not in: {message}");
        std::fs::remove_file(&input).unwrap();
        assert!(names(dir.path()).is_empty(), "{message}");
    };
    let ids: (&str, &[i64]) = ("in.input_ids", &[5, 6, 7]);
    refused(&[("in.input_ids", &[5, 96])], &[], "below vocab_size 96, got 96");
    refused(&[("in.input_ids", &[-1])], &[], "got -1");
    refused(&[("in.input_ids", &[1 << 40])], &[], "below vocab_size 96");
    refused(&[("in.ids", &[1])], &[], "in.input_ids");
    refused(&[("in.input_ids", &[])], &[], "at least one row");
    refused(&[ids, ("in.labels", &[5, 96, 7])], &[], "in.labels position 1");
    refused(&[ids, ("in.labels", &[5, 6])], &[], "expected shape [1, 3], got [1, 2]");
    refused(&[ids, ("in.attention_mask", &[1, 0, 1])], &[], "one unbroken run of ones");
    refused(&[ids, ("in.position_ids", &[0, 1, -2])], &[], "position_ids");
    refused(&[ids], &["--grads"], "expected in.labels");
    refused(&[ids], &["--router-aux-loss"], "expected a model with experts");
    refused(&[ids], &["--packed-experts"], "expected a model with experts");
    refused(&[ids], &["--adapter", "/nonexistent"], "/nonexistent");
    refused(&[ids], &["--device", "tpu"], "--device");
}

#[test]
fn a_device_that_the_build_lacks_is_exit_code_4() {
    let dir = tempfile::tempdir().unwrap();
    let input = batch(dir.path(), &[("in.input_ids", &[5])]);
    let (model, out) = (fixture("llama"), dir.path().join("out"));
    let arguments =
        ["forward", "--model", text(&model), "--input", text(&input), "--output", text(&out), "--device", "cuda:0"];
    assert!(fails(4, &arguments).contains("CUDA"));
    assert!(!out.exists());
}

#[test]
fn a_truncated_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::copy(fixture("llama").join("config.json"), model.join("config.json")).unwrap();
    let bytes = std::fs::read(fixture("llama").join("model.safetensors")).unwrap();
    std::fs::write(model.join("model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    let input = fixture("llama").join("plain.safetensors");
    let out = dir.path().join("out");
    let message = fails(2, &["forward", "--model", text(&model), "--input", text(&input), "--output", text(&out)]);
    assert!(message.contains("model.safetensors") && message.contains("truncated"), "{message}");
}

#[test]
fn init_is_reproducible_and_complete() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, seed: &str| {
        let out = dir.path().join(name);
        succeeds(&["init", "--depth", "2", "--vocab-size", "64", "--seed", seed, "--out", text(&out)]);
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    let (first, again, other) = (make("a", "1"), make("b", "1"), make("c", "2"));
    assert!(first == again && first != other);
    assert_eq!(names(&dir.path().join("a")), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(names(dir.path()), ["a", "b", "c"]);
    let a = dir.path().join("a");
    assert!(fails(2, &["init", "--depth", "2", "--vocab-size", "64", "--out", text(&a)]).contains("already exists"));
}

#[test]
fn init_takes_a_configuration_file_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    let (out, config) = (dir.path().join("m"), fixture("llama_tied").join("config.json"));
    succeeds(&["init", "--config", text(&config), "--out", text(&out), "--max-shard-bytes", "40000"]);
    assert!(names(&out).iter().any(|name| name.starts_with("model-00002-of-")));
    assert_eq!(read_config(&out).unwrap(), read_config(&fixture("llama_tied")).unwrap());
}

#[test]
fn init_refuses_what_makes_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let refused = |arguments: &[&str], part: &str| {
        let message = fails(2, &[&["init", "--out", text(&out)], arguments].concat());
        assert!(message.contains(part), "`{part}` is not in: {message}");
        assert!(names(dir.path()).is_empty(), "{message}");
    };
    refused(&["--preset", "13b"], "125m, 350m, 1b, 3b, 7b, 7b-wide, gpt-oss-20b, gpt-oss-120b");
    refused(&["--depth", "2"], "--vocab-size or --tokenizer");
    refused(&["--depth", "2", "--vocab-size", "0"], "--vocab-size");
    refused(&["--depth", "0", "--vocab-size", "8"], "--depth");
    refused(&[], "--preset");
    refused(&["--preset", "7b", "--depth", "2"], "--depth");
    refused(&["--config", "/nonexistent/config.json"], "/nonexistent/config.json");
}

#[test]
fn inspect_shows_counts_tensors_and_hashes() {
    let model = fixture("llama");
    let shown = succeeds(&["inspect", "--model", text(&model), "--tensors"]);
    let config = read_config(&model).unwrap();
    let line = |name: &str| shown.lines().find(|l| l.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("parameters").ends_with(&config.n_params().to_string()), "{shown}");
    assert!(line("vocab_size").ends_with("96"), "{shown}");
    for (name, _) in hf_shapes(&config) {
        assert!(shown.contains(&name), "{name}");
    }
    let hash = blake3::hash(&std::fs::read(model.join("model.safetensors")).unwrap()).to_hex();
    assert!(shown.contains(&format!("blake3  {hash}  model.safetensors")), "{shown}");
}

#[test]
fn export_halves_the_weights_and_gives_f32_back_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let (model, half, full) = (fixture("llama"), dir.path().join("bf16"), dir.path().join("f32"));
    succeeds(&["export", "--model", text(&model), "--out", text(&half)]);
    succeeds(&["export", "--model", text(&model), "--out", text(&full), "--dtype", "f32"]);
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(read(&full) == read(&model));
    assert!(read(&half).len() * 100 < read(&full).len() * 56, "{} of {}", read(&half).len(), read(&full).len());
    let config = std::fs::read_to_string(half.join("config.json")).unwrap();
    assert!(config.contains("\"dtype\": \"bfloat16\""), "{config}");
    assert!(fails(2, &["export", "--model", text(&model), "--out", text(&half)]).contains("already exists"));
}

#[test]
fn experts_are_exported_in_mxfp4_and_run_packed_as_they_do_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let (model, packed) = (fixture("gptoss"), dir.path().join("mxfp4"));
    succeeds(&["export", "--model", text(&model), "--out", text(&packed), "--dtype", "f32", "--packed-experts"]);
    let config = std::fs::read_to_string(packed.join("config.json")).unwrap();
    assert!(config.contains("\"quant_method\": \"mxfp4\""), "{config}");
    assert!(succeeds(&["inspect", "--model", text(&packed)]).contains("6 in each block, 2 for a token"));
    let input = fixture("gptoss").join("plain.safetensors");
    let run = |name: &str, flags: &[&str]| {
        let out = dir.path().join(name);
        let files = ["--model", text(&packed), "--input", text(&input), "--output", text(&out), "--grads"];
        succeeds(&[&["forward"], &files[..], flags].concat());
        TensorFile::open(&out).unwrap()
    };
    let (dense, frozen) = (run("dense", &[]), run("frozen", &["--packed-experts"]));
    let experts = |name: &&str| name.ends_with("experts.gate_up_proj") || name.ends_with("experts.down_proj");
    assert_eq!(dense.names().filter(|name| !experts(name)).collect::<Vec<_>>(), frozen.names().collect::<Vec<_>>());
    let fp8 = run("fp8", &["--packed-experts=fp8"]);
    for name in frozen.names() {
        assert_eq!(frozen.read_f32(name).unwrap(), dense.read_f32(name).unwrap(), "{name}");
        assert_eq!(fp8.read_f32(name).unwrap(), dense.read_f32(name).unwrap(), "{name}, in FP8");
    }
    let llama = fixture("llama");
    let message =
        fails(2, &["export", "--model", text(&llama), "--out", text(&dir.path().join("x")), "--packed-experts"]);
    assert!(message.contains("expected a model with experts"), "{message}");
    let message =
        fails(2, &["forward", "--model", text(&model), "--input", text(&input), "--output", "/x", "--packed-experts"]);
    assert!(message.contains("gate_up_proj_blocks"), "{message}");
    let files = ["forward", "--model", text(&model), "--input", text(&input), "--output", "/x"];
    let message = fails(2, &[&files[..], &["--packed-experts=int4"]].concat());
    assert!(message.contains("expected no, mxfp4 or fp8, got `int4`"), "{message}");
}

#[test]
fn export_writes_gguf_files() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, model) = (tokenizer(dir.path()), dir.path().join("m"));
    succeeds(&["init", "--depth", "1", "--tokenizer", text(&tokenizer), "--out", text(&model)]);
    let out = dir.path().join("made").join("m.gguf");
    let export = ["export", "--model", text(&model), "--out", text(&out), "--format", "gguf"];
    let told = succeeds(&[&export[..], &["--type", "q8_0"]].concat());
    assert!(told.contains("11 tensors"), "{told}");
    assert_eq!(&std::fs::read(&out).unwrap()[..8], b"GGUF\x03\0\0\0");
    assert_eq!(names(out.parent().unwrap()), ["m.gguf"]);
    assert!(fails(2, &[&export[..], &["--type", "q8_0"]].concat()).contains("already exists"));
    assert!(fails(2, &export).contains("expected --type"));
    assert!(fails(2, &[&export[..], &["--type", "f16", "--dtype", "f32"]].concat()).contains("cannot be used with"));
    assert!(fails(2, &[&export[..5], &["--type", "f16"]].concat()).contains("expected --format gguf"));
}

/// The held-out rows of the merges: the case of peft's adapter on GPT-OSS, with and without labels.
fn heldout(dir: &Path, labelled: bool) -> PathBuf {
    let case = TensorFile::open(&fixture("gptoss_lora").join("case.safetensors")).unwrap();
    let ids = case.read_i64("in.input_ids").unwrap();
    let path = dir.join(format!("heldout-{labelled}"));
    let mut tensors = vec![("in.input_ids".to_owned(), vec![2, 11], Values::Int(&ids))];
    tensors.extend(labelled.then(|| ("in.labels".to_owned(), vec![2, 11], Values::Int(&ids))));
    write_tensors(&path, tensors, FloatType::F32).unwrap();
    path
}

/// A copy of peft's adapter on GPT-OSS, recording `base`.
fn adapter(dir: &Path, base: &str) -> PathBuf {
    let out = dir.join("adapter");
    std::fs::create_dir(&out).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("gptoss_lora").join(name), out.join(name)).unwrap();
    }
    let lineage = serde_json::json!({"version": 1, "base_weights_hash": base});
    std::fs::write(out.join("firebrick.json"), lineage.to_string()).unwrap();
    out
}

fn out_loss(model: &Path, more: &[&str], input: &Path, dir: &Path) -> f64 {
    let out = dir.join("loss");
    let files = ["forward", "--model", text(model), "--input", text(input), "--output", text(&out)];
    succeeds(&[&files[..], more].concat());
    f64::from(TensorFile::open(&out).unwrap().read_f32("out.loss").unwrap()[0])
}

#[test]
fn a_merge_reports_what_rounding_to_mxfp4_costs() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let export =
        ["export", "--model", text(&fixture("gptoss")), "--out", text(&base), "--dtype", "f32"].map(str::to_owned);
    let export: Vec<&str> = export.iter().map(String::as_str).chain(["--packed-experts"]).collect();
    succeeds(&export);
    let adapter = adapter(dir.path(), &model_core::adapter::weights_hash(&base).unwrap());
    let heldout = heldout(dir.path(), true);
    let merge = |out: &Path, more: &[&str]| {
        let files = ["merge", "--model", text(&base), "--adapter", text(&adapter), "--heldout", text(&heldout)];
        succeeds(&[&files[..], &["--dtype", "f32", "--out", text(out)], more].concat());
        let report = std::fs::read(out.join("merge.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&report).unwrap()
    };
    let (whole, packed) = (dir.path().join("whole"), dir.path().join("packed"));
    let (of_whole, of_packed) = (merge(&whole, &[]), merge(&packed, &["--packed-experts", "--max-packed-kl", "9"]));
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-5, "{a} {b}");
    let loss = |report: &serde_json::Value, of: &str| report["loss"][of].as_f64().unwrap();
    near(loss(&of_whole, "base"), out_loss(&base, &[], &heldout, dir.path()));
    near(loss(&of_whole, "adapter"), out_loss(&base, &["--adapter", text(&adapter)], &heldout, dir.path()));
    near(loss(&of_whole, "merged"), out_loss(&whole, &[], &heldout, dir.path()));
    near(loss(&of_whole, "merged"), loss(&of_whole, "adapter"));
    near(loss(&of_packed, "merged_mxfp4"), out_loss(&packed, &["--packed-experts"], &heldout, dir.path()));
    assert!((loss(&of_packed, "merged_mxfp4") - loss(&of_packed, "merged")).abs() > 1e-4, "four bits cost something");
    assert_eq!(
        (&of_whole["loss"]["merged_mxfp4"], &of_whole["repacked"]),
        (&serde_json::Value::Null, &serde_json::json!([]))
    );
    // Attention of four blocks has four updates each, experts two.
    assert_eq!((&of_packed["n_updates"], &of_packed["heldout"]["tokens"]), (&24.into(), &22.into()));
    assert!(of_packed["merged"]["mean_kl"].as_f64().unwrap() <= 1e-6);
    assert_eq!(of_packed["merged_mxfp4"]["bounds"]["mean_kl"], 9.0);
    assert_eq!(of_packed["base"]["bounds"]["mean_kl"], serde_json::Value::Null);
    assert!(of_packed["base"]["mean_kl"].as_f64().unwrap() > 1e-3, "the adapter does something");
    let repacked = of_packed["repacked"].as_array().unwrap();
    assert_eq!(repacked.len(), 8);
    for of in repacked {
        let number = |key: &str| of[key].as_f64().unwrap();
        assert!(number("relative_error") > 0.01 && number("relative_error") < 0.2, "{of}");
        near(number("error_over_update"), number("relative_error") / number("relative_update"));
        assert!(number("update_kept") > 0.5 && number("update_kept") < 1.5, "{of}");
    }
    assert_eq!(of_packed["weights_hash"], model_core::adapter::weights_hash(&packed).unwrap());
}

#[test]
fn s27_a_merge_that_does_not_fit_its_base_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("gptoss");
    let heldout = heldout(dir.path(), false);
    let (adapter, out) = (adapter(dir.path(), "of another base"), dir.path().join("m"));
    let refused = |code: i32, more: &[&str], says: &str| {
        let files = ["merge", "--model", text(&model), "--heldout", text(&heldout), "--out", text(&out)];
        let message = fails(code, &[&files[..], &["--adapter", text(&adapter)], more].concat());
        assert!(message.contains(says), "{message}");
        assert_eq!(names(dir.path()), ["adapter", "heldout-false"], "{says}");
    };
    refused(2, &[], "of another base");
    refused(2, &["--unrecorded-base"], "of another base");
    std::fs::remove_file(adapter.join("firebrick.json")).unwrap();
    refused(2, &[], "--unrecorded-base");
    refused(1, &["--unrecorded-base", "--packed-experts", "--max-packed-kl", "1e-9"], "mean KL divergence");
    let silent = tempfile::tempdir().unwrap();
    let silent_rows = batch(silent.path(), &[("in.input_ids", &[5, 6, 7]), ("in.labels", &[5, -100, -100])]);
    let files = ["merge", "--model", text(&model), "--heldout", text(&silent_rows), "--out", text(&out)];
    let message = fails(2, &[&files[..], &["--adapter", text(&adapter), "--unrecorded-base"]].concat());
    assert!(message.contains("labelled tokens"), "{message}");
    let weights = TensorFile::open(&adapter.join("adapter_model.safetensors")).unwrap();
    let read = |name: &str| (name.to_owned(), weights.shape(name).unwrap().to_vec(), weights.read_f32(name).unwrap());
    let all: Vec<_> = weights.names().map(read).collect();
    let write = |tensors: &[(String, Vec<usize>, Vec<f32>)]| {
        let path = adapter.join("adapter_model.safetensors");
        std::fs::remove_file(&path).unwrap();
        let tensors = tensors.iter().map(|(name, shape, x)| (name.clone(), shape.clone(), Values::Float(x))).collect();
        write_tensors(&path, tensors, FloatType::F32).unwrap();
    };
    write(&all[1..]);
    refused(2, &["--unrecorded-base"], "1 are missing");
    let mut wrong = all.clone();
    wrong[0].1.swap(0, 1);
    write(&wrong);
    refused(2, &["--unrecorded-base"], "expected shape");
    write(&all);
    let files = ["merge", "--model", text(&model), "--heldout", text(&heldout), "--out", text(&out)];
    let told = succeeds(&[&files[..], &["--adapter", text(&adapter), "--unrecorded-base"]].concat());
    assert!(told.contains("24 updates merged"), "{told}");
}

/// A byte-level tokenizer without merges: 256 bytes, then the special tokens of ChatML.
fn tokenizer(dir: &Path) -> PathBuf {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    // Bytes without a visible character of their own borrow the ones from 256 on, in order.
    let borrowed = |byte: u32| 256 + (0..byte).filter(|b| !printable(*b)).count() as u32;
    let spell = |byte: u32| char::from_u32(if printable(byte) { byte } else { borrowed(byte) }).unwrap().to_string();
    let vocab: serde_json::Map<_, _> = (0..256).map(|byte| (spell(byte), byte.into())).collect();
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<_> = std::iter::zip(256.., specials)
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let byte_level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

#[test]
fn init_takes_its_special_tokens_from_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, out) = (tokenizer(dir.path()), dir.path().join("m"));
    succeeds(&["init", "--depth", "1", "--tokenizer", text(&tokenizer), "--max-seq-len", "64", "--out", text(&out)]);
    let config = read_config(&out).unwrap();
    assert_eq!((config.vocab_size, config.max_seq_len), (259, 64));
    assert_eq!((config.bos_id, config.eos_ids, config.pad_id), (None, vec![256, 258], Some(256)));
    let read = |path: &Path| std::fs::read(path).unwrap();
    assert!(read(&out.join("tokenizer.json")) == read(&tokenizer));
    let made: serde_json::Value = serde_json::from_slice(&read(&out.join("tokenizer_config.json"))).unwrap();
    assert_eq!(made["eos_token"], "<|im_end|>");
    let generation: serde_json::Value = serde_json::from_slice(&read(&out.join("generation_config.json"))).unwrap();
    assert_eq!(generation["eos_token_id"], serde_json::json!([256, 258]));
}

#[test]
fn s18_vocab_mismatch_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, out) = (tokenizer(dir.path()), dir.path().join("m"));
    for vocab_size in ["258", "50304"] {
        let arguments =
            ["init", "--depth", "1", "--tokenizer", text(&tokenizer), "--vocab-size", vocab_size, "--out", text(&out)];
        let message = fails(2, &arguments);
        assert!(message.contains(&format!("the tokenizer has 259 ids, the model {vocab_size}")), "{message}");
        assert!(!out.exists());
    }
    let padded = ["init", "--depth", "1", "--tokenizer", text(&tokenizer), "--vocab-size", "320", "--out", text(&out)];
    succeeds(&padded);
    assert_eq!(read_config(&out).unwrap().vocab_size, 320);
}
