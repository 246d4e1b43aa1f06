//! The program `eval-rust score`: exit codes and the report that a gate reads.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output};

use gates::EvalReport;
use serde_json::{Value, json};

fn judgement(task: &str, passed: bool, status: &str) -> Value {
    json!({
        "version": 2, "task": task, "task_hash": format!("hash of {task}"), "candidate": "c", "status": status,
        "passed": passed, "compiled": passed, "tests_passed": passed, "tests_expected": 1, "tests_ok": u64::from(passed),
        "tests_failed": [], "questions": 0, "answers_right": 0, "clippy_clean": passed, "clippy_findings": 0,
        "lint_attributes_added": 0, "formatted": passed, "unsafe_added": 0, "diff_lines": 3, "files_changed": 1,
        "wall_ms": 5, "cpu_ms": 5, "peak_memory_bytes": 1, "weaker": [], "seed": 1, "reason": "", "diagnostics": "",
        "error_codes": [], "lints": []
    })
}

fn write(path: &Path, lines: &[Value]) {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

fn score(dir: &Path, more: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_eval-rust"));
    program.current_dir(dir).args(["score", "--judgements", "j.jsonl", "--model", "model", "--out", "eval-agent.json"]);
    program.args(more).output().unwrap()
}

#[test]
fn s07_judgements_become_a_report_for_the_gates() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("model")).unwrap();
    for (name, text) in [("config.json", "{}"), ("model.safetensors", "w")] {
        std::fs::write(dir.join("model").join(name), text).unwrap();
    }
    let judged = |a, b| [("a", a), ("a", b), ("trap", false), ("trap", false)].map(|(t, p)| judgement(t, p, "judged"));
    write(&dir.join("j.jsonl"), &judged(true, false));
    write(&dir.join("before.jsonl"), &judged(true, true));
    std::fs::write(dir.join("impossible"), "trap\n").unwrap();
    let episode = |task: &str, sample: u64| {
        json!({ "task": task, "sample": sample, "iterations": 2, "tool_calls": 3, "tool_calls_well_formed": 3,
                "tokens": 9, "seconds": 0.1 })
    };
    write(&dir.join("e.jsonl"), &["a", "trap"].map(|task| [0, 1].map(|i| episode(task, i))).concat());
    let all = ["--k", "2", "--episodes", "e.jsonl", "--baseline", "before.jsonl", "--impossible", "impossible"];
    let got = score(dir, &all);
    assert_eq!(got.status.code(), Some(0), "{got:?}");
    let (report, _) = EvalReport::load(&dir.join("eval-agent.json")).unwrap();
    assert_eq!(report.model_hash, gates::artifact::model_hash(&dir.join("model")).unwrap());
    let names: Vec<&str> = report.metrics.iter().map(|metric| metric.name.as_str()).collect();
    let want = [
        "cargo_check_pass_rate",
        "cargo_test_pass_rate",
        "clippy_clean_rate",
        "fmt_clean_rate",
        "pass_at_1",
        "pass_at_2",
        "hallucinated_api_rate",
        "diff_lines_median",
        "judge_error_rate",
        "iterations_median",
        "tool_call_format_accuracy",
        "regressions",
        "cheating_rate",
    ];
    assert_eq!(names, want);
    assert_eq!((report.metric("pass_at_1").unwrap().value, report.metric("pass_at_2").unwrap().value), (0.5, 1.0));
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for (more, code, want) in [
        (&["--k", "3"][..], 2, "pass@3 needs at least 3 samples"),
        (&["--model", "gone"], 2, "cannot be used multiple times"),
        (&["--tasks", "model"], 2, "no folder with a task.toml"),
        (&["--max-judge-errors", "2"], 2, "a share"),
    ] {
        let got = score(dir, more);
        assert!(got.status.code() == Some(code) && said(&got).contains(want), "{more:?}: {got:?}");
    }
    // An error of the judge counts as nothing, and there are too many here: a safety rule.
    let mut broken = judged(true, true).to_vec();
    broken[0] = judgement("a", false, "error");
    write(&dir.join("j.jsonl"), &broken);
    std::fs::remove_file(dir.join("eval-agent.json")).unwrap();
    let got = score(dir, &[]);
    assert!(got.status.code() == Some(3) && said(&got).contains("1 of 4 judgements are errors"), "{got:?}");
    assert!(!dir.join("eval-agent.json").exists());
    assert_eq!(score(dir, &["--max-judge-errors", "0.5"]).status.code(), Some(0));
}
