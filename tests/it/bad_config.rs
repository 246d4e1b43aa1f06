//! Wrong configurations: refused with exit code 2 before anything is started, by file and key.

use std::fs;

use crate::line::{STAGES, args_of, args_with, inputs_of};
use crate::sandbox::{RUN, Sandbox};

/// A mistake in a file: what is replaced, by what, and what the message must say.
type Mistake = (&'static str, &'static str, &'static [&'static str]);

const IN_EVERY_STAGE: [Mistake; 11] = [
    ("eps = 1e-8", "epsilon = 1e-8", &["epsilon", "eps"]),
    ("eps = 1e-8", "eps = 1e-8\neps = 1e-8", &["duplicate key", "eps"]),
    ("eps = 1e-8", "", &["eps"]),
    ("eps = 1e-8", "eps = \"small\"", &["train.eps"]),
    ("eps = 1e-8", "eps = 0.0", &["train.eps", "above 0", "got 0"]),
    ("min_lr = 1e-5", "min_lr = 1e3", &["train.min_lr", "from 0 to lr", "got 1000"]),
    ("beta2 = 0.95", "beta2 = 1.0", &["train.beta2", "[0, 1)", "got 1"]),
    ("warmup_steps = 3", "warmup_steps = 300", &["train.warmup_steps", "less than max_steps", "got 300"]),
    ("tokens_per_step = 512", "tokens_per_step = 500", &["train.tokens_per_micro_batch", "divisor", "got 256"]),
    ("keep_last = 2", "keep_last = 0", &["train.keep_last", "at least 1", "got 0"]),
    ("save_every = 4", "save_every = -4", &["train.save_every"]),
];

/// Refuses one mistake of a stage; the sandbox has no input of the stage at all, so that nothing can have been read.
fn refuses(sandbox: &Sandbox, stage: &str, text: &str, (from, to, words): Mistake) {
    let file = format!("configs/stage/{stage}.toml");
    assert!(text.contains(from), "{from:?} is not in {file}");
    fs::write(sandbox.path(&file), text.replacen(from, to, 1)).unwrap();
    sandbox.refuses(2, &format!("stage-{stage}"), &args_of(stage), words);
    assert!(!sandbox.run_path(stage).exists());
}

#[test]
fn s12_unknown_duplicate_missing_and_senseless_keys_are_refused_by_name() {
    for stage in STAGES {
        let sandbox = Sandbox::new();
        let text = fs::read_to_string(sandbox.path(&format!("configs/stage/{stage}.toml"))).unwrap();
        for mistake in IN_EVERY_STAGE {
            refuses(&sandbox, stage, &text, mistake);
        }
    }
}

/// Syntax errors and duplicate keys are found by file and line, unknown keys by file and key.
#[test]
fn a_message_about_a_file_names_the_file_and_the_line() {
    let sandbox = Sandbox::new();
    let file = "configs/stage/sft.toml";
    let text = fs::read_to_string(sandbox.path(file)).unwrap();
    let line = text.lines().position(|line| line == "eps = 1e-8").unwrap() + 2;
    let at = format!("line {line}");
    for (to, words) in [
        ("eps = 1e-8\neps = 1e-8", vec![file, at.as_str(), "duplicate key"]),
        ("eps = 1e-8\nthis is no TOML", vec![file, at.as_str()]),
        ("eps = 1e-8\nepsilon = 1e-8", vec![file, "epsilon"]),
    ] {
        fs::write(sandbox.path(file), text.replacen("eps = 1e-8", to, 1)).unwrap();
        sandbox.refuses(2, "stage-sft", &args_of("sft"), &words);
    }
    fs::write(sandbox.path(file), b"dir = \"\xff\"").unwrap();
    sandbox.refuses(2, "stage-sft", &args_of("sft"), &[file, "UTF-8"]);
    fs::remove_file(sandbox.path(file)).unwrap();
    sandbox.refuses(2, "stage-sft", &args_of("sft"), &[file, "No such file"]);
}

#[test]
fn negative_infinite_and_missing_learning_rates_are_refused() {
    for stage in STAGES {
        let sandbox = Sandbox::new();
        for lr in ["-1e-3", "0.0", "inf", "-inf", "nan", "1e999"] {
            let args = args_with(stage, &["--set", &format!("train.lr={lr}")]);
            // What no f64 can hold is not even a number to the parser.
            let expected = if lr == "1e999" { "expected f64" } else { "above 0" };
            sandbox.refuses(2, &format!("stage-{stage}"), &args, &["key `train.lr`", expected, "correct the file"]);
            assert!(!sandbox.run_path(stage).exists());
        }
    }
}

