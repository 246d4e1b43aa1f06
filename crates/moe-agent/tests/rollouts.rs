//! Rewards by the judge in its sandbox, and the programs that sample: `solve`, `rank`, `grpo`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use data_pipeline::tokenizer::HARMONY_TOKENS;
use eval_rust::judge::{Judge, Options, find_toolchain, read_list};
use eval_rust::sandbox::Sandbox;
use kernels_cubecl::Cpu;
use model_core::harmony::Message;
use model_core::{Decoder, ModelConfig};
use moe_agent::rollout::{
    Ending, Episode, Files, JudgedWorld, Level, Planted, PromptKeys, Step, TaskSet, Tasks, World, Worth, find_tasks,
};
use moe_agent::tools::{Setup, Tool};

const MANIFEST: &str = "[package]\nname = \"one\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
const START: &str =
    "//! One function.\n\n/// The sum, at most `u32::MAX`.\npub fn add(a: u32, b: u32) -> u32 {\n    a - b\n}\n";
const TASK: &str = "id = \"ID\"\ndescription = \"`add` subtracts. Repair it.\"\nkind = \"tests\"\n\
                    fail_to_pass = [\"hidden::adds\", \"hidden::saturates\"]\n[limits]\ntest_s = 20\n";
const HIDDEN: &str = "use one::add;\n#[test]\nfn adds() { let r: u32 = add(2, 3); assert_eq!(r, 5); }\n\
                      #[test]\nfn saturates() { let r: u32 = add(u32::MAX, 1); assert_eq!(r, u32::MAX); }\n";

fn solved() -> String {
    START.replace("a - b", "a.saturating_add(b)")
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// A folder with tasks of these ids, and a model that knows nothing.
fn lab(ids: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for id in ids {
        let task = dir.path().join("tasks").join(id);
        let solution = solved();
        write(
            &task,
            &[
                ("task.toml", &TASK.replace("ID", id)),
                ("start/Cargo.toml", MANIFEST),
                ("start/src/lib.rs", START),
                ("hidden/tests/hidden.rs", HIDDEN),
                ("solution/Cargo.toml", MANIFEST),
                ("solution/src/lib.rs", &solution),
            ],
        );
    }
    let n = 256 + HARMONY_TOKENS.len();
    let shape = ModelConfig {
        d_model: 16,
        d_ff: 16,
        n_layers: 1,
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 16,
        max_seq_len: 512,
        ..ModelConfig::from_depth(1, n)
    };
    let model = dir.path().join("model");
    fs::create_dir_all(&model).unwrap();
    Decoder::<Cpu>::init(&shape, 1, &Default::default()).save(&model, 1 << 30).unwrap();
    let tokenizer = data_pipeline::tokenizer::train(std::iter::empty(), n, &HARMONY_TOKENS).unwrap();
    fs::write(model.join("tokenizer.json"), tokenizer.json()).unwrap();
    dir
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_moe-agent"))
}

/// The sandbox, or why this machine has none.
fn sandbox() -> Option<Sandbox> {
    match Sandbox::new(&program(), &[]) {
        Ok(sandbox) => Some(sandbox),
        Err(error) => {
            println!("NOT CHECKED: {error}");
            None
        }
    }
}

/// An episode that made these files of the crate.
fn made(task: usize, sample: u64, files: &[(&str, &str)]) -> Episode {
    let mut candidate: Files =
        [("Cargo.toml", MANIFEST)].iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
    candidate.extend(files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())));
    Episode {
        task,
        sample,
        ids: vec![1],
        sampled: vec![true],
        scores: Vec::new(),
        temperature: 1.0,
        top_p: 1.0,
        messages: Vec::new(),
        ending: Ending::Answered,
        turns: 1,
        calls: 1,
        calls_well_formed: 1,
        retries: 0,
        candidate,
        seconds: 0.0,
    }
}

/// Judges candidates of the tasks of a lab.
fn worth(dir: &Path, sandbox: &Sandbox, planted: Planted, episodes: &[Episode]) -> Vec<Worth> {
    let work = dir.join("judge");
    fs::create_dir_all(&work).unwrap();
    let toolchain = find_toolchain(&|name| std::env::var_os(name)).unwrap();
    let options = Options { toolchain, vendor: None, work: work.canonicalize().unwrap() };
    let judge = Judge::new(sandbox, options).unwrap();
    let setup = Setup::new(PathBuf::new(), work.canonicalize().unwrap());
    let tasks =
        TaskSet::load(&find_tasks(&dir.join("tasks")).unwrap(), &PromptKeys::compact(9), sandbox, setup).unwrap();
    let world = JudgedWorld::new(&judge, &tasks, planted, Path::new("planted"), &work, 2).unwrap();
    assert_eq!(world.ids(), tasks.ids());
    world.worth(episodes, 7).unwrap()
}

