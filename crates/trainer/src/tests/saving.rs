//! When checkpoints are made, which are kept, and what a failing disk does to a run.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use burn::backend::Autodiff;
use burn::tensor::backend::BackendTypes;
use kernels_cubecl::Cpu;
use model_core::hf::FloatType;
use model_core::{Decoder, Replay};

use super::tiny::{Cut, Lab, Recorder, config, model, parts, rows, source};
use crate::batch::{EvalSet, MicroBatch};
use crate::checkpoint::{
    CheckpointStore, CheckpointWriter, Checkpointer, Disk, Identity, Manifest, ModelFiles, Operation,
};
use crate::objective::{LossSum, MetricSum, NextToken, Objective, RouterWeights};
use crate::observe::{EvalLog, Observe, StepLog};
use crate::state::{Best, TrainState};
use crate::train::{Outcome, Parts, Save, Surroundings, train};
use crate::{TrainConfig, TrainError};

/// Remembers the states that it was given; fails where `broken` says so.
struct Flaky {
    asked: Vec<u64>,
    broken: fn(u64) -> bool,
    in_background: bool,
    /// How often the loop has looked, and how the save will end.
    in_flight: Option<(u64, Result<Vec<String>, TrainError>)>,
}

impl Save<Cpu> for Flaky {
    fn save(&mut self, _: &Parts<Cpu>, state: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        self.asked.push(state.step);
        let result = match (self.broken)(state.step) {
            true => Err(TrainError::NoSpace { path: "disk".into(), needed: 2, free: 1 }),
            false => Ok(vec![format!("note {}", state.step)]),
        };
        if self.in_background {
            assert!(self.in_flight.replace((0, result)).is_none(), "two saves at once");
            return Ok(None);
        }
        result.map(Some)
    }

    /// A save takes as long as the loop lets it, or three steps.
    fn finish(&mut self, wait: bool) -> Option<Result<Vec<String>, TrainError>> {
        let (asked, _) = self.in_flight.as_mut()?;
        *asked += 1;
        if wait || *asked == 3 { self.in_flight.take().map(|(_, result)| result) } else { None }
    }
}

struct Ran {
    outcome: Result<Outcome, TrainError>,
    asked: Vec<u64>,
    state: TrainState,
    seen: Recorder,
}

fn run(config: &TrainConfig, broken: fn(u64) -> bool, interrupted: bool) -> Ran {
    let [now, later] = [false, true].map(|in_background| run_saving(config, broken, interrupted, in_background));
    let end = |ran: &Ran| ran.outcome.as_ref().map_err(ToString::to_string).copied();
    assert_eq!((end(&now), &now.asked), (end(&later), &later.asked), "a save in the background changes nothing");
    assert_eq!(now.seen.warnings, later.seen.warnings);
    if now.outcome.is_ok() {
        assert_eq!(now.state, later.state);
    }
    later
}

fn run_saving(config: &TrainConfig, broken: fn(u64) -> bool, interrupted: bool, in_background: bool) -> Ran {
    let mut save = Flaky { asked: Vec::new(), broken, in_background, in_flight: None };
    let (mut state, mut seen, flag) = (TrainState::default(), Recorder::default(), AtomicBool::new(interrupted));
    let eval = EvalSet::new(&rows(4, 9), 2, None).unwrap();
    let mut around = Surroundings { eval: &eval, save: &mut save, observe: &mut seen, interrupted: &flag };
    let source = source(rows(16, 1), config);
    let ended = train(
        &NextToken { z_loss: 0.0, router: RouterWeights::NONE },
        source,
        parts(model(), config),
        &mut state,
        config,
        &mut around,
    );
    assert_eq!(flag.load(Ordering::Relaxed), interrupted);
    Ran { outcome: ended.map(|(outcome, _)| outcome), asked: save.asked, state, seen }
}

