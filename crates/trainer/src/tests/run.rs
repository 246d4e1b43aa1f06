//! A stage from its plan to its record, in a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kernels_cubecl::Cpu;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::tiny::{config, model, rows, source};
use crate::batch::EvalSet;
use crate::checkpoint::ModelFiles;
use crate::lineage::{EntryGate, GateRecord, Input, StageOutcome, StageRecord};
use crate::objective::{NextToken, RouterWeights};
use crate::run::{FINAL, StagePlan, lock, run_stage};
use crate::stage::StageArgs;
use crate::{Outcome, TrainConfig, TrainError};

#[derive(Clone, Serialize, Deserialize)]
struct Config {
    note: String,
    train: TrainConfig,
}

/// A stage folder and the model before it.
struct Bench {
    dir: TempDir,
    config: Config,
    data_seed: u64,
    eval_seed: u64,
    gate: Option<EntryGate>,
    args: StageArgs,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs::create_dir(&base).unwrap();
        model().save(&base, 1 << 30).unwrap();
        fs::write(base.join("tokenizer.json"), "{}").unwrap();
        fs::write(base.join("tokenizer_config.json"), "{\"eos\": 1}").unwrap();
        let args = StageArgs {
            config: PathBuf::new(),
            sets: Vec::new(),
            resume: false,
            device: Default::default(),
            plain: true,
            plan: false,
            override_gate: None,
        };
        let train = TrainConfig { save_every: 4, eval_every: 5, log_every: 1000, ..config(10) };
        Self { dir, config: Config { note: "a".into(), train }, data_seed: 1, eval_seed: 2, gate: None, args }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn stage(&self) -> PathBuf {
        self.dir.path().join("run/demo")
    }

    fn run_with(&self, after: Option<crate::run::AfterRun<'_>>) -> Result<Outcome, TrainError> {
        let mut rows_and_hash = source(rows(20, self.data_seed), &self.config.train);
        rows_and_hash = Box::new(Named { inner: rows_and_hash, name: self.data_seed.to_string() });
        let plan = StagePlan {
            name: "demo",
            dir: self.stage(),
            config: &self.config,
            train: &self.config.train,
            model_dir: self.base(),
            gate: self.gate.clone(),
            inputs: BTreeMap::from([("rows".to_owned(), Input::new(Path::new("rows"), "h"))]),
            model: model(),
            files: ModelFiles::Full,
            objective: &NextToken { z_loss: 0.0, router: RouterWeights::NONE },
            source: rows_and_hash,
            eval: EvalSet::new(&rows(4, self.eval_seed), 2, Some(50)).unwrap(),
            after,
        };
        run_stage::<Cpu, _>(plan, &self.args, &Default::default())
    }

    fn run(&self) -> Result<Outcome, TrainError> {
        self.run_with(None)
    }

    fn record(&self) -> StageRecord {
        StageRecord::read(&self.stage()).unwrap()
    }
}

/// A source with a fingerprint of its own.
struct Named {
    inner: Box<dyn crate::BatchSource + Send>,
    name: String,
}

impl crate::BatchSource for Named {
    fn step(&mut self, step: u64) -> Result<Vec<crate::MicroBatch>, TrainError> {
        self.inner.step(step)
    }
    fn seq_len(&self, step: u64) -> usize {
        self.inner.seq_len(step)
    }
    fn fingerprint(&self) -> String {
        self.name.clone()
    }
}

