//! SIGTERM: a stage saves and ends with exit code 0, and what is resumed ends with the same bytes.

use rustix::process::Signal;

use crate::line::{STAGES, assert_same_results, inputs_of, n_metrics, newest_step, start};
use crate::process::{Ended, Running};
use crate::sandbox::{RUN, Sandbox};

/// A signal can come when the last step is done already; that often in a row it does not.
const TRIES: usize = 10;

/// The outcome that a stage's `stage.json` tells.
fn outcome(sandbox: &Sandbox, stage: &str) -> serde_json::Value {
    sandbox.json(&format!("{RUN}/{stage}/stage.json"))["outcome"].clone()
}

/// A stage that was stopped by a signal after at least one step.
fn stopped(stage: &str) -> (Sandbox, String) {
    for _ in 0..TRIES {
        let sandbox = Sandbox::with(inputs_of(stage));
        let mut program = start(&sandbox, stage, &[]);
        if program.wait_until(|| n_metrics(&sandbox, stage) >= 2).is_none() {
            program.signal(Signal::TERM);
            assert_eq!(program.wait(), 0, "{}", program.said());
            if outcome(&sandbox, stage)["state"] == "stopped" {
                return (sandbox, program.said());
            }
        }
    }
    panic!("{stage} always ends before the signal comes")
}

#[test]
fn a_term_signal_saves_and_the_resumed_run_ends_with_the_same_bytes() {
    for stage in STAGES {
        let (sandbox, said) = stopped(stage);
        assert!(said.contains("everything is saved; continue with --resume"), "{said}");
        let outcome = outcome(&sandbox, stage);
        assert_eq!(outcome["cause"], "signal");
        assert_eq!(outcome["steps"].as_u64(), newest_step(&sandbox, stage), "the last step is not saved");
        // Without --resume nobody continues by accident, and nothing of the run is touched.
        let args: Vec<String> = crate::line::args_of(stage);
        sandbox.refuses(2, &format!("stage-{stage}"), &args, &["already holds a run", "--resume"]);
        assert_eq!(start(&sandbox, stage, &["--resume"]).wait(), 0);
        assert_same_results(&sandbox, stage, &format!("stopped by a signal: {outcome}"));
    }
}

/// Starts the pipeline at pretraining and sends pretraining a signal after its first checkpoint.
pub(crate) fn under_the_pipeline(sandbox: &Sandbox, signal: Signal) -> Ended {
    let moved_away = sandbox.run_path("replaced");
    for tried in 1..=TRIES {
        let mut command = sandbox.pipeline_command(&["--from", "pretrain"]);
        let mut pipeline = Running::start(&mut command, &sandbox.path("said"));
        let ready =
            || moved_away.join(format!("pretrain.{tried}")).exists() && newest_step(sandbox, "pretrain").is_some();
        if pipeline.signal_child_when("stage-pretrain", signal, ready) {
            let ended = pipeline.end();
            if ended.code != Some(0) {
                return ended;
            }
        }
    }
    panic!("pretraining always ends before the signal comes")
}

/// Resumes the pipeline; only pretraining runs, and with the bytes that it left before everything behind it is up to date.
pub(crate) fn assert_resumes(sandbox: &Sandbox) {
    sandbox.pipeline(&["--resume"]).ok();
    let summary = sandbox.json(&format!("{RUN}/summary.json"));
    for row in summary["steps"].as_array().unwrap() {
        let want = if row["step"] == "pretrain" { "ran" } else { "unchanged" };
        assert_eq!(row["status"], want, "{row}");
    }
    assert_same_results(sandbox, "pretrain", "resumed by the pipeline");
}

#[test]
fn a_stage_stopped_under_the_pipeline_is_continued_by_it() {
    let sandbox = Sandbox::with(&[""]);
    under_the_pipeline(&sandbox, Signal::TERM).says(3, &["step `pretrain`", "stopped on request", "`--resume`"]);
    assert_eq!(outcome(&sandbox, "pretrain")["state"], "stopped");
    assert_resumes(&sandbox);
}
