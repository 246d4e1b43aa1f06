//! `cargo xtask pipeline`: what it runs, what it skips, where it starts and ends.

use std::fs;

use serde_json::Value;

use crate::line::{self, STAGES, assert_same_results};
use crate::sandbox::{RUN, Sandbox};

/// Names of the steps with what became of them.
fn states(sandbox: &Sandbox) -> Vec<(String, String)> {
    let summary = sandbox.json(&format!("{RUN}/summary.json"));
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    summary["steps"].as_array().unwrap().iter().map(|row| (text(row, "step"), text(row, "status"))).collect()
}

/// Names of the steps in this state.
fn steps(sandbox: &Sandbox, state: &str) -> Vec<String> {
    states(sandbox).into_iter().filter(|(_, found)| found == state).map(|(name, _)| name).collect()
}

fn is_complete(sandbox: &Sandbox) -> bool {
    sandbox.json(&format!("{RUN}/summary.json"))["complete"].as_bool().unwrap()
}

/// No terminal, no answer, no service: the standard input of every program of these tests is empty.
#[test]
fn s29_the_whole_line_runs_without_a_question_and_every_gate_says_yes() {
    let line = line::finished();
    assert!(is_complete(line));
    assert!(states(line).iter().all(|(_, state)| state == "ran"), "{:?}", states(line));
    let summary = line.json(&format!("{RUN}/summary.json"));
    let receipts: Vec<&Value> =
        summary["steps"].as_array().unwrap().iter().filter(|row| !row["passed"].is_null()).collect();
    assert_eq!(receipts.len(), STAGES.len());
    assert!(receipts.iter().all(|row| row["passed"] == true), "{receipts:?}");
    let table = fs::read_to_string(line.run_path("summary.md")).unwrap();
    assert!(table.contains("# Pipeline tiny: complete") && table.contains("eval-lora"), "{table}");
}

