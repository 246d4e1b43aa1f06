//! Gates between stages: no receipt, no start; a way round is possible and leaves a trace.

use std::fs;

use gates::Receipt;
use serde_json::Value;

use crate::line::{self, args_of, args_with, inputs_of};
use crate::sandbox::{RUN, Sandbox};

/// The receipt that fine-tuning asks for.
const RECEIPT: &str = "gates/gate-pretrain-to-sft.json";

/// The inputs of fine-tuning, with its receipt changed.
fn with_receipt(change: impl FnOnce(&Sandbox)) -> Sandbox {
    let sandbox = Sandbox::with(inputs_of("sft"));
    change(&sandbox);
    sandbox
}

fn receipt_path() -> String {
    format!("{RUN}/{RECEIPT}")
}

#[test]
fn a_stage_refuses_without_a_receipt_or_with_one_that_was_edited() {
    let missing = with_receipt(|sandbox| fs::remove_file(sandbox.path(&receipt_path())).unwrap());
    let edited = with_receipt(|sandbox| sandbox.edit(&receipt_path(), "\"min_n\": 10", "\"min_n\": 11"));
    let torn = with_receipt(|sandbox| {
        let text = fs::read_to_string(sandbox.path(&receipt_path())).unwrap();
        fs::write(sandbox.path(&receipt_path()), &text[..text.len() / 2]).unwrap();
    });
    for sandbox in [missing, edited, torn] {
        let words = [RECEIPT, "pretrain-to-sft", "--override-gate REASON", "run `gates eval`"];
        sandbox.refuses(1, "stage-sft", &args_of("sft"), &words);
        assert!(!sandbox.run_path("sft").exists());
    }
}

/// Defect S4: a result of another model, or of the stage before, opened the gate.
#[test]
fn s04_stale_receipts_of_another_model_or_transition_open_no_gate() {
    let other_model = with_receipt(|sandbox| {
        // The model goes on training a little, or is exchanged: the receipt is still that of the old one.
        let weights = sandbox.run_path("pretrain/final/model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
    });
    other_model.refuses(1, "stage-sft", &args_of("sft"), &[RECEIPT, "is for the model", "this model is"]);

    let other_transition = with_receipt(|sandbox| {
        fs::copy(sandbox.run_path("gates/gate-sft-to-dpo.json"), sandbox.path(&receipt_path())).unwrap();
    });
    other_transition.refuses(1, "stage-sft", &args_of("sft"), &["is for the transition `sft-to-dpo`"]);
}

/// The same for the measurement behind the receipt.
#[test]
fn s04_stale_reports_pass_no_check() {
    let sandbox = Sandbox::with(&["sft", "evals"]);
    let model = format!("{RUN}/sft/final");
    let evals = |name: &str| format!("{RUN}/evals/eval-{name}.json");
    let (stale, fresh, out) = (evals("pretrain"), evals("sft"), format!("{RUN}/gate-new.json"));
    let check = |report: &str| {
        let args = [
            "check",
            "--policy",
            "configs/policy.toml",
            "--transition",
            "sft-to-dpo",
            "--model",
            &model,
            "--eval",
            report,
            "--baseline",
            &stale,
            "--out",
            &out,
        ];
        sandbox.run("gates", &args)
    };
    let ended = check(&stale);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.out.contains("stale report") && ended.out.contains("heldout.bits_per_byte"), "{}", ended.out);
    assert!(!Receipt::read(&sandbox.path(&out)).unwrap().passed);
    check(&fresh).ok();
    assert!(Receipt::read(&sandbox.path(&out)).unwrap().passed);
}