#[test]
fn saves_and_evaluations_come_when_they_are_due_and_at_the_end() {
    let ran = run(&TrainConfig { save_every: 4, eval_every: 3, ..config(10) }, |_| false, false);
    assert_eq!(ran.outcome.unwrap(), Outcome::Finished);
    assert_eq!(ran.asked, [4, 8, 10]);
    assert_eq!(ran.seen.evals.iter().map(|eval| eval.step).collect::<Vec<_>>(), [3, 6, 9, 10]);
    assert_eq!(ran.seen.warnings, ["note 4", "note 8", "note 10"]);
    assert!(ran.seen.evals.iter().all(|eval| eval.bits_per_byte.is_none()), "the bytes are not known");
    let ran = run(&TrainConfig { save_every: 0, eval_every: 0, ..config(10) }, |_| false, false);
    assert_eq!((ran.asked, ran.seen.evals.len()), (vec![10], 1));
}

#[test]
fn c10_training_goes_on_after_a_failed_save_and_stops_after_three_in_a_row() {
    let every = TrainConfig { save_every: 2, ..config(20) };
    let ran = run(&every, |step| step == 4 || step == 6 || step == 10, false);
    assert_eq!(ran.outcome.unwrap(), Outcome::Finished);
    assert_eq!(ran.asked, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
    assert_eq!(ran.seen.warnings.iter().filter(|text| text.contains("not saved")).count(), 3);

    let ran = run(&every, |step| step >= 6, false);
    let error = ran.outcome.unwrap_err();
    assert!(matches!(error, TrainError::SaveFailed { step: 10, failures: 3, .. }), "{error}");
    assert_eq!((error.exit_code(), ran.state.saved_at), (3, Some(4)));
}

#[test]
fn a_save_that_fails_at_the_end_or_on_a_signal_is_an_error_at_once() {
    let end = run(&config(5), |step| step == 5, false).outcome.unwrap_err();
    assert!(matches!(end, TrainError::SaveFailed { step: 5, failures: 1, .. }), "{end}");
    let signal = run(&config(5), |_| true, true).outcome.unwrap_err();
    assert!(matches!(signal, TrainError::SaveFailed { step: 0, failures: 1, .. }), "{signal}");
}

#[test]
fn a_signal_before_the_first_step_saves_the_beginning() {
    let ran = run(&config(5), |_| false, true);
    assert_eq!((ran.outcome.unwrap(), ran.asked), (Outcome::Interrupted, vec![0]));
}

/// Writes down what it is asked, and in which order.
#[derive(Default)]
struct Calls(Vec<String>);

impl Save<Cpu> for Calls {
    fn prepare(&mut self, _: &Parts<Cpu>, _: &TrainConfig) -> Option<String> {
        self.0.push("prepare".into());
        Some("little memory".into())
    }

    fn save(&mut self, _: &Parts<Cpu>, state: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        self.0.push(format!("save {}", state.step));
        Ok(Some(Vec::new()))
    }

    fn before_update(&mut self) {
        self.0.push("update".into());
    }
}

/// Copies that are on their way end before the parts change, and memory for them is taken before the first step.
#[test]
fn a_save_is_told_before_the_parts_change() {
    let settings = TrainConfig { save_every: 2, ..config(4) };
    let (mut save, mut seen, flag) = (Calls::default(), Recorder::default(), AtomicBool::new(false));
    let eval = EvalSet::default();
    let mut around = Surroundings { eval: &eval, save: &mut save, observe: &mut seen, interrupted: &flag };
    let rows = source(rows(16, 1), &settings);
    train(&TRAINED, rows, parts(model(), &settings), &mut TrainState::default(), &settings, &mut around).unwrap();
    assert_eq!(save.0, ["prepare", "update", "update", "save 2", "update", "update", "save 4"]);
    assert_eq!(seen.warnings, ["little memory"]);
}

/// The loop trains on while the disk is slow, and the checkpoint is that of the step that was saved.
#[test]
fn a_slow_disk_does_not_stop_the_loop() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainConfig { save_every: 4, keep_last: 9, ..config(10) };
    let run = |name: &str, slow: bool| {
        let root = dir.path().join(name);
        let steps = Arc::new(AtomicU64::new(0));
        let seen = steps.clone();
        let hook = move |operation: Operation, path: &Path| {
            let first = slow && operation == Operation::Fill && path.to_string_lossy().contains("step-4.");
            // Only the loop can end this: it must come three steps further.
            while first && seen.load(Ordering::Relaxed) < 7 {
                std::thread::yield_now();
            }
            Ok(())
        };
        let store = CheckpointStore::open_on(Disk::hooked(Arc::new(hook)), &root, super::tiny::identity(), 9).unwrap();
        let mut save = Checkpointer::new(CheckpointWriter {
            store,
            files: ModelFiles::Full,
            float: FloatType::F32,
            tokenizer_dir: dir.path().to_path_buf(),
        });
        let (mut state, flag, eval) = (TrainState::default(), AtomicBool::new(false), EvalSet::default());
        let mut count = Counter(steps);
        let mut around = Surroundings { eval: &eval, save: &mut save, observe: &mut count, interrupted: &flag };
        let rows = source(rows(16, 1), &settings);
        train(&TRAINED, rows, parts(model(), &settings), &mut state, &settings, &mut around).unwrap();
        [4, 8, 10].map(|step| Manifest::read(&save.writer().store.path(step)).unwrap().files)
    };
    assert!(run("slow", true) == run("fast", false), "the checkpoints differ");
}