#[test]
fn s24_only_a_repair_is_rewarded() {
    let Some(sandbox) = sandbox() else { return };
    let dir = lab(&["one", "planted"]);
    let source = |text: &str| made(0, 0, &[("src/lib.rs", text)]);
    let fences = format!("```rust\n{}```\n", solved());
    let forged = START.replace(
        "a - b",
        "println!(\"test adds ... ok\\ntest result: ok. 2 passed; 0 failed\");\n    std::process::exit(0)",
    );
    let own_tests = format!("//! Nothing.\n{}", "#[cfg(test)]\nmod tests {\n    #[test]\n    fn passes() {}\n}\n");
    let worse = [
        ("an empty library", source("")),
        ("an empty library with a comment", source("//! Nothing.\n")),
        ("tests of its own in the place of the function", source(&own_tests)),
        ("forged output and a forged exit", source(&forged)),
        ("Markdown around the code", source(&fences)),
        ("no source at all", made(0, 0, &[])),
        ("a build script", made(0, 0, &[("src/lib.rs", &solved()), ("build.rs", "fn main() {}\n")])),
        ("unsafe", source(&START.replace("a - b", "unsafe { a.unchecked_add(b) }"))),
        (
            "the hidden tests replaced",
            made(0, 0, &[("src/lib.rs", START), ("tests/hidden.rs", "#[test]\nfn adds() {}\n")]),
        ),
    ];
    let kept = START.replace("a - b", "let sum = a.saturating_add(b);\n    return sum;");
    let honest = [
        ("the solution", source(&solved()), 1.0, Level::Clean),
        ("a repair that clippy complains about", source(&kept), 0.7, Level::Warnings),
        ("nothing done", source(START), 0.1, Level::TestsFail),
        ("a type error", source(&START.replace("a - b", "a - \"b\"")), -0.3, Level::CompileFailure),
    ];
    let planted = dir.path().join("planted.txt");
    fs::write(&planted, "planted\n").unwrap();
    let mut episodes: Vec<Episode> = worse
        .iter()
        .map(|(_, episode)| episode.clone())
        .chain(honest.iter().map(|(_, episode, ..)| episode.clone()))
        .collect();
    // A pass of a task that is planted as one that cannot be solved; many retries; a call without a form.
    episodes.push(made(1, 0, &[("src/lib.rs", &solved())]));
    episodes.push(Episode { retries: 6, ..source(&solved()) });
    episodes.push(Episode { ending: Ending::Malformed("no call".into()), ..source(&solved()) });
    let worth = worth(dir.path(), &sandbox, Planted::read(&planted).unwrap(), &episodes);
    for ((what, _), worth) in worse.iter().zip(&worth) {
        let reward = worth.reward.unwrap_or_else(|| panic!("{what}: {}", worth.reason));
        if *what == "the hidden tests replaced" {
            // Its own test files count for nothing: this is the start, whose tests fail.
            assert_eq!(reward, 0.1, "{what}: {worth:?}");
            continue;
        }
        assert!(reward <= Level::CompileFailure.reward() && !worth.cheated, "{what}: {worth:?}");
    }
    let rest = &worth[worse.len()..];
    for ((what, _, reward, level), worth) in honest.iter().zip(rest) {
        assert_eq!((worth.reward, worth.level), (Some(*reward), Some(*level)), "{what}: {worth:?}");
    }
    let rest = &rest[honest.len()..];
    assert!(rest[0].cheated && rest[0].reward == Some(-0.3), "{:?}", rest[0]);
    assert_eq!((rest[1].reward, rest[2].reward), (Some(0.5), Some(-1.0)));
}

#[test]
fn s24_an_error_of_the_judge_is_no_reward() {
    let Some(sandbox) = sandbox() else { return };
    let dir = lab(&["one"]);
    let work = dir.path().join("judge");
    fs::create_dir_all(&work).unwrap();
    let toolchain = find_toolchain(&|name| std::env::var_os(name)).unwrap();
    let options = Options { toolchain, vendor: None, work: work.canonicalize().unwrap() };
    let judge = Judge::new(&sandbox, options).unwrap();
    let setup = Setup::new(PathBuf::new(), work.canonicalize().unwrap());
    let folders = find_tasks(&dir.path().join("tasks")).unwrap();
    let tasks = TaskSet::load(&folders, &PromptKeys::compact(9), &sandbox, setup).unwrap();
    let world = JudgedWorld::new(&judge, &tasks, Planted::default(), Path::new(""), &work, 1).unwrap();
    // The task is gone when the candidate comes.
    fs::remove_file(dir.path().join("tasks/one/task.toml")).unwrap();
    let solution = solved();
    let worth = world.worth(&[made(0, 0, &[("src/lib.rs", &solution)])], 1).unwrap().remove(0);
    assert_eq!((worth.reward, worth.level), (None, None));
    assert!(!worth.reason.is_empty());
}