#[test]
fn a_stage_leaves_a_model_folder_its_logs_and_its_record() {
    let bench = Bench::new();
    assert_eq!(bench.run().unwrap(), Outcome::Finished);
    let last = bench.stage().join("checkpoints/step-10");
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "manifest.json",
        "trainer/state.json",
        "trainer/optimizer.safetensors",
    ] {
        assert!(last.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_link(bench.stage().join(FINAL)).unwrap(), Path::new("checkpoints/step-10"));
    let record = bench.record();
    let output = Input::model(&last).unwrap();
    assert_eq!(record.outcome, StageOutcome::Finished { steps: 10, output });
    assert_eq!(record.inputs["model"].hash, Input::model(&bench.base()).unwrap().hash);
    assert_eq!(record.inputs["rows"].hash, "h");
    assert_eq!((record.gate, record.config["train"]["lr"].as_f64()), (GateRecord::NotAsked, Some(0.01)));

    let lines = |file: &str| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(bench.stage().join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let metrics = lines("metrics.jsonl");
    assert_eq!(metrics.len(), 10 + 2);
    let eval = &metrics.last().unwrap()["eval"];
    assert!(eval["bits_per_byte"].as_f64().unwrap() > 0.0 && eval["token_accuracy"].is_number(), "{eval}");
    let timing = lines("timing.jsonl");
    assert!(timing.len() == 10 && timing[0]["tokens_per_s"].as_f64().unwrap() > 0.0);
    // S29: event files are binary; here we only look that curves were written at all.
    let events = fs::read_dir(bench.stage().join("tb")).unwrap().next().unwrap().unwrap();
    assert!(events.metadata().unwrap().len() > 1000);
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_without_resume() {
    let mut bench = Bench::new();
    bench.run().unwrap();
    let before = fs::read(bench.stage().join("metrics.jsonl")).unwrap();
    let error = bench.run().unwrap_err();
    assert!(matches!(error, TrainError::RunExists { .. }) && error.to_string().contains("--resume"), "{error}");
    assert!(matches!(bench.record().outcome, StageOutcome::Finished { .. }), "the refusal has touched the record");
    bench.args.resume = true;
    assert_eq!(bench.run().unwrap(), Outcome::Finished);
    assert_eq!(fs::read(bench.stage().join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn c13_two_runs_do_not_share_a_folder() {
    let bench = Bench::new();
    let held = lock(&bench.stage()).unwrap();
    let error = bench.run().unwrap_err();
    assert!(matches!(error, TrainError::Locked { .. }) && error.exit_code() == 2, "{error}");
    assert!(!bench.stage().join("stage.json").exists(), "the refused run has written into the folder");
    drop(held);
    bench.run().unwrap();
}

#[test]
fn c16_c18_a_resume_with_other_data_configuration_tokenizer_or_model_is_refused() {
    let stopped = || {
        let mut bench = Bench::new();
        bench.config.train.stop_after = Some(6);
        bench.run().unwrap();
        bench.config.train.stop_after = None;
        bench.args.resume = true;
        bench
    };
    type Change = fn(&mut Bench);
    let changes: [(&str, Change); 6] = [
        ("the data", |b| b.data_seed = 9),
        ("the data", |b| b.eval_seed = 9),
        ("train.lr", |b| b.config.train.lr = 0.02),
        ("note", |b| b.config.note = "b".into()),
        ("the tokenizer", |b| fs::write(b.base().join("tokenizer.json"), "{ }").unwrap()),
        ("the initial model", |b| fs::write(b.base().join("model-extra.safetensors"), "x").unwrap()),
    ];
    for (field, change) in changes {
        let mut bench = stopped();
        change(&mut bench);
        let error = bench.run().unwrap_err();
        assert!(matches!(error, TrainError::ResumeMismatch { .. }), "{field}: {error}");
        assert!(error.to_string().contains(field) && error.exit_code() == 2, "{field}: {error}");
    }
    // Keys that say when work is done may change.
    let mut bench = stopped();
    bench.config.train.keep_last = 5;
    bench.config.train.log_every = 2;
    bench.config.train.peak_tflops = 1.0;
    assert_eq!(bench.run().unwrap(), Outcome::Finished);
}

#[test]
fn c9_a_resume_from_nothing_but_bad_checkpoints_stops() {
    let mut bench = Bench::new();
    bench.run().unwrap();
    for entry in fs::read_dir(bench.stage().join("checkpoints")).unwrap() {
        fs::write(entry.unwrap().path().join("model.safetensors"), b"").unwrap();
    }
    bench.args.resume = true;
    for _ in 0..2 {
        let error = bench.run().unwrap_err();
        assert!(matches!(error, TrainError::NoIntactCheckpoint { .. }) && error.exit_code() == 2, "{error}");
    }
}

#[test]
fn the_gate_is_asked_before_anything_is_written_and_an_override_is_recorded() {
    let mut bench = Bench::new();
    bench.gate = Some(EntryGate { transition: "a-to-b".into(), receipt: bench.dir.path().join("gate.json") });
    let error = bench.run().unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    assert!(!bench.stage().exists());
    bench.args.override_gate = Some("measuring".into());
    bench.run().unwrap();
    match bench.record().gate {
        GateRecord::Overridden { transition, reason, refusal } => {
            assert_eq!((transition.as_str(), reason.as_str()), ("a-to-b", "measuring"));
            assert!(refusal.contains("does not exist"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_that_fails_says_so_in_its_record() {
    let bench = Bench::new();
    // The logs cannot be written where a folder lies.
    fs::create_dir_all(bench.stage().join("metrics.jsonl")).unwrap();
    let error = bench.run().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(matches!(bench.record().outcome, StageOutcome::Failed { exit_code: 2, .. }));
}

#[test]
fn work_after_the_run_makes_the_result_only_when_the_run_is_finished() {
    let mut bench = Bench::new();
    let merged = bench.stage().join("merged");
    let copy = |last: &Path| {
        crate::run::publish_folder(&merged, &bench.base(), |tmp| {
            for name in ["config.json", "model.safetensors"] {
                fs::copy(last.join(name), tmp.join(name)).unwrap();
            }
            Ok(())
        })?;
        Ok(merged.clone())
    };
    assert_eq!(bench.run_with(Some(Box::new(copy))).unwrap(), Outcome::Finished);
    assert_eq!(fs::read_link(bench.stage().join(FINAL)).unwrap(), Path::new("merged"));
    assert!(merged.join("tokenizer.json").is_file());
    assert!(matches!(bench.record().outcome, StageOutcome::Finished { output, .. } if output.path == merged));
    // Again over the same place, as after a stop between the publication and the record.
    bench.args.resume = true;
    let again = |_: &Path| {
        crate::run::publish_folder(&merged, &bench.base(), |tmp| {
            fs::write(tmp.join("config.json"), "{}").map_err(TrainError::io("write", tmp))
        })?;
        Ok(merged.clone())
    };
    let error = bench.run_with(Some(Box::new(again))).unwrap_err();
    assert!(error.to_string().contains("not a model folder"), "{error}");
}
