//! Broken models and checkpoints, and resuming with something else than what was begun with.

use std::fs;

use crate::line::{args_of, args_with, assert_same_results, inputs_of};
use crate::sandbox::{RUN, Sandbox, copy_tree};

/// A sandbox with a stage that has ended, and what it read.
fn with_result_of(stage: &str) -> Sandbox {
    let mut parts = inputs_of(stage).to_vec();
    parts.push(stage);
    Sandbox::with(&parts)
}

#[test]
fn truncated_weights_are_refused_by_every_reader() {
    let sandbox = Sandbox::with(&["init", "rows", "tasks"]);
    let (model, file) = (format!("{RUN}/init"), "init/model.safetensors");
    let whole = fs::read(sandbox.run_path(file)).unwrap();
    let out = format!("{RUN}/out");
    let eval = ["eval", "--model", &model, "--suite", "configs/suite.toml", "--data", RUN, "--out", &out];
    let generate = ["generate", "--model", &model, "--prompt", "The"];
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(sandbox.run_path(file), &whole[..length]).unwrap();
        let words = [file, "expected"];
        sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &words);
        sandbox.refuses(2, "gates", &eval, &words);
        sandbox.refuses(2, "model-core", &generate, &words);
        sandbox.refuses(2, "model-core", &["inspect", "--model", &model], &words);
    }
    // A header that claims more than there can be.
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(sandbox.run_path(file), &huge).unwrap();
    sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &[file]);
    // Weights that are no numbers come from a failed run.
    let mut broken = whole;
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(sandbox.run_path(file), &broken).unwrap();
    sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &[file, "NaN", "failed run"]);
}

#[test]
fn a_model_folder_without_its_files_is_refused_by_name() {
    for (file, words) in [
        ("config.json", ["init", "config.json"]),
        ("model.safetensors", ["init", "model.safetensors"]),
        ("tokenizer.json", ["init", "tokenizer.json"]),
    ] {
        let sandbox = Sandbox::with(&["init", "rows"]);
        fs::remove_file(sandbox.run_path("init").join(file)).unwrap();
        sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &words);
    }
    let sandbox = Sandbox::with(&["init", "rows"]);
    sandbox.edit(&format!("{RUN}/init/config.json"), "\"hidden_size\": 64", "\"hidden_size\": 128");
    sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &["init", "config.json"]);
}

#[test]
fn s08_a_resume_with_another_configuration_is_refused_by_key() {
    let sandbox = with_result_of("pretrain");
    for (set, words) in [
        ("train.lr=1e-4", ["the configuration was train.lr = 0.005", "now it is train.lr = 0.0001"]),
        ("train.seed=8", ["the configuration was train.seed = 7", "now it is train.seed = 8"]),
        ("z_loss=0.0", ["the configuration was z_loss", "start a new run"]),
    ] {
        let args = args_with("pretrain", &["--resume", "--set", set]);
        sandbox.refuses(2, "stage-pretrain", &args, &["cannot resume from", words[0], words[1]]);
    }
    // What only decides when work is done may change.
    let args = args_with("pretrain", &["--resume", "--set", "train.log_every=1", "--set", "train.keep_last=5"]);
    sandbox.run("stage-pretrain", &args).ok();
}

#[test]
fn s08_a_resume_with_another_data_set_is_refused() {
    let sandbox = with_result_of("sft");
    let train = sandbox.run_path("tasks/sft/train.jsonl");
    let text = fs::read_to_string(&train).unwrap();
    fs::write(&train, text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let words = ["cannot resume from", "the data was", "resume with the same one or start a new run"];
    sandbox.refuses(2, "stage-sft", &args_with("sft", &["--resume"]), &words);

    // Rows that are intact in themselves, but others.
    let sandbox = with_result_of("pretrain");
    fs::remove_dir_all(sandbox.run_path("rows/text-heldout")).unwrap();
    copy_tree(&sandbox.run_path("rows/domain-heldout"), &sandbox.run_path("rows/text-heldout"));
    sandbox.refuses(2, "stage-pretrain", &args_with("pretrain", &["--resume"]), &["cannot resume", "the data was"]);
}

#[test]
fn s08_a_resume_with_another_tokenizer_or_model_is_refused() {
    // Another text of the same vocabulary: the ids may be the same, the file is not.
    let sandbox = with_result_of("sft");
    let tokenizer = sandbox.run_path("pretrain/final/tokenizer.json");
    fs::write(&tokenizer, fs::read_to_string(&tokenizer).unwrap() + "\n").unwrap();
    let args = args_with("sft", &["--resume", "--override-gate", "a test"]);
    sandbox.refuses(2, "stage-sft", &args, &["cannot resume from", "the tokenizer was", "now it is"]);

    let sandbox = with_result_of("pretrain");
    let out = format!("{RUN}/fresh");
    let tokenizer = format!("{RUN}/init");
    let init =
        ["init", "--depth", "1", "--max-seq-len", "256", "--seed", "2", "--tokenizer", &tokenizer, "--out", &out];
    sandbox.run("model-core", &init).ok();
    for file in fs::read_dir(sandbox.path(&out)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), sandbox.run_path("init").join(file.file_name())).unwrap();
    }
    let words = ["cannot resume from", "the initial model was"];
    sandbox.refuses(2, "stage-pretrain", &args_with("pretrain", &["--resume"]), &words);
}

/// Damage to the newest checkpoint costs the steps since the one before, nothing else: the run ends with the same bytes.
#[test]
fn s08_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_continued() {
    for (file, cut) in [
        ("trainer/optimizer.safetensors", false),
        ("model.safetensors", true),
        ("manifest.json", true),
        ("trainer/state.json", false),
    ] {
        let sandbox = with_result_of("pretrain");
        let path = sandbox.run_path("pretrain/checkpoints/step-30").join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        if cut {
            bytes.truncate(middle);
        } else {
            bytes[middle] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
        let ended = sandbox.run("stage-pretrain", &args_with("pretrain", &["--resume"]));
        let said = format!("{}{}", ended.out, ended.err);
        ended.ok();
        assert!(said.contains("step-30 is damaged") && said.contains("set aside"), "{file}: {said}");
        assert!(sandbox.run_path("pretrain/checkpoints/step-30.bad-0").exists());
        assert_same_results(&sandbox, "pretrain", &format!("{file} damaged"));
    }
}

#[test]
fn a_run_without_an_intact_checkpoint_does_not_start_again_silently() {
    let sandbox = with_result_of("pretrain");
    for entry in fs::read_dir(sandbox.run_path("pretrain/checkpoints")).unwrap() {
        fs::write(entry.unwrap().path().join("model.safetensors"), "").unwrap();
    }
    let metrics = fs::read(sandbox.run_path("pretrain/metrics.jsonl")).unwrap();
    for _ in 0..2 {
        // The second start finds nothing but what the first has set aside.
        let ended = sandbox.run("stage-pretrain", &args_with("pretrain", &["--resume"]));
        ended.says(2, &["checkpoints is intact", "restore one from a backup"]);
    }
    assert_eq!(metrics, fs::read(sandbox.run_path("pretrain/metrics.jsonl")).unwrap());
}

#[test]
fn two_programs_in_one_stage_folder_are_refused() {
    let sandbox = with_result_of("pretrain");
    let lock = fs::File::options().write(true).open(sandbox.run_path("pretrain/lock")).unwrap();
    lock.lock().unwrap();
    let said = format!("{RUN}/pretrain is locked by another run");
    sandbox.refuses(2, "stage-pretrain", &args_with("pretrain", &["--resume"]), &[&said, "wait for it"]);
}
