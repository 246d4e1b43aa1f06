//! A tiny model, tiny rows, and a run around them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use data_pipeline::{PADDING_SEGMENT, TokenRow};
use kernels_cubecl::{Cpu, Leaf, LmBackend};
use model_core::hf::FloatType;
use model_core::{Decoder, ModelConfig};

use crate::batch::{BatchSource, EvalSet, MicroBatch, PhaseRows, RowSource};
use crate::checkpoint::{CheckpointStore, CheckpointWriter, Checkpointer, Identity, ModelFiles, load_parts};
use crate::config::{Arithmetic, Fp8Scaling, HistoryLength, MasterKind, MomentsKind};
use crate::objective::{NextToken, Objective, RouterWeights};
use crate::observe::{EvalLog, FlopCount, MetricFiles, Observe, StepLog};
use crate::optim::Optimizer;
use crate::schedule::Schedule;
use crate::state::TrainState;
use crate::train::{Outcome, Parts, Save, Surroundings, train};
use crate::{TrainConfig, TrainError};

/// Row length of the tests.
pub(crate) const SEQ_LEN: usize = 12;
const VOCAB: usize = 32;

/// Two blocks of width 16 with grouped heads.
pub(crate) fn model_config() -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        d_model: 16,
        d_ff: 24,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        d_head: 8,
        max_seq_len: 64,
        ..ModelConfig::from_depth(1, VOCAB)
    }
}

pub(crate) fn model() -> Decoder<Cpu> {
    Decoder::init(&model_config(), 7, &Default::default())
}

pub(crate) fn parts(model: Decoder<Cpu>, config: &TrainConfig) -> Parts<Cpu> {
    let optimizer = Optimizer::new(&model, config, &Default::default());
    Parts::new(model, optimizer, config, Default::default())
}

/// A small generator of its own, so that the tests need none of the code they test.
pub(crate) fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut x = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    move |below| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % below
    }
}

/// Rows of two documents and sometimes a tail of padding; a third of the labels is masked.
pub(crate) fn rows(n: usize, seed: u64) -> Vec<TokenRow> {
    let mut random = random(seed);
    (0..n)
        .map(|_| {
            let (first, used) = (3 + random(4) as usize, SEQ_LEN - random(3) as usize);
            let mut row = TokenRow::default();
            for i in 0..SEQ_LEN {
                let padding = i >= used;
                row.ids.push(if padding { 0 } else { 1 + random(VOCAB as u64 - 1) as u32 });
                row.segments.push(if padding { PADDING_SEGMENT } else { u32::from(i >= first) });
                let masked = padding || i == 0 || i == first || random(3) == 0;
                row.weights.push(if masked { 0.0 } else { 1.0 });
            }
            row
        })
        .collect()
}

/// A run of `max_steps` steps of 8 rows, in micro-batches of 4.
pub(crate) fn config(max_steps: u64) -> TrainConfig {
    TrainConfig {
        max_steps,
        stop_after: None,
        tokens_per_step: 8 * SEQ_LEN as u64,
        tokens_per_micro_batch: 4 * SEQ_LEN as u64,
        lr: 1e-2,
        min_lr: 1e-3,
        schedule: Schedule::Cosine,
        warmup_steps: max_steps / 10,
        decay_steps: 0,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_clip: 1.0,
        seed: 5,
        eval_every: 0,
        save_every: 0,
        log_every: 1,
        keep_last: 2,
        recompute: false.into(),
        max_bad_steps: 3,
        peak_tflops: 0.0,
        precision: Arithmetic::F32,
        master: MasterKind::Remainder,
        moments: MomentsKind::Full,
        fp8_scaling: Fp8Scaling::Current,
        fp8_history: HistoryLength::default(),
        offload: false.into(),
    }
}

pub(crate) fn source(rows: Vec<TokenRow>, config: &TrainConfig) -> Box<dyn BatchSource + Send> {
    let phase = PhaseRows { until_step: config.max_steps, rows: Arc::new(rows), fingerprint: "tiny".into() };
    Box::new(RowSource::new(vec![phase], config).unwrap())
}

/// Remembers what it saw.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) steps: Vec<StepLog>,
    pub(crate) evals: Vec<EvalLog>,
    pub(crate) warnings: Vec<String>,
}

impl Observe for Recorder {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.steps.push(log.clone());
        Ok(())
    }
    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        self.evals.push(log.clone());
        Ok(())
    }
    fn warn(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }
}

/// Saves nothing.
pub(crate) struct NoSave;

impl<B: LmBackend> Save<B> for NoSave {
    fn save(&mut self, _: &Parts<B>, _: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        Ok(Some(Vec::new()))
    }
}

/// What a run in memory left.
pub(crate) struct Ran {
    pub(crate) outcome: Result<Outcome, TrainError>,
    pub(crate) model: Option<Decoder<Cpu>>,
    pub(crate) histories: Vec<Vec<f32>>,
    pub(crate) state: TrainState,
    pub(crate) seen: Recorder,
}

/// Trains in memory, without files.
pub(crate) fn run(objective: &dyn Objective<Cpu>, rows: Vec<TokenRow>, config: &TrainConfig) -> Ran {
    run_from(objective, source(rows, config), config, parts(model(), config))
}

