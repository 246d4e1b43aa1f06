//! The one training loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use data_pipeline::Prefetch;
use kernels_cubecl::LmBackend;
use model_core::Decoder;

use crate::batch::{BatchSource, EvalSet, MicroBatch};
use crate::liveness::Watch;
use crate::numbers::{MicroLoss, Numbers, StepNumbers};
use crate::objective::{MetricSum, Objective, Sampled};
use crate::observe::{EvalLog, Observe, StepLog};
use crate::optim::{GradientSum, Optimizer};
use crate::scaling::Scaling;
use crate::state::{Best, TrainState};
use crate::{TrainConfig, TrainError};

/// Steps that the data thread prepares ahead.
const PREFETCH_STEPS: usize = 2;
/// Failed saves in a row before the run stops.
const MAX_SAVE_FAILURES: u64 = 3;

/// What is trained: the model and its optimizer, on a device.
#[derive(Debug)]
pub struct Parts<B: LmBackend> {
    /// Weights.
    pub model: Decoder<B>,
    /// Moments.
    pub optimizer: Optimizer<B>,
    /// What FP8 products scale by.
    pub scaling: Scaling<B>,
    /// Where they live.
    pub device: B::Device,
}

impl<B: LmBackend> Parts<B> {
    /// The parts of a run before its first step.
    pub fn new(model: Decoder<B>, optimizer: Optimizer<B>, config: &TrainConfig, device: B::Device) -> Self {
        Self { scaling: Scaling::new(&model, config, &device), model, optimizer, device }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The last step was taken.
    Finished,
    /// `stop_after` ended the run before its last step; everything is saved.
    StoppedEarly,
    /// A signal asked for the end; everything is saved.
    Interrupted,
}

/// Writes checkpoints; the loop only says when.
pub trait Save<B: LmBackend> {
    /// Called once before the first step, with the parts as they will be: takes what saves will need. Returns what the user
    /// should know.
    fn prepare(&mut self, parts: &Parts<B>, config: &TrainConfig) -> Option<String> {
        let _ = (parts, config);
        None
    }

    /// Commits a checkpoint of this moment and forgets old ones: returns what the user should know. Or copies the moment and
    /// goes on in the background: returns `None`, and [`Save::finish`] tells the end before the next save begins. The copy may be
    /// on its way still, until [`Save::before_update`].
    ///
    /// # Errors
    /// When it could not be committed, or begun; the last good one is intact then.
    fn save(&mut self, parts: &Parts<B>, state: &TrainState) -> Result<Option<Vec<String>>, TrainError>;

    /// Called before anything changes the parts in place: what is enqueued later comes after the copy of the last save.
    fn before_update(&mut self) {}

    /// How the save in the background ended, as [`Save::save`] would have told it. `None` when there is none, or, unless it is
    /// to `wait`, while there is.
    fn finish(&mut self, wait: bool) -> Option<Result<Vec<String>, TrainError>> {
        let _ = wait;
        None
    }
}

/// Everything around the loop.
pub struct Surroundings<'a, B: LmBackend> {
    /// Evaluation rows.
    pub eval: &'a EvalSet,
    /// Checkpoints.
    pub save: &'a mut dyn Save<B>,
    /// Logs and displays.
    pub observe: &'a mut dyn Observe,
    /// Set by a signal handler.
    pub interrupted: &'a AtomicBool,
}