#[test]
fn keys_of_one_stage_are_checked_like_those_of_all() {
    for (stage, set, words) in [
        ("pretrain", "phase=[]", ["phase", "at least one"]),
        ("pretrain", "phase=[{seq_len = 32, until_step = 31}]", ["phase.until_step", "train.max_steps = 30, got 31"]),
        ("pretrain", "train.decay_steps=0", ["train.decay_steps", "wsd"]),
        ("pretrain", "z_loss=-1.0", ["z_loss", "at least 0"]),
        ("pretrain", "train.schedule=cosinus", ["train.schedule", "cosinus"]),
        ("sft", "seq_len=250", ["train.tokens_per_micro_batch", "multiple of the row length 250"]),
        ("sft", "eval_batch=0", ["eval_batch", "at least 1"]),
        ("dpo", "beta=0.0", ["beta", "0"]),
        ("dpo", "loss.kind=hinges", ["loss", "hinges"]),
        ("lora", "adapter.r=0", ["r", "0"]),
        ("lora", "adapter.dropout=1.5", ["dropout", "1.5"]),
        ("lora", "domain_share=0.0", ["domain_share", "(0, 1]"]),
        ("lora", "adapters.r=2", ["adapters", "unknown"]),
        ("lora", "seq_len", ["--set seq_len", "key=value"]),
    ] {
        let sandbox = Sandbox::new();
        sandbox.refuses(2, &format!("stage-{stage}"), &args_with(stage, &["--set", set]), &words);
    }
}

/// An adapter that is attached nowhere trains nothing; that is found before the first step.
#[test]
fn an_adapter_target_that_matches_nothing_is_refused() {
    let sandbox = Sandbox::with(inputs_of("lora"));
    let args = args_with("lora", &["--set", "adapter.targets=[\"query_proj\"]"]);
    sandbox.refuses(2, "stage-lora", &args, &["query_proj", "matches nothing", "q_proj"]);
}

#[test]
fn configurations_of_the_data_and_of_the_gates_are_refused_by_key_and_line() {
    let sandbox = Sandbox::new();
    let out = format!("{RUN}/text");
    for (from, to, words) in [
        ("quality = false", "qualities = false", ["configs/text.toml", "line 7", "qualities"]),
        ("quality = false", "quality = false\nquality = true", ["configs/text.toml", "line 8", "duplicate key"]),
        ("split = \"train\"", "split = \"training\"", ["configs/text.toml", "line 6", "training"]),
    ] {
        let text = fs::read_to_string(sandbox.path("configs/text.toml")).unwrap();
        sandbox.edit("configs/text.toml", from, to);
        sandbox.refuses(2, "data-pipeline", &["ingest", "--config", "configs/text.toml", "--out", &out], &words);
        fs::write(sandbox.path("configs/text.toml"), text).unwrap();
    }
    let sandbox = Sandbox::with(&["sft", "evals"]);
    let (model, report, out) =
        (format!("{RUN}/sft/final"), format!("{RUN}/evals/eval-sft.json"), format!("{RUN}/evals/new.json"));
    sandbox.edit("configs/suite.toml", "seed = 1", "seeds = 1");
    let eval = ["eval", "--model", &model, "--suite", "configs/suite.toml", "--data", RUN, "--out", &out];
    sandbox.refuses(2, "gates", &eval, &["configs/suite.toml", "seeds"]);
    let check = [
        "check",
        "--policy",
        "configs/policy.toml",
        "--transition",
        "sft-to-dpo",
        "--model",
        &model,
        "--eval",
        &report,
    ];
    // A threshold without its operator would have to guess what is better, as defect S2 did.
    sandbox.edit("configs/policy.toml", "op = \">=\"\n", "");
    sandbox.refuses(2, "gates", &check, &["configs/policy.toml", "op"]);
}

#[test]
fn wrong_usage_is_exit_code_2_and_a_missing_device_4() {
    let sandbox = Sandbox::with(inputs_of("sft"));
    sandbox.refuses(2, "stage-sft", &["--configs", "x"], &["--configs"]);
    sandbox.refuses(2, "stage-sft", &[""; 0], &["--config"]);
    sandbox.refuses(2, "stage-sft", &args_with("sft", &["--lr", "1e-3"]), &["--lr"]);
    let mut args = args_of("sft");
    let at = args.iter().position(|arg| arg == "cpu").unwrap();
    args[at] = "gpu".into();
    sandbox.refuses(2, "stage-sft", &args, &["gpu", "cuda:N"]);
    args[at] = "cuda:0".into();
    sandbox.refuses(4, "stage-sft", &args, &["cuda"]);
    sandbox.run("xtask", &["pipelines"]).says(2, &["unknown command `pipelines`"]);
}
