//! `kill -9` at any moment: nothing is lost, and the resumed run ends with the same bytes as the undisturbed one.
//!
//! A run is killed at random shares of the duration of the undisturbed run, resumed, killed again, until it ends by
//! itself; then the next run starts, until the number of kills is reached. See the crate's documentation for campaigns.

use std::fs::{self, File};

use rustix::process::Signal;

use crate::line::{args_of, assert_same_results, duration_of, finished, inputs_of, n_metrics, newest_step, start};
use crate::process::Running;
use crate::random::Random;
use crate::sandbox::{RUN, Sandbox};
use crate::signal;

/// Kills when the environment does not say: of pretraining, of each other stage.
const KILLS: [usize; 2] = [3, 2];

fn kills(stage: &str) -> usize {
    let given = std::env::var("FIREBRICK_KILLS").ok();
    let numbers: Vec<usize> = match &given {
        Some(text) => text.split(',').map(|number| number.trim().parse().unwrap()).collect(),
        None => KILLS.to_vec(),
    };
    let [pretrain, other] = numbers[..] else { panic!("FIREBRICK_KILLS: expected two numbers, got {given:?}") };
    if stage == "pretrain" { pretrain } else { other }
}

/// One run from its start to its end; returns at what step each of its kills met it.
fn run_with_kills(stage: &str, most: usize, random: &mut Random, longest: f64) -> Vec<Option<u64>> {
    let sandbox = Sandbox::with(inputs_of(stage));
    let mut met = Vec::new();
    loop {
        let more: &[&str] = if met.is_empty() { &[] } else { &["--resume"] };
        let mut program = start(&sandbox, stage, more);
        let moment = duration_of(stage).mul_f64(longest * random.share());
        let status = if met.len() < most { program.wait_for(moment) } else { program.wait_until(|| false) };
        // A program that ends between the look and the kill has simply ended.
        let status = match status {
            None if program.kill() => {
                met.push(newest_step(&sandbox, stage));
                continue;
            }
            None => program.wait(),
            Some(status) => status.code().unwrap(),
        };
        assert_eq!(status, 0, "{stage} after {met:?}: {}", program.said());
        assert_same_results(&sandbox, stage, &format!("killed behind the checkpoints {met:?}"));
        return met;
    }
}

fn campaign(stage: &str) {
    let (wanted, mut random) = (kills(stage), Random::new(stage));
    let (mut met, mut longest, mut runs) = (Vec::new(), 1.0, 0);
    while met.len() < wanted {
        let now = run_with_kills(stage, wanted - met.len(), &mut random, longest);
        // The machine was busier when the duration was measured: aim earlier.
        longest *= if now.is_empty() { 0.7 } else { 1.0 };
        assert!(longest > 1e-3, "{stage} always ends before it is killed");
        runs += 1;
        met.extend(now);
    }
    let shown: Vec<String> = met.iter().map(|step| step.map_or("none".into(), |step| step.to_string())).collect();
    eprintln!("{stage}: {wanted} kills in {runs} runs, newest checkpoint at each: {}", shown.join(" "));
}

#[test]
fn s08_pretraining_killed_anywhere_ends_with_the_same_bytes() {
    campaign("pretrain");
}

#[test]
fn s08_fine_tuning_killed_anywhere_ends_with_the_same_bytes() {
    campaign("sft");
}

#[test]
fn s08_preference_training_killed_anywhere_ends_with_the_same_bytes() {
    campaign("dpo");
}

#[test]
fn s08_an_adapter_killed_anywhere_ends_with_the_same_bytes() {
    campaign("lora");
}

/// The loss of a step must not depend on where the run was cut: here it is cut right after a checkpoint, when the logs
/// are longer than what the checkpoint covers.
#[test]
fn s08_lines_beyond_the_checkpoint_are_written_again_and_not_twice() {
    let sandbox = Sandbox::with(inputs_of("pretrain"));
    let mut program = start(&sandbox, "pretrain", &[]);
    program.wait_until(|| n_metrics(&sandbox, "pretrain") >= 6);
    program.kill();
    assert_eq!(start(&sandbox, "pretrain", &["--resume"]).wait(), 0);
    assert_same_results(&sandbox, "pretrain", "killed behind a checkpoint");
}

/// The orchestrator sees the death of a stage, stops, and goes on when it is asked to. Every step behind the stage is
/// unchanged then, because the stage has left the same bytes.
#[test]
fn a_stage_killed_under_the_pipeline_is_continued_by_it() {
    let sandbox = Sandbox::with(&[""]);
    signal::under_the_pipeline(&sandbox, Signal::KILL)
        .says(137, &["step `pretrain`", "exit code 137", "logs/pretrain.log"]);
    sandbox.pipeline(&[]).says(2, &["was interrupted", "`--resume` continues it"]);
    signal::assert_resumes(&sandbox);
}

/// The end of the orchestrator is not the end of a stage: it writes its own log and saves as ever, and the next
/// orchestrator finds what it has done.
#[test]
fn a_stage_outlives_a_killed_pipeline_and_the_next_one_goes_on() {
    let sandbox = Sandbox::with(&[""]);
    let mut command = sandbox.pipeline_command(&["--from", "pretrain"]);
    let mut pipeline = Running::start(&mut command, &sandbox.path("said"));
    let moved_away = sandbox.run_path("replaced/pretrain.1");
    let met = pipeline.wait_until(|| moved_away.exists() && newest_step(&sandbox, "pretrain").is_some());
    assert!(met.is_none() && pipeline.kill(), "{}", pipeline.said());
    // The stage holds its lock as long as it lives.
    File::open(sandbox.run_path("pretrain/lock")).unwrap().lock().unwrap();
    assert_same_results(&sandbox, "pretrain", "alone");
    sandbox.pipeline(&["--resume"]).ok();
    assert_same_results(&sandbox, "pretrain", "resumed by another pipeline");
}

/// A data step has nothing to resume: killed, it has made its folder or nothing, and the next attempt removes what is
/// left of the first.
#[test]
fn a_data_step_killed_anywhere_makes_its_folder_or_nothing() {
    let mut random = Random::new("data");
    for (step, made) in
        [("ingest-text", "text"), ("derive", "tasks"), ("pack-text-heldout", "rows/text-heldout/seq-128")]
    {
        let sandbox = Sandbox::with(if step == "ingest-text" { &[] } else { &["text", "tokenizer"] });
        let (args, made) = (args_of(step), &format!("{RUN}/{made}"));
        let whole = finished().list(made);
        for _ in 0..kills("data") {
            let mut program = Running::start(&mut sandbox.command("data-pipeline", &args), &sandbox.path("said"));
            program.wait_for(duration_of(step).mul_f64(random.share()));
            program.kill();
            if sandbox.path(made).exists() {
                assert_eq!(sandbox.list(made), whole, "{step}");
                fs::remove_dir_all(sandbox.path(made)).unwrap();
            }
        }
        sandbox.run("data-pipeline", &args).ok();
        assert_eq!(sandbox.list(made), whole, "{step}");
        let left: Vec<String> = sandbox.list("").into_keys().filter(|path| path.contains(".partial")).collect();
        assert!(left.is_empty(), "{step}: {left:?}");
    }
}
