//! The program `moe-agent harmony` as others call it: the official test cases, its pipes, its exit codes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use model_core::harmony::Json;
use serde::Deserialize;
use serde_json::{Value, json};

/// The official cases; their schemas keep the order of their keys.
#[derive(Deserialize)]
struct Fixture {
    render: Vec<BTreeMap<String, Json>>,
    parse: Vec<Value>,
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-core/tests/fixtures/harmony.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn program(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moe-agent"));
    command.arg("harmony").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that ends on bad arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn succeeds(arguments: &[&str], input: &str) -> Value {
    let output = program(arguments, input);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The message of a run that must end as bad input does.
fn fails(arguments: &[&str], input: &str) -> String {
    let output = program(arguments, input);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty() && !text.contains("panicked"), "{text}");
    text
}

const RENDER: [&str; 3] = ["render", "--input", "-"];
const PARSE: [&str; 3] = ["parse", "--input", "-"];

#[test]
fn official_cases_go_in_as_they_are() {
    let fixture = fixture();
    // Cases of different messages, kinds and switches; the library's tests have them all.
    for case in fixture.render.iter().step_by(7) {
        let text = serde_json::to_string(case).unwrap();
        let (got, want) = (succeeds(&RENDER, &text), serde_json::to_value(case).unwrap());
        assert_eq!((&got["tokens"], &got["text"]), (&want["tokens"], &want["text"]), "{}", want["name"]);
    }
    for case in &fixture.parse {
        let got = succeeds(&PARSE, &case.to_string());
        assert_eq!(got["messages"], case["messages"], "{}", case["text"]);
        let is_cut = case["text"].as_str().unwrap().ends_with("unfinished");
        assert_eq!(got["complete"], !is_cut);
        assert_eq!(got["ends"].as_array().unwrap().last().unwrap() == "cut", is_cut);
    }
}

#[test]
fn flags_choose_kind_effort_tools_and_supervision() {
    let system = json!({"role": "system", "content": [{"type": "system_content", "reasoning_effort": "Low"}]});
    let turn = |thought: &str, answer: &str| {
        json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "channel": "analysis", "content": thought},
            {"role": "assistant", "channel": "final", "content": answer},
        ])
    };
    let mut messages = vec![system];
    messages.extend(turn("t", "a").as_array().unwrap().iter().chain(turn("u", "b").as_array().unwrap()).cloned());
    let input = json!({ "messages": messages }).to_string();
    let with = |more: &[&str]| succeeds(&[&RENDER[..], more].concat(), &input);
    let text = |value: &Value| value["text"].as_str().unwrap().to_owned();

    let plain = with(&[]);
    assert!(text(&plain).starts_with("<|start|>system<|message|>Reasoning: low<|end|>"), "{plain}");
    assert!(!text(&plain).contains("t<|end|>") && text(&plain).ends_with("b<|end|>"));
    assert_eq!((&plain["n_supervised"], &plain["spans"][1]["supervised"]), (&json!(0), &Value::Null));
    assert!(text(&with(&["--drop-analysis", "false"])).contains("<|message|>t<|end|>"));

    let training = with(&["--training", "--effort", "high", "--builtin", "python"]);
    assert!(text(&training).contains("Reasoning: high\n\n# Tools\n\n## python\n\n"), "{training}");
    assert!(text(&training).contains("<|message|>t<|end|>") && text(&training).ends_with("b<|return|>"));
    let supervised = |value: &Value| -> Vec<u64> {
        let spans = value["spans"].as_array().unwrap().iter();
        spans.filter(|span| !span["supervised"].is_null()).map(|span| span["message"].as_u64().unwrap()).collect()
    };
    assert_eq!(supervised(&training), [2, 3, 5, 6]);
    assert_eq!(supervised(&with(&["--training", "--supervise", "last-turn"])), [5, 6]);
    assert_eq!(supervised(&with(&["--training", "--supervise", "3, 6"])), [3, 6]);
    assert_eq!(supervised(&with(&["--training", "--supervise", "none"])), [0; 0]);
    assert!(text(&with(&["--completion"])).ends_with("b<|end|><|start|>assistant"));
    assert!(text(&with(&["--completion", "user"])).ends_with("b<|end|><|start|>user"));

    // What one direction writes, the other reads.
    let back = succeeds(&PARSE, &training.to_string());
    let again = succeeds(&[&RENDER[..], &["--training"]].concat(), &back.to_string());
    assert_eq!(again["tokens"], training["tokens"]);
    assert_eq!(succeeds(&PARSE, &training["tokens"].to_string())["messages"], back["messages"]);
}

#[test]
fn files_are_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.json"), dir.path().join("out.json"));
    std::fs::write(&input, r#"{"messages": [{"role": "user", "content": "hi"}]}"#).unwrap();
    let [input, output] = [&input, &output].map(|path| path.to_str().unwrap());
    assert!(program(&["render", "--input", input, "--output", output], "").stdout.is_empty());
    let written: Value = serde_json::from_slice(&std::fs::read(output).unwrap()).unwrap();
    assert_eq!(written["text"], "<|start|>user<|message|>hi<|end|>");
    assert_eq!(succeeds(&["parse", "--input", output], "")["messages"][0]["content"][0]["text"], "hi");
    assert!(fails(&["render", "--input", "no-such-file"], "").contains("no-such-file"));
}

#[test]
fn bad_input_says_what_to_do() {
    let message = |value: Value| json!({ "messages": [value] }).to_string();
    for (value, part) in [
        (json!({"role": "root", "content": "x"}), "unknown role `root`"),
        (json!({"role": "assistant", "channel": "aside", "content": "x"}), "unknown channel `aside`"),
        (json!({"role": "user", "recipient": "functions.f", "content": "x"}), "recipient: expected none"),
        (json!({"role": "tool", "content": "x"}), "the name of the tool"),
        (
            json!({"role": "assistant", "channel": "commentary", "recipient": "functions.f",
                   "content_type": "<|constrain|>json", "content": "{"}),
            "call of functions.f: expected JSON",
        ),
        (json!({"role": "user"}), "missing field `content`"),
    ] {
        let error = fails(&RENDER, &message(value));
        assert!(error.contains(part), "{error}");
    }
    let user = message(json!({"role": "user", "content": "x"}));
    let more = |more: &[&str]| fails(&[&RENDER[..], more].concat(), &user);
    assert!(more(&["--effort", "high"]).contains("system message"));
    assert!(more(&["--effort", "extreme"]).contains("invalid value"));
    assert!(more(&["--training", "--supervise", "0"]).contains("message 0, which is from user"));
    assert!(more(&["--training", "--supervise", "some"]).contains("last-turn"));
    assert!(more(&["--training", "--completion"]).contains("cannot be used with"));
    assert!(more(&["--completion", "root"]).contains("unknown role"));
    assert!(fails(&RENDER, "[1]").contains("not usable JSON"));
    assert!(fails(&RENDER, r#"{"messages": [], "message": 1}"#).contains("unknown field `message`"));

    let tokens = succeeds(&RENDER, &user)["tokens"].as_array().unwrap().clone();
    let cut = Value::from(tokens[..tokens.len() - 1].to_vec()).to_string();
    assert!(fails(&PARSE, &cut).contains("expected <|end|>, <|call|> or <|return|> after its content"));
    assert!(fails(&PARSE, "[-1]").contains("not usable JSON"));
    assert!(fails(&PARSE, "[201088]").contains("expected <|start|>, got 201088"));
    assert!(fails(&[&PARSE[..], &["--role", "root"]].concat(), &cut).contains("unknown role"));
}