/// One process, three lengths, as many tokens a step in each of them, and no stop at a boundary.
#[test]
fn s10_the_length_curriculum_runs_to_its_end_in_one_process() {
    let text = fs::read_to_string(line::finished().run_path("pretrain/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (evaluations, steps): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line.get("eval").is_some());
    let lengths: Vec<u64> = steps.iter().map(|line| line["seq_len"].as_u64().unwrap()).collect();
    let want: Vec<u64> = [32, 64, 128].into_iter().flat_map(|seq_len| [seq_len; 10]).collect();
    assert_eq!(lengths, want);
    assert!(steps.iter().all(|line| line["tokens"] == 512), "{text}");
    let at: Vec<u64> = evaluations.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(at, [12, 24, 30]);
    let bits = |line: &Value| line["eval"]["bits_per_byte"].as_f64().unwrap();
    assert!(bits(evaluations[2]) < bits(evaluations[0]), "it has learnt nothing: {text}");
}

#[test]
fn a_second_run_skips_every_step_and_changes_nothing() {
    let sandbox = Sandbox::with(&[""]);
    let before = sandbox.list("");
    sandbox.pipeline(&[]).ok();
    assert!(states(&sandbox).iter().all(|(_, state)| state == "unchanged"), "{:?}", states(&sandbox));
    assert!(is_complete(&sandbox));
    let mut after = sandbox.list("");
    // The table now says "unchanged", everything else is untouched.
    for name in ["summary.json", "summary.md", "pipeline.lock"] {
        let name = format!("{RUN}/{name}");
        after.insert(name.clone(), before[&name].clone());
    }
    assert_eq!(before, after);
}

#[test]
fn an_edited_input_redoes_only_what_depends_on_it_and_keeps_the_old() {
    let sandbox = Sandbox::with(&[""]);
    let old = sandbox.json(&format!("{RUN}/lora/stage.json"));
    sandbox.edit("configs/stage/lora.toml", "lr = 3e-3", "lr = 4e-3");
    sandbox.pipeline(&[]).ok();
    assert_eq!(steps(&sandbox, "ran"), ["lora", "eval-lora", "gate-lora-to-release"]);
    assert_eq!(sandbox.json(&format!("{RUN}/lora/stage.json"))["config"]["train"]["lr"], 4e-3);
    assert_eq!(sandbox.json(&format!("{RUN}/replaced/lora.1/stage.json")), old);

    // Only the last run of a step is known, so the old configuration is run again too, and gives the old bytes.
    sandbox.edit("configs/stage/lora.toml", "lr = 4e-3", "lr = 3e-3");
    sandbox.pipeline(&[]).ok();
    assert_eq!(steps(&sandbox, "ran"), ["lora", "eval-lora", "gate-lora-to-release"]);
    assert_same_results(&sandbox, "lora", "back to the old configuration");
}

#[test]
fn from_and_until_choose_a_range_and_from_wants_what_is_before_it_up_to_date() {
    let sandbox = Sandbox::new();
    sandbox.pipeline(&["--until", "tokenizer"]).ok();
    assert_eq!(steps(&sandbox, "ran"), ["ingest-text", "ingest-domain", "derive", "tokenizer"]);
    assert!(!is_complete(&sandbox));
    assert!(!sandbox.run_path("rows").exists() && !sandbox.run_path("pretrain").exists());

    // What stands before `--from` has not run, so nothing of it may be trusted.
    sandbox.pipeline(&["--from", "init"]).says(2, &["step `pack-text-train`", "not up to date", "--from"]);
    assert!(!sandbox.run_path("init").exists());
    sandbox.pipeline(&["--from", "tokenizer", "--until", "derive"]).says(2, &["`--from` comes after `--until`"]);
    sandbox.pipeline(&["--from", "tokeniser"]).says(2, &["no step `tokeniser`", "ingest-text, ingest-domain"]);

    sandbox.pipeline(&["--from", "tokenizer", "--until", "tokenizer"]).ok();
    assert_eq!(steps(&sandbox, "ran"), ["tokenizer"]);
    // Made again from the same text it is the same, byte for byte.
    assert_eq!(sandbox.list(&format!("{RUN}/tokenizer")), line::finished().list(&format!("{RUN}/tokenizer")));
    assert_eq!(sandbox.list(&format!("{RUN}/replaced/tokenizer.1")), sandbox.list(&format!("{RUN}/tokenizer")));
}

#[test]
fn a_step_asked_for_with_from_runs_although_nothing_changed_and_gives_the_same() {
    let sandbox = Sandbox::with(&[""]);
    sandbox.pipeline(&["--from", "dpo", "--until", "eval-dpo"]).ok();
    assert_eq!(steps(&sandbox, "ran"), ["dpo", "eval-dpo"]);
    assert_same_results(&sandbox, "dpo", "run again with --from");
    let report = format!("{RUN}/evals/eval-dpo.json");
    assert_eq!(sandbox.json(&report), line::finished().json(&report));
}

#[test]
fn a_changed_output_is_made_again() {
    let sandbox = Sandbox::with(&[""]);
    let report = sandbox.run_path("evals/eval-lora.json");
    fs::write(&report, fs::read_to_string(&report).unwrap().replace("answers.accuracy", "answers.accuracies")).unwrap();
    sandbox.pipeline(&[]).ok();
    assert_eq!(steps(&sandbox, "ran"), ["eval-lora"], "its report is as before, so the gate behind it stays");
    let report = format!("{RUN}/evals/eval-lora.json");
    assert_eq!(sandbox.json(&report), line::finished().json(&report));
}

#[test]
fn a_pipeline_that_cannot_run_says_why_and_starts_nothing() {
    let sandbox = Sandbox::new();
    let original = fs::read_to_string(sandbox.path("configs/pipeline.toml")).unwrap();
    for (from, to, words) in [
        // Defect S25: the name that a step looks for is not the one that the step before it makes.
        ("\"{run}/init\", \"{run}/rows/text-train\"", "\"{run}/initial\", \"{run}/rows/text-train\"", "not an output"),
        ("resume_args =", "resume_arguments =", "unknown field `resume_arguments`"),
        ("version = 1", "version = 1\nversion = 1", "duplicate key"),
        ("program = \"model-core\"", "program = \"model-score\"", "no program `model-score`"),
        ("inputs = [\"configs/text.toml\"", "inputs = [\"configs/texts.toml\"", "configs/texts.toml"),
    ] {
        assert!(original.contains(from), "{from}");
        fs::write(sandbox.path("configs/pipeline.toml"), original.replacen(from, to, 1)).unwrap();
        let ended = sandbox.pipeline(&[]);
        let code = if words.starts_with("no program") { 4 } else { 2 };
        ended.says(code, &[words]);
        assert_eq!(sandbox.list(RUN).len(), 0, "{to}");
    }
    fs::write(sandbox.path("configs/pipeline.toml"), original).unwrap();
    sandbox.pipeline(&["--config", "configs/none.toml"]).says(2, &["--config", "twice"]);
    sandbox.pipeline(&["--run", "../tiny"]).says(2, &["a run's name must be letters"]);
    sandbox.pipeline(&["--resumes"]).says(2, &["unknown argument `--resumes`"]);
    assert_eq!(sandbox.list(RUN).len(), 0);
}

#[test]
fn a_second_pipeline_in_the_same_run_is_refused() {
    let sandbox = Sandbox::new();
    let lock = fs::File::create(sandbox.run_path("pipeline.lock")).unwrap();
    lock.lock().unwrap();
    sandbox.pipeline(&[]).says(2, &["in use by another pipeline", RUN]);
    assert!(!sandbox.run_path("text").exists());
}