/// Runs the loop until the last step or a signal.
///
/// Per step: eval? save? stop? → fetch all micro-batches, or have the model sample them → count units → forward and backward each, summing gradients →
/// norm → clip → AdamW, unless something is not finite → log. The only division is by the units of the whole step. The device
/// is asked once per step, for everything at once, and answers while it takes the step.
///
/// # Errors
/// Data, objective and model errors; [`model_core::ModelError::AdapterInert`] when a matrix of an adapter does not train in
/// the first two updates; [`TrainError::NotFinite`] after `max_bad_steps` skipped steps in a row;
/// [`TrainError::SaveFailed`] after several failed saves in a row.
pub fn train<B: LmBackend>(
    objective: &dyn Objective<B>,
    mut source: Box<dyn BatchSource + Send>,
    mut parts: Parts<B>,
    state: &mut TrainState,
    config: &TrainConfig,
    around: &mut Surroundings<'_, B>,
) -> Result<(Outcome, Parts<B>), TrainError> {
    let mut batches = Prefetch::new(state.step, PREFETCH_STEPS, move |step| source.step(step));
    let mut saving = Saving::default();
    around.save.prepare(&parts, config).iter().for_each(|note| around.observe.warn(note));
    loop {
        saving.settle(state, around, false, false)?;
        let last = state.step >= config.last_step();
        let interrupted = around.interrupted.load(Ordering::Relaxed);
        // Where a run ends early is not part of its results: only the true last step adds an evaluation.
        let finished = state.step >= config.max_steps;
        if due(state.step, config.eval_every, finished) && state.evaluated_at != Some(state.step) {
            evaluate(objective, &parts, state, around)?;
        }
        let save_now =
            Occasion { regular: due(state.step, config.save_every, finished), last_chance: last || interrupted };
        if (save_now.regular || save_now.last_chance) && state.saved_at != Some(state.step) {
            saving.save(&parts, state, around, save_now)?;
        }
        if last || interrupted {
            return Ok((outcome(finished, last), parts));
        }
        let started = Instant::now();
        let given = batches.next().unwrap_or_else(|| Err(missing_data(state.step)))?;
        let Sampled { batches: step_batches, metrics: mut told } =
            objective.sample(&parts.model, state.step, given, &parts.device)?;
        let units: f64 = step_batches.iter().map(|batch| objective.units(batch)).sum();
        let watch = Watch::begin(&parts, &step_batches, state, config);
        let pass = forward_backward(objective, &parts, &step_batches, state, config)?;
        let watch = watch.map(|watch| watch.gradients(&pass.gradients));
        let lr = config.learning_rate().at(state.step);
        let Pass { gradients, scaling, numbers } = pass;
        let scale = numbers.gradient_scale(units, config.grad_clip);
        // The device brings the numbers while it takes the step, which it leaves out by itself when they are not finite.
        let numbers = numbers.start_reading();
        if units > 0.0 {
            around.save.before_update();
            let Parts { model, mut optimizer, scaling, device } = parts;
            let model = optimizer.step(model, gradients, config, lr, scale, state.updates + 1);
            parts = Parts { model, optimizer, scaling, device };
        }
        let StepNumbers { loss, grad_norm, metrics } = numbers.finish(units);
        let finite = loss.is_finite() && grad_norm.is_finite();
        if finite && units > 0.0 {
            state.updates += 1;
            parts.scaling = scaling;
            watch.map_or(Ok(()), |watch| watch.check(&parts.model, &parts.optimizer))?;
        }
        account(state, &step_batches, units, loss, finite);
        MetricSum::merge(&mut told, metrics);
        let log = StepLog {
            step: state.step,
            loss,
            loss_window: state.window.mean(),
            grad_norm,
            lr,
            units,
            tokens: step_batches.iter().map(MicroBatch::n_tokens).sum(),
            seq_len: step_batches.first().map_or(0, |batch| batch.rows.seq_len),
            skipped: !finite,
            metrics: told,
            seconds: started.elapsed().as_secs_f64(),
            last_step: config.last_step(),
        };
        around.observe.step(&log)?;
        objective.review(state.step, &log.metrics)?.iter().for_each(|note| around.observe.warn(note));
        if state.bad_streak >= config.max_bad_steps {
            let (step, bad_steps) = (state.step, state.bad_streak);
            return Err(TrainError::NotFinite { step, loss, grad_norm, bad_steps });
        }
    }
}

fn outcome(finished: bool, last: bool) -> Outcome {
    match (finished, last) {
        (true, _) => Outcome::Finished,
        (false, true) => Outcome::StoppedEarly,
        (false, false) => Outcome::Interrupted,
    }
}

/// Why a checkpoint is saved.
#[derive(Clone, Copy)]
struct Occasion {
    /// It is time for one, in every run of this configuration.
    regular: bool,
    /// The run ends here.
    last_chance: bool,
}

/// Saves, one at a time; a failure ends the run only when no later save would come, or after too many in a row.
#[derive(Default)]
struct Saving {
    /// Failures in a row.
    failures: u64,
    /// The step that is being saved, and what the state says again should that fail.
    in_flight: Option<(u64, Option<u64>, Option<Best>)>,
}

impl Saving {
    /// Saves this moment, after the save before it has ended; waits for the end where it is the last one.
    fn save<B: LmBackend>(
        &mut self,
        parts: &Parts<B>,
        state: &mut TrainState,
        around: &mut Surroundings<'_, B>,
        occasion: Occasion,
    ) -> Result<(), TrainError> {
        self.settle(state, around, true, false)?;
        let mut saved = TrainState { saved_at: Some(state.step), ..state.clone() };
        if occasion.regular {
            let here = state.last_eval.clone().filter(|eval| eval.step == state.step);
            saved.best_saved = Best::or_better(saved.best_saved, here);
        }
        // The logs up to this step must be on disk before a checkpoint says that the step is.
        let synced = around.observe.sync();
        match synced.and_then(|()| around.save.save(parts, &saved)) {
            Ok(done) => {
                let before = std::mem::replace(state, saved);
                match done {
                    Some(notes) => self.succeeded(&notes, around),
                    None => self.in_flight = Some((state.step, before.saved_at, before.best_saved)),
                }
            }
            Err(error) => self.failed(state.step, error, around, occasion.last_chance)?,
        }
        if occasion.last_chance { self.settle(state, around, true, true) } else { Ok(()) }
    }