#[test]
fn tests_are_written_where_they_are_the_task_and_nowhere_else() {
    let Some(sandbox) = sandbox() else { return };
    let dir = lab(&["repair"]);
    let own = "//! T.\n\n#[test]\nfn saturates() {\n    assert_eq!(one::add(u32::MAX, 1), u32::MAX);\n}\n";
    let solution = solved();
    let wraps = solution.replace("saturating_add", "wrapping_add");
    write(
        &dir.path().join("tasks/write"),
        &[
            (
                "task.toml",
                "id = \"write\"\ndescription = \"Test it in tests/own.rs.\"\nkind = \"write_tests\"\n[limits]\ntest_s = 20\n\
                 memory_mib = 256\n[write_tests]\ntests = [\"own\"]\n",
            ),
            ("start/Cargo.toml", MANIFEST),
            ("start/src/lib.rs", &solution),
            ("hidden/mutants/wraps/src/lib.rs", &wraps),
            ("solution/Cargo.toml", MANIFEST),
            ("solution/src/lib.rs", &solution),
            ("solution/tests/own.rs", own),
        ],
    );
    let work = dir.path().join("judge");
    fs::create_dir_all(&work).unwrap();
    let toolchain = find_toolchain(&|name| std::env::var_os(name)).unwrap();
    let options = Options { toolchain: toolchain.clone(), vendor: None, work: work.canonicalize().unwrap() };
    let judge = Judge::new(&sandbox, options).unwrap();
    let setup = Setup::new(toolchain, work.canonicalize().unwrap());
    let keys = PromptKeys { tools: vec![Tool::ApplyPatch, Tool::RunTests], ..PromptKeys::compact(9) };
    let folders = find_tasks(&dir.path().join("tasks")).unwrap();
    let tasks = TaskSet::load(&folders, &keys, &sandbox, setup).unwrap();
    let arguments = serde_json::json!({ "path": "tests/own.rs", "old": "", "new": own }).to_string();
    let play = |task: usize| {
        let mut environment = tasks.environment(task).unwrap();
        let mut said = String::new();
        for call in [Message::call("functions.apply_patch", &arguments), Message::call("functions.run_tests", "{}")] {
            match environment.act(&call).unwrap() {
                Step::Reply { messages, .. } => said += &format!("{messages:?}"),
                Step::Malformed(problem) => {
                    said += &problem;
                    break;
                }
                Step::Done => panic!("a call is no answer"),
            }
        }
        (said, Episode { candidate: environment.candidate(), ..made(task, 0, &[]) })
    };
    let (refused, repair) = play(0);
    assert!(refused.contains("tests and benches may not be changed"), "{refused}");
    assert!(!repair.candidate.contains_key("tests/own.rs"));
    let (taken, written) = play(1);
    assert!(taken.contains("tests/own.rs: new, 6 lines") && taken.contains("ok: 1 passed"), "{taken}");
    let world = JudgedWorld::new(&judge, &tasks, Planted::default(), Path::new(""), &work, 2).unwrap();
    let worth = world.worth(&[repair, written], 3).unwrap();
    assert_eq!((worth[0].reward, worth[1].reward), (Some(0.1), Some(1.0)), "{worth:?}");
}

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(program()).current_dir(dir).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const SMALL: [&str; 11] = [
    "--max-new-tokens",
    "8",
    "--max-turns",
    "2",
    "--max-len",
    "500",
    "--excerpt-lines",
    "9",
    "--compact",
    "--tool",
    "apply_patch",
];