/// Counts steps where another thread sees them.
struct Counter(Arc<AtomicU64>);

impl Observe for Counter {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.0.store(log.step, Ordering::Relaxed);
        Ok(())
    }
    fn eval(&mut self, _: &EvalLog) -> Result<(), TrainError> {
        Ok(())
    }
    fn warn(&mut self, message: &str) {
        panic!("nothing should go wrong here: {message}");
    }
}

/// Trains as usual; its evaluations are a script, so that which one is the best does not hang on the machine's rounding.
struct Scripted {
    evaluations: Cell<usize>,
    script: &'static [f64],
}

impl Objective<Cpu> for Scripted {
    fn units(&self, batch: &MicroBatch) -> f64 {
        Objective::<Cpu>::units(&TRAINED, batch)
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<Cpu>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &<Cpu as BackendTypes>::Device,
    ) -> Result<LossSum<Cpu>, TrainError> {
        TRAINED.loss(model, batch, replay, device)
    }

    fn evaluate(
        &self,
        _: &Decoder<Cpu>,
        _: &MicroBatch,
        _: &<Cpu as BackendTypes>::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        let value = self.script[self.evaluations.replace(self.evaluations.get() + 1)];
        Ok(vec![MetricSum::new("nll", value, 1.0)])
    }
}

const TRAINED: NextToken = NextToken { z_loss: 0.0, router: RouterWeights::NONE };

#[test]
fn the_best_checkpoint_outlives_the_last_ones() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainConfig { save_every: 5, eval_every: 5, keep_last: 1, ..config(30) };
    let lab = Lab::new(dir.path(), settings);
    let n_batches = Lab::eval_set().batches.len();
    assert_eq!(n_batches, 3, "the script below has one value per batch");
    // Means of the six evaluations: 4, 2, 1, 3, 1, 5; of the two best ones the earlier counts.
    let script = &[4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 0.5, 0.5, 2.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0];
    let objective = Scripted { evaluations: Cell::new(0), script };
    lab.go_with(&objective, Cut::Never);
    assert_eq!(objective.evaluations.get(), script.len());
    let identity: Identity = super::tiny::identity();
    let root = dir.path().join("checkpoints");
    let store = CheckpointStore::open_on(Disk::default(), &root, identity, 1).unwrap();
    let text = std::fs::read(store.path(30).join("trainer/state.json")).unwrap();
    let state: TrainState = serde_json::from_slice(&text).unwrap();
    let best = Best { step: 15, value: 1.0 };
    assert_eq!((state.best, state.best_saved), (Some(best.clone()), Some(best)));
    assert_eq!(store.steps().unwrap(), [15, 30]);
}