    /// Looks how the save in flight ended, if it has, or waits for its end.
    fn settle<B: LmBackend>(
        &mut self,
        state: &mut TrainState,
        around: &mut Surroundings<'_, B>,
        wait: bool,
        last_chance: bool,
    ) -> Result<(), TrainError> {
        let Some(ended) = around.save.finish(wait) else { return Ok(()) };
        let (step, saved_at, best_saved) = self.in_flight.take().expect("only a save that was begun ends");
        match ended {
            Ok(notes) => self.succeeded(&notes, around),
            Err(error) => {
                (state.saved_at, state.best_saved) = (saved_at, best_saved);
                self.failed(step, error, around, last_chance)?;
            }
        }
        Ok(())
    }

    fn succeeded<B: LmBackend>(&mut self, notes: &[String], around: &mut Surroundings<'_, B>) {
        self.failures = 0;
        notes.iter().for_each(|note| around.observe.warn(note));
    }

    fn failed<B: LmBackend>(
        &mut self,
        step: u64,
        error: TrainError,
        around: &mut Surroundings<'_, B>,
        last_chance: bool,
    ) -> Result<(), TrainError> {
        self.failures += 1;
        around.observe.warn(&format!("step {step}: checkpoint not saved: {error}"));
        if last_chance || self.failures >= MAX_SAVE_FAILURES {
            return Err(TrainError::SaveFailed { step, failures: self.failures, source: Box::new(error) });
        }
        Ok(())
    }
}

/// Whether work that comes every `every` steps comes now; 0 means only at the end.
fn due(step: u64, every: u64, last: bool) -> bool {
    last || (every > 0 && step > 0 && step.is_multiple_of(every))
}

fn missing_data(step: u64) -> TrainError {
    TrainError::Batch { problem: format!("the data thread ended before step {}; look for an error above", step + 1) }
}

/// Updates the counters after a step.
fn account(state: &mut TrainState, batches: &[MicroBatch], units: f64, loss: f64, finite: bool) {
    state.step += 1;
    state.units_seen += units;
    state.tokens_seen += batches.iter().map(MicroBatch::n_tokens).sum::<u64>();
    state.window.push(loss);
    if finite {
        state.bad_streak = 0;
    } else {
        state.bad_streak += 1;
        state.skipped += 1;
    }
}

/// What the passes over a step's micro-batches leave on the device.
struct Pass<B: LmBackend> {
    gradients: GradientSum<B>,
    scaling: Scaling<B>,
    numbers: Numbers<B>,
}

/// Forward and backward over all micro-batches of a step; nothing is read.
fn forward_backward<B: LmBackend>(
    objective: &dyn Objective<B>,
    parts: &Parts<B>,
    batches: &[MicroBatch],
    state: &TrainState,
    config: &TrainConfig,
) -> Result<Pass<B>, TrainError> {
    let mut frame = parts.model.clone();
    frame.set_fp8(config.precision.fp8());
    let n_layers = frame.blocks.len();
    let mut gradients = GradientSum::new(frame.leaves().len());
    let mut scaling = parts.scaling.clone();
    let mut losses = Vec::with_capacity(batches.len());
    for (i, batch) in batches.iter().enumerate() {
        frame.set_dropout_seed(Some(dropout_seed(config.seed, state.step, i as u64)));
        frame.set_histories(&scaling.histories);
        let model = frame.to_autodiff();
        let loss = objective.loss(&model, batch, &config.replay(n_layers), &parts.device)?;
        losses.push(MicroLoss { sum: loss.sum.clone().inner(), values: loss.values, metrics: loss.metrics });
        scaling.histories = gradients.add(&model, loss.sum);
    }
    let numbers = Numbers::new(losses, gradients.squares(&parts.device));
    Ok(Pass { gradients, scaling, numbers })
}

/// A seed of its own for every micro-batch, the same when a step runs again.
fn dropout_seed(seed: u64, step: u64, micro: u64) -> u64 {
    let text = [seed.to_le_bytes(), step.to_le_bytes(), micro.to_le_bytes()].concat();
    let hash = blake3::hash(&text);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a BLAKE3 hash has 32 bytes"))
}

/// Evaluates and remembers the best.
fn evaluate<B: LmBackend>(
    objective: &dyn Objective<B>,
    parts: &Parts<B>,
    state: &mut TrainState,
    around: &mut Surroundings<'_, B>,
) -> Result<(), TrainError> {
    let mut sums = Vec::new();
    for batch in &around.eval.batches {
        MetricSum::merge(&mut sums, objective.evaluate(&parts.model, batch, &parts.device)?);
    }
    state.evaluated_at = Some(state.step);
    let Some(first) = sums.first() else { return Ok(()) };
    state.last_eval = Some(Best { step: state.step, value: first.mean() });
    state.best = Best::or_better(state.best.take(), state.last_eval.clone());
    let bits_per_byte = around.eval.text_bytes.filter(|&bytes| bytes > 0 && first.name == "nll");
    let bits_per_byte = bits_per_byte.map(|bytes| first.sum / std::f64::consts::LN_2 / bytes as f64);
    around.observe.eval(&EvalLog { step: state.step, metrics: sums, bits_per_byte })
}