/// As [`run`], from given batches and parts.
pub(crate) fn run_from(
    objective: &dyn Objective<Cpu>,
    source: Box<dyn BatchSource + Send>,
    config: &TrainConfig,
    parts: Parts<Cpu>,
) -> Ran {
    config.check().unwrap();
    let (mut state, mut seen, flag) = (TrainState::default(), Recorder::default(), AtomicBool::new(false));
    let eval = EvalSet::default();
    let mut around = Surroundings { eval: &eval, save: &mut NoSave, observe: &mut seen, interrupted: &flag };
    let ended = train(objective, source, parts, &mut state, config, &mut around);
    let (outcome, model, scaling) = match ended {
        Ok((outcome, parts)) => (Ok(outcome), Some(parts.model), Some(parts.scaling)),
        Err(error) => (Err(error), None, None),
    };
    let histories = scaling.into_iter().flat_map(|scaling| scaling.histories);
    let histories = histories.map(|history| leaf_values(Leaf::Matrix(history))).collect();
    Ran { outcome, model, histories, state, seen }
}

/// All values of a model, leaf after leaf.
pub(crate) fn values(model: &Decoder<Cpu>) -> Vec<Vec<f32>> {
    model.leaves().into_iter().map(|named| leaf_values(named.leaf)).collect()
}

pub(crate) fn leaf_values(leaf: Leaf<Cpu>) -> Vec<f32> {
    leaf.into_data().to_vec::<f32>().unwrap()
}

/// The larger difference; a NaN is the largest.
fn worse(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// Largest difference of two models relative to the largest value of the leaf.
pub(crate) fn relative_difference(a: &Decoder<Cpu>, b: &Decoder<Cpu>) -> f32 {
    let leaf = |(x, y): (Vec<f32>, Vec<f32>)| {
        let largest = x.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
        x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0f32, worse) / largest
    };
    values(a).into_iter().zip(values(b)).map(leaf).fold(0.0, worse)
}

/// How a run on disk is cut short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cut {
    /// Not at all.
    Never,
    /// A signal arrives during this step.
    Signal(u64),
    /// The process dies when this step is logged, before anything of the next step.
    Death(u64),
}

/// A run in a folder.
pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) config: TrainConfig,
    pub(crate) files: ModelFiles,
    pub(crate) model: Decoder<Cpu>,
}

/// Cuts the run off.
struct Cutter<'a> {
    cut: Cut,
    flag: &'a AtomicBool,
    files: MetricFiles,
}

impl Observe for Cutter<'_> {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.files.step(log)?;
        match self.cut {
            Cut::Signal(step) if step == log.step => self.flag.store(true, Ordering::Relaxed),
            Cut::Death(step) if step == log.step => return Err(TrainError::Batch { problem: "death".into() }),
            _ => {}
        }
        Ok(())
    }
    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        self.files.eval(log)
    }
    fn warn(&mut self, message: &str) {
        panic!("nothing should go wrong here: {message}");
    }
    fn sync(&mut self) -> Result<(), TrainError> {
        self.files.sync()
    }
}

pub(crate) fn identity() -> Identity {
    let text = |s: &str| s.to_owned();
    Identity { config: serde_json::json!({}), data: text("d"), tokenizer: text("t"), base_model: text("m") }
}

impl Lab {
    pub(crate) fn new(dir: &Path, config: TrainConfig) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        Self { dir: dir.to_path_buf(), config, files: ModelFiles::Full, model: model() }
    }

    /// What the run is evaluated on.
    pub(crate) fn eval_set() -> EvalSet {
        EvalSet::new(&rows(5, 99), 2, Some(123)).unwrap()
    }

    /// Runs, or goes on, until `cut`; `None` when the process "died".
    pub(crate) fn go(&self, cut: Cut) -> Option<Outcome> {
        self.go_with(&NextToken { z_loss: 1e-4, router: RouterWeights::NONE }, cut)
    }

    /// As [`Lab::go`], with an objective of the test's own.
    pub(crate) fn go_with(&self, objective: &dyn Objective<Cpu>, cut: Cut) -> Option<Outcome> {
        let store = CheckpointStore::open(&self.dir.join("checkpoints"), identity(), self.config.keep_last).unwrap();
        let (parts, mut state) = match store.load_latest(&mut |note| panic!("{note}")).unwrap() {
            Some((path, _)) => {
                load_parts(&path, &self.files, self.model.clone(), &self.config, Default::default()).unwrap()
            }
            None => (parts(self.model.clone(), &self.config), TrainState::default()),
        };
        let flops = FlopCount { config: self.model.config.clone(), peak_tflops: 0.1 };
        let files = MetricFiles::open(&self.dir, state.step, flops).unwrap();
        let flag = AtomicBool::new(false);
        let mut save = Checkpointer::new(CheckpointWriter {
            store,
            files: self.files.clone(),
            float: FloatType::F32,
            tokenizer_dir: self.dir.clone(),
        });
        let mut cutter = Cutter { cut, flag: &flag, files };
        let eval = Self::eval_set();
        let mut around = Surroundings { eval: &eval, save: &mut save, observe: &mut cutter, interrupted: &flag };
        let source = source(rows(30, 1), &self.config);
        match train(objective, source, parts, &mut state, &self.config, &mut around) {
            Ok((outcome, _)) => Some(outcome),
            Err(error) => {
                assert!(matches!(cut, Cut::Death(_)), "{error}");
                None
            }
        }
    }

    /// Name and content of everything that a resumed run must reproduce byte for byte.
    pub(crate) fn results(&self) -> Vec<(String, Vec<u8>)> {
        let last = self.dir.join(format!("checkpoints/step-{}", self.config.max_steps));
        let mut paths = vec![self.dir.join("metrics.jsonl")];
        for folder in [last.clone(), last.join("trainer")] {
            paths.extend(std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()));
        }
        paths.sort();
        let name = |path: &Path| path.strip_prefix(&self.dir).unwrap().to_string_lossy().into_owned();
        paths.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
    }
}

/// The batch of all `rows`.
pub(crate) fn batch(rows: &[TokenRow]) -> MicroBatch {
    MicroBatch::new(&rows.iter().collect::<Vec<_>>()).unwrap()
}