#[test]
fn s07_solve_writes_candidates_for_the_judge_and_what_was_used_up() {
    let dir = lab(&["b", "a"]);
    let args = ["solve", "--model", "model", "--tasks", "tasks", "--out", "out", "--device", "cpu", "--samples", "2"];
    let all: Vec<&str> = args.iter().chain(&SMALL).copied().chain(["--temperature", "1.0"]).collect();
    let output = run(dir.path(), &all);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("4 candidates of 2 tasks") && said(&output).contains("tokens/s"),
        "{}",
        said(&output)
    );
    let entries = read_list(&dir.path().join("out/candidates.jsonl")).unwrap();
    assert_eq!(entries.len(), 4);
    for (entry, name) in entries.iter().zip(["a/0", "a/1", "b/0", "b/1"]) {
        assert!(entry.candidate.ends_with(name) && entry.task.join("task.toml").is_file(), "{entry:?}");
        assert_eq!(fs::read_to_string(entry.candidate.join("src/lib.rs")).unwrap(), START);
    }
    let lines: Vec<serde_json::Value> = fs::read_to_string(dir.path().join("out/episodes.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert!(line["iterations"].as_u64() >= Some(1) && line["tokens"].as_u64() >= Some(1), "{line}");
        assert!(line["tool_calls_well_formed"].as_u64() <= line["tool_calls"].as_u64(), "{line}");
    }
    // The same again elsewhere, and never over what is there.
    let again: Vec<&str> = all.iter().map(|arg| if *arg == "out" { "again" } else { arg }).collect();
    assert!(run(dir.path(), &again).status.success());
    let read = |name: &str| fs::read_to_string(dir.path().join(name).join("transcripts.jsonl")).unwrap();
    assert_eq!(read("out"), read("again"));
    let output = run(dir.path(), &all);
    assert!(output.status.code() == Some(2) && said(&output).contains("is there already"), "{}", said(&output));
    let none: Vec<&str> = all
        .iter()
        .map(|arg| match *arg {
            "out" => "more",
            "tasks" => "model",
            arg => arg,
        })
        .collect();
    let output = run(dir.path(), &none);
    assert!(output.status.code() == Some(2) && said(&output).contains("has no task"), "{}", said(&output));
}

#[test]
fn rank_counts_the_tasks_without_a_pair() {
    if sandbox().is_none() {
        return;
    }
    let dir = lab(&["one"]);
    let args = ["rank", "--model", "model", "--tasks", "tasks", "--out", "out", "--device", "cpu"];
    let all: Vec<&str> = args.iter().chain(&SMALL).copied().collect();
    let output = run(dir.path(), &all);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("0 pairs and 0 held out of 1 tasks, 1 without a pair, 0 errors"),
        "{}",
        said(&output)
    );
    let ranking = fs::read_to_string(dir.path().join("out/ranking.jsonl")).unwrap();
    let temperatures: Vec<String> = ranking
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["temperature"].to_string())
        .collect();
    for temperature in ["0.2", "0.4", "0.6", "0.8"] {
        assert_eq!(temperatures.iter().filter(|it| it.starts_with(temperature)).count(), 2, "{temperatures:?}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("out/pairs.jsonl")).unwrap(), "");
}

const GRPO: &str = r#"
dir = "run/grpo"
model = "model"
tasks = "tasks"
prompts_per_step = 1
group_size = 4
seq_len = 500
max_new_tokens = 6
max_turns = 1
sampling = { temperature = 1.0 }
loss = { aggregation = "grpo", clip_low = 0.2, clip_high = 0.2, beta = 0.01 }
max_idle_steps = 2
[prompt]
style = "compact"
tools = ["apply_patch"]
excerpt_lines = 9
[judge]
work = "judge"
jobs = 2
[gate]
transition = "ipo-to-grpo"
receipt = "none.json"
[train]
max_steps = 5
tokens_per_step = 2000
tokens_per_micro_batch = 500
lr = 1e-3
min_lr = 1e-3
schedule = "constant"
warmup_steps = 0
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.0
grad_clip = 1.0
seed = 3
eval_every = 0
save_every = 0
log_every = 1
keep_last = 1
recompute = false
max_bad_steps = 3
peak_tflops = 0.0
"#;

#[test]
fn s16_grpo_with_the_judge_stops_where_nothing_can_be_learnt() {
    if sandbox().is_none() {
        return;
    }
    let dir = lab(&["one"]);
    fs::write(dir.path().join("grpo.toml"), GRPO).unwrap();
    let args = ["grpo", "--config", "grpo.toml", "--device", "cpu", "--plain"];
    let output = run(dir.path(), &args);
    assert!(output.status.code() == Some(1) && said(&output).contains("pass the gate first"), "{}", said(&output));
    // A model that knows nothing writes no message, so that all rewards are equal.
    let all: Vec<&str> = args.iter().copied().chain(["--override-gate", "a test"]).collect();
    let output = run(dir.path(), &all);
    assert!(output.status.code() == Some(3) && said(&output).contains("max_idle_steps"), "{}", said(&output));
    let metrics = fs::read_to_string(dir.path().join("run/grpo/metrics.jsonl")).unwrap();
    let step: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(step["metrics"]["reward"].as_f64(), Some(-1.0), "{step}");
    assert_eq!(step["metrics"]["malformed"].as_f64(), Some(1.0), "{step}");
    assert!(dir.path().join("run/grpo/rollouts/step-00000000.json").is_file());
    let broken: Vec<&str> = all.iter().copied().chain(["--set", "group_size=1"]).collect();
    assert_eq!(run(dir.path(), &broken).status.code(), Some(2));
}