#[test]
fn an_override_needs_a_reason_and_is_recorded_in_the_lineage() {
    let sandbox = with_receipt(|sandbox| fs::remove_file(sandbox.path(&receipt_path())).unwrap());
    sandbox.refuses(1, "stage-sft", &args_with("sft", &["--override-gate", " "]), &[RECEIPT]);
    let reason = "the evaluation machine is down";
    sandbox.run("stage-sft", &args_with("sft", &["--override-gate", reason])).ok();
    let record = sandbox.json(&format!("{RUN}/sft/stage.json"));
    assert_eq!(record["gate"]["decision"], "overridden");
    assert_eq!(record["gate"]["reason"], reason);
    assert!(record["gate"]["refusal"].as_str().unwrap().contains(RECEIPT), "{record}");
    assert_eq!(record["outcome"]["state"], "finished");
    // Nothing else is different: the weights are those of the run that passed its gate.
    let output = |record: &Value| record["outcome"]["output"]["hash"].clone();
    assert_eq!(output(&record), output(&line::finished().json(&format!("{RUN}/sft/stage.json"))));
}

#[test]
fn an_override_where_the_gate_agrees_is_no_override() {
    let sandbox = Sandbox::with(inputs_of("sft"));
    sandbox.run("stage-sft", &args_with("sft", &["--override-gate", "just in case"])).ok();
    assert_eq!(sandbox.json(&format!("{RUN}/sft/stage.json"))["gate"]["decision"], "passed");
}

/// A gate that says no ends the pipeline with exit code 1; the stage behind it does not start, neither in the pipeline
/// nor by hand.
#[test]
fn a_failed_gate_stops_the_pipeline_and_the_next_stage() {
    let sandbox = Sandbox::with(&[""]);
    let easy = "threshold = { baseline = \"heldout.bits_per_byte.ngram3\", times = 4.0 }";
    sandbox.edit("configs/policy.toml", easy, "threshold = 0.01");
    sandbox.pipeline(&[]).says(1, &["step `gate-pretrain-to-sft`", "exit code 1"]);
    let summary = sandbox.json(&format!("{RUN}/summary.json"));
    assert_eq!(summary["complete"], false);
    let row = |step: &str| {
        let rows = summary["steps"].as_array().unwrap();
        rows.iter().find(|row| row["step"] == step).unwrap().clone()
    };
    assert_eq!(
        (&row("gate-pretrain-to-sft")["status"], &row("sft")["status"]),
        (&"failed".into(), &"not-reached".into())
    );
    assert_eq!(row("gate-pretrain-to-sft")["passed"], false);

    let args = args_with("sft", &["--set", &format!("dir={RUN}/again")]);
    sandbox.refuses(1, "stage-sft", &args, &[RECEIPT, "heldout.bits_per_byte", "wanted < 0.01"]);

    // With the old policy everything is as it was, except that the gate ran again.
    sandbox.edit("configs/policy.toml", "threshold = 0.01", easy);
    sandbox.pipeline(&[]).ok();
    assert!(Receipt::read(&sandbox.path(&receipt_path())).unwrap().passed);
    let record = sandbox.json(&format!("{RUN}/summary.json"));
    let ran = record["steps"].as_array().unwrap().iter().filter(|row| row["status"] == "ran");
    assert_eq!(ran.map(|row| row["step"].as_str().unwrap()).collect::<Vec<_>>(), ["gate-pretrain-to-sft"]);
}

/// Defect S1: a metric that nobody measured counted as passed.
#[test]
fn s01_a_metric_that_was_not_measured_fails_the_gate() {
    let sandbox = Sandbox::with(&["sft", "evals"]);
    let text = "version = 1\n[[transitions.sft-to-dpo.rules]]\nmetric = \"gsm8k\"\nop = \">=\"\nbound = \"lower\"\n\
                min_n = 1\nthreshold = 0.0\n";
    fs::write(sandbox.path("configs/policy.toml"), text).unwrap();
    let (model, report) = (format!("{RUN}/sft/final"), format!("{RUN}/evals/eval-sft.json"));
    let args = [
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
    let ended = sandbox.run("gates", &args);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.out.contains("gsm8k"), "{}", ended.out);
}
