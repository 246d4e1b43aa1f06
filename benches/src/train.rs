//! `perf train`: complete training steps of a named model through the real loop, on random tokens.
//!
//! One line of JSON in the fields of the PyTorch rival, so that both stand in one table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Distribution, ElementConversion, Int, Tensor, TensorData};
use kernels_cubecl::{Device, DeviceChoice, Leaf, LmBackend, Mxfp4, Packed, on_device};
use model_core::adapter::{ALL_LINEAR, LoraConfig};
use model_core::hf::{PackedExperts, leaf_map};
use model_core::{Decoder, ModelConfig, Rows};
use serde::Serialize;
use trainer::checkpoint::{CheckpointStore, CheckpointWriter, Checkpointer, Identity, ModelFiles};
use trainer::config::{Blocks, HistoryLength};
use trainer::memory::{AdapterShape, Head, MemoryPlan, host_available};
use trainer::objective::{MetricSum, NextToken, RouterWeights};
use trainer::observe::{EvalLog, Observe, StepLog};
use trainer::optim::Optimizer;
use trainer::schedule::Schedule;
use trainer::train::{Save, Surroundings, train};
use trainer::{BatchSource, EvalSet, MicroBatch, Parts, TrainConfig, TrainError, TrainState};

/// Steps that are not counted: kernels are compiled and memory is taken in them.
const WARMUP: usize = 3;
/// Dense bf16 arithmetic of an H100 in TFLOP/s, what MFU is a share of.
const H100_TFLOPS: f64 = 989.4;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to train
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// Named size: 125m, 1b, 7b, 7b-wide, ...
    #[arg(long)]
    preset: String,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 1024)]
    seq: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 1)]
    micro_batches: usize,
    /// Blocks of the model, where not those of the named size
    #[arg(long)]
    layers: Option<usize>,
    /// Steps, warm-up included
    #[arg(long, default_value_t = 12)]
    steps: usize,
    #[command(flatten)]
    numerics: Numerics,
    /// Trains an adapter of this rank on every projection and leaves the model as it is
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Keeps the weights of experts in MXFP4
    #[arg(long, requires = "lora")]
    packed: bool,
    /// Trains on the tokens of this file, little-endian u32, one row after the other, in place of random ones
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Learning rate
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Evaluates on the first step's tokens after the last step
    #[arg(long)]
    eval: bool,
    /// Runs blocks again in the backward pass: all of them, or the first N
    #[arg(long, value_name = "N", num_args = 0..=1)]
    recompute: Option<Option<usize>>,
    /// Keeps the inputs of recomputed blocks in the host's memory: all of them, or the first N
    #[arg(long, value_name = "N", num_args = 0..=1)]
    offload: Option<Option<usize>>,
    /// Prints the memory plan and stops; needs no device
    #[arg(long)]
    plan: bool,
    /// Prints where the time of the last two steps went, op by op; the device waits between ops
    #[arg(long)]
    profile: bool,
    /// Saves checkpoints into this folder and tells how long the loop stood still for it
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Steps between them
    #[arg(long, default_value_t = 4)]
    save_every: u64,
}

/// How numbers are kept, in the words of the stages' configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Numerics {
    /// f32, bf16 or fp8
    #[arg(long, default_value = "bf16")]
    pub(crate) precision: String,
    /// remainder or stochastic
    #[arg(long, default_value = "remainder")]
    pub(crate) master: String,
    /// f32 or 8bit
    #[arg(long, default_value = "8bit")]
    pub(crate) moments: String,
    /// Scales of FP8 products: current or delayed
    #[arg(long, default_value = "current")]
    pub(crate) fp8_scaling: String,
    /// Passes that a delayed scale looks back on
    #[arg(long, default_value_t = HistoryLength::default().0)]
    pub(crate) fp8_history: usize,
}

/// The line that is printed.
#[derive(Debug, Serialize)]
struct Line {
    r#impl: &'static str,
    preset: String,
    params: u64,
    batch: usize,
    seq: usize,
    micro_batches: usize,
    precision: String,
    master: String,
    moments: String,
    fp8_scaling: String,
    recompute: Blocks,
    offload: Blocks,
    adapter_params: u64,
    packed_experts: bool,
    ms: f64,
    tok_s: f64,
    tflops: f64,
    mfu: f64,
    used_gib: Option<f64>,
    /// The same after steps 5, 50, 500, ...
    used_gib_after: Vec<(u64, f64)>,
    planned_gib: f64,
    host_gib: f64,
    first_step_s: f64,
    /// For each save, seconds that the loop stood still until it went on.
    save_stalls_s: Vec<f64>,
    /// For each save, seconds that the loop stood still later until it was committed; only the last one and one that the next
    /// save overtakes are waited for.
    save_waits_s: Vec<f64>,
    /// For each save, seconds until it was committed.
    save_commits_s: Vec<f64>,
    /// The slowest step that came right after a save, to be compared with `ms`.
    after_save_ms: Option<f64>,
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// Mean loss of the evaluation.
    eval_loss: Option<f64>,
}

/// The micro-batches of one step after the other, over and over. Random tokens are of one step: the loss falls as the model
/// learns them by heart.
struct Tokens {
    steps: Vec<Vec<MicroBatch>>,
}

impl BatchSource for Tokens {
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        Ok(self.steps[step as usize % self.steps.len()].clone())
    }

    fn seq_len(&self, _: u64) -> usize {
        self.steps[0][0].rows.seq_len
    }

    fn fingerprint(&self) -> String {
        String::new()
    }
}

/// Steps of a profile.
const PROFILED: u64 = 2;

/// Keeps what the loop says of every step, and says when the last ones begin.
pub(crate) struct Log<'a> {
    pub(crate) steps: Vec<StepLog>,
    pub(crate) before_last: &'a dyn Fn(),
    /// What the device has in use, asked after steps 5, 50, 500, ...
    pub(crate) used: &'a dyn Fn() -> Option<u64>,
    pub(crate) used_after: Vec<(u64, f64)>,
    /// Mean of the first metric of the last evaluation.
    pub(crate) evaluated: Option<f64>,
}

/// Bytes in GiB.
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

impl Observe for Log<'_> {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.steps.push(log.clone());
        if (0..9).any(|power| log.step == 5 * 10u64.pow(power)) {
            self.used_after.extend((self.used)().map(|bytes| (log.step, gib(bytes))));
        }
        if log.step + PROFILED == log.last_step {
            (self.before_last)();
        }
        Ok(())
    }

    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        self.evaluated = log.metrics.first().map(MetricSum::mean);
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        eprintln!("{message}");
    }
}

/// Saves nothing: checkpoints have figures of their own.
pub(crate) struct NoSave;

impl<B: LmBackend> Save<B> for NoSave {
    fn save(&mut self, _: &Parts<B>, _: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        Ok(Some(Vec::new()))
    }
}

/// Saves as the stages do, or not at all, and keeps the times of it.
struct TimedSave {
    checkpointer: Option<Checkpointer>,
    begun: Instant,
    stalls: Vec<f64>,
    waits: Vec<f64>,
    commits: Vec<f64>,
    /// Steps that were saved.
    steps: Vec<u64>,
}

impl TimedSave {
    fn new(arguments: &Arguments, config: &TrainConfig) -> Result<Self> {
        let checkpointer = arguments.save.as_ref().map(|dir| {
            let name = || arguments.preset.clone();
            let identity = Identity { config: name().into(), data: name(), tokenizer: name(), base_model: name() };
            let store = CheckpointStore::open(dir, identity, config.keep_last)?;
            let float = config.precision.float_type();
            let files = ModelFiles::Full;
            Ok::<_, TrainError>(Checkpointer::new(CheckpointWriter { store, files, float, tokenizer_dir: dir.clone() }))
        });
        Ok(Self {
            checkpointer: checkpointer.transpose()?,
            begun: Instant::now(),
            stalls: Vec::new(),
            waits: Vec::new(),
            commits: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Seconds of the slowest step that came right after a save.
    fn slowest_after(&self, steps: &[StepLog]) -> Option<f64> {
        let after = steps.iter().filter(|log| self.steps.iter().any(|saved| saved + 1 == log.step));
        after.map(|log| log.seconds).max_by(f64::total_cmp)
    }
}

impl<B: LmBackend> Save<B> for TimedSave {
    fn prepare(&mut self, parts: &Parts<B>, config: &TrainConfig) -> Option<String> {
        self.checkpointer.as_mut()?.prepare(parts, config)
    }

    fn save(&mut self, parts: &Parts<B>, state: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        let Some(checkpointer) = &mut self.checkpointer else { return Ok(Some(Vec::new())) };
        self.begun = Instant::now();
        let result = checkpointer.save(parts, state);
        self.stalls.push(self.begun.elapsed().as_secs_f64());
        self.waits.push(0.0);
        self.steps.push(state.step);
        result
    }

    fn before_update(&mut self) {
        if let Some(checkpointer) = &mut self.checkpointer {
            Save::<B>::before_update(checkpointer);
        }
    }

    fn finish(&mut self, wait: bool) -> Option<Result<Vec<String>, TrainError>> {
        let checkpointer = self.checkpointer.as_mut()?;
        let waited = Instant::now();
        let result = Save::<B>::finish(checkpointer, wait);
        if result.is_some() {
            self.commits.push(self.begun.elapsed().as_secs_f64());
        }
        if let Some(wait) = self.waits.last_mut() {
            *wait += waited.elapsed().as_secs_f64();
        }
        result
    }
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = train_config(arguments)?;
    config.check()?;
    let plan = MemoryPlan::new(&model_config(arguments)?, &config, Head::CrossEntropy, adapter(arguments));
    if arguments.plan {
        print!("{plan}");
        return Ok(ExitCode::SUCCESS);
    }
    plan.require_host(host_available())?;
    #[cfg(feature = "cuda")]
    kernels_cubecl::cuda::keep_exact_sizes();
    let device = config.precision.on(arguments.device.resolve()?)?;
    let used = used_memory(&device);
    let line = on_device!(device, B, on => measure::<B>(arguments, &config, &on, &used))??;
    println!("{}", serde_json::to_string(&line)?);
    Ok(ExitCode::SUCCESS)
}

/// The run's settings; what the arguments leave open is what a pretraining run would have.
fn train_config(arguments: &Arguments) -> Result<TrainConfig> {
    let tokens = (arguments.batch * arguments.seq) as u64;
    ensure!(tokens > 0 && arguments.micro_batches > 0, "perf train: expected at least one token, got none");
    let least = WARMUP + if arguments.profile { PROFILED as usize } else { 0 };
    ensure!(arguments.steps > least, "perf train: expected more than {least} steps, got {}", arguments.steps);
    Ok(TrainConfig {
        max_steps: arguments.steps as u64,
        tokens_per_step: tokens * arguments.micro_batches as u64,
        tokens_per_micro_batch: tokens,
        recompute: blocks(arguments.recompute),
        offload: blocks(arguments.offload),
        lr: arguments.lr,
        eval_every: if arguments.eval { arguments.steps as u64 } else { 0 },
        save_every: if arguments.save.is_some() { arguments.save_every } else { 0 },
        ..base_config(&arguments.numerics)?
    })
}

/// An option with or without a number, or none.
fn blocks(option: Option<Option<usize>>) -> Blocks {
    match option {
        Some(None) => Blocks::All(true),
        Some(Some(n)) => Blocks::First(n),
        None => Blocks::All(false),
    }
}

/// The adapter of the arguments, as a plan sees it.
fn adapter(arguments: &Arguments) -> Option<AdapterShape> {
    let shape = |rank: usize| {
        let rank = rank as u64;
        let packed_experts = if arguments.packed { PackedExperts::Mxfp4 } else { PackedExperts::No };
        AdapterShape { rank, expert_rank: rank, dropout: false, packed_experts }
    };
    arguments.lora.map(shape)
}

/// The named size with the layers of the arguments.
fn model_config(arguments: &Arguments) -> Result<ModelConfig> {
    let mut config = ModelConfig::preset(&arguments.preset).context("perf train --preset: no such size")?;
    config.n_layers = arguments.layers.unwrap_or(config.n_layers);
    Ok(config)
}

/// A run of one step of one token with the usual AdamW.
pub(crate) fn base_config(numerics: &Numerics) -> Result<TrainConfig> {
    let Numerics { precision, master, moments, fp8_scaling, fp8_history } = numerics;
    let unknown = |key: &str, word: &str| format!("--{key}: no such value as {word:?}; the help has them");
    let word = |word: &String| serde_json::Value::from(word.as_str());
    Ok(TrainConfig {
        max_steps: 1,
        stop_after: None,
        tokens_per_step: 1,
        tokens_per_micro_batch: 1,
        lr: 1e-4,
        min_lr: 0.0,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        decay_steps: 0,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_clip: 1.0,
        seed: 1,
        eval_every: 0,
        save_every: 0,
        log_every: 1,
        keep_last: 1,
        recompute: Blocks::All(false),
        offload: Blocks::All(false),
        max_bad_steps: 3,
        peak_tflops: H100_TFLOPS,
        precision: serde_json::from_value(word(precision)).with_context(|| unknown("precision", precision))?,
        master: serde_json::from_value(word(master)).with_context(|| unknown("master", master))?,
        moments: serde_json::from_value(word(moments)).with_context(|| unknown("moments", moments))?,
        fp8_scaling: serde_json::from_value(word(fp8_scaling)).with_context(|| unknown("fp8-scaling", fp8_scaling))?,
        fp8_history: HistoryLength(*fp8_history),
    })
}

/// Bytes of the device that are in use, asked at any time; the pool never gives back, so that the end shows the peak.
fn used_memory(device: &Device) -> impl Fn() -> Option<u64> + use<> {
    #[cfg(feature = "cuda")]
    let index = match device {
        Device::Cuda(device) | Device::CudaBf16(device) => Some(device.index),
        Device::Cpu(_) => None,
    };
    #[cfg(feature = "cuda")]
    return move || kernels_cubecl::cuda::device_memory(index?).map(|memory| memory.total - memory.free);
    #[cfg(not(feature = "cuda"))]
    {
        let Device::Cpu(_) = device;
        || None
    }
}

/// A model with random weights, made on the device: 7B normals on the host take minutes.
///
/// The same seed each time, so that runs can be compared.
pub(crate) fn random_model<B: LmBackend>(config: &ModelConfig, device: &B::Device) -> Decoder<B> {
    random_packed_model(config, false, device)
}

/// As [`random_model`], with the weights of experts in MXFP4 where they are to be.
fn random_packed_model<B: LmBackend>(config: &ModelConfig, packed: bool, device: &B::Device) -> Decoder<B> {
    B::seed(device, 1);
    let std = Distribution::Normal(0.0, f64::from(config.init_std));
    let (mut leaves, mut experts) = (Vec::new(), Vec::new());
    for leaf in leaf_map(config) {
        match (&leaf.dims[..], leaf.n_experts) {
            (&[n], _) if leaf.leaf.ends_with("bias") => leaves.push(Leaf::Vector(Tensor::zeros([n], device))),
            (&[n], _) => leaves.push(Leaf::Vector(Tensor::ones([n], device))),
            (&[rows, columns], Some(_)) if packed => {
                experts.push(Packed::Mxfp4(random_mxfp4(rows, columns, device)));
            }
            (&[rows, columns], _) => {
                // As a line, so that there are no gaps between its rows, as in a model that was read.
                let line = Tensor::<B, 1>::random([rows * columns], std, device);
                leaves.push(Leaf::Matrix(line.reshape([rows, columns])));
            }
            (dims, _) => unreachable!("a leaf is a vector or a matrix, got {dims:?}"),
        }
    }
    Decoder::from_packed(config, leaves, experts)
}

/// Codes of all kinds in blocks whose numbers have a deviation of about 0.02.
fn random_mxfp4<B: LmBackend>(rows: usize, columns: usize, device: &B::Device) -> Mxfp4<B> {
    /// Four scales of 2⁻⁷.
    const SCALES: i32 = 0x7878_7878;
    let words = columns / 8;
    let half = || Tensor::<B, 1, Int>::random([rows * words], Distribution::Uniform(0.0, 65_536.0), device);
    let codes = half().bitwise_left_shift_scalar(16i32.elem()).bitwise_or(half());
    let scale_words = columns.div_ceil(128);
    let scales = Tensor::<B, 1, Int>::full([rows * scale_words], SCALES, device);
    Mxfp4::from_words(codes.reshape([rows, words]), scales.reshape([rows, scale_words]), columns)
}

/// The tokens of the arguments' file, whole steps of them, as rows without documents.
fn tokens(arguments: &Arguments, vocab_size: usize) -> Result<Tokens> {
    let Some(path) = &arguments.tokens else {
        return Ok(Tokens { steps: vec![random_tokens(arguments, vocab_size)?] });
    };
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let ids: Vec<i32> =
        bytes.chunks_exact(4).map(|word| i32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let known = |id: &&i32| (0..vocab_size as i32).contains(*id);
    ensure!(ids.iter().all(|id| known(&id)), "{}: expected ids below {vocab_size}", path.display());
    let (rows, seq) = (arguments.batch, arguments.seq);
    let batch = |ids: &[i32]| {
        let rows_in = Rows::from_segments(rows, seq, ids.to_vec(), vec![0; rows * seq])?;
        Ok(MicroBatch { rows: rows_in, weights: vec![1.0; rows * seq], pairs: Vec::new(), samples: Vec::new() })
    };
    let step = |ids: &[i32]| ids.chunks_exact(rows * seq).map(batch).collect::<Result<Vec<_>>>();
    let steps: Vec<Vec<MicroBatch>> =
        ids.chunks_exact(rows * seq * arguments.micro_batches).map(step).collect::<Result<_>>()?;
    ensure!(!steps.is_empty(), "{}: expected the tokens of a step at least, got {}", path.display(), ids.len());
    Ok(Tokens { steps })
}

/// Random rows without documents.
fn random_tokens(arguments: &Arguments, vocab_size: usize) -> Result<Vec<MicroBatch>> {
    let (rows, seq) = (arguments.batch, arguments.seq);
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % vocab_size as u64) as i32
    };
    let batches = (0..arguments.micro_batches).map(|_| {
        let ids = (0..rows * seq).map(|_| next()).collect();
        let rows_in = Rows::from_segments(rows, seq, ids, vec![0; rows * seq])?;
        Ok(MicroBatch { rows: rows_in, weights: vec![1.0; rows * seq], pairs: Vec::new(), samples: Vec::new() })
    });
    batches.collect()
}

#[cfg(feature = "cuda")]
fn profile_from_now(arguments: &Arguments) {
    if let DeviceChoice::Cuda(index) = arguments.device {
        kernels_cubecl::cuda::profile::start(&kernels_cubecl::cuda::CudaDevice::new(index));
    }
}

#[cfg(feature = "cuda")]
fn print_profile() {
    let ops = kernels_cubecl::cuda::profile::stop();
    let per_step = |seconds: f64| 1e3 * seconds / PROFILED as f64;
    println!("| op | calls a step | ms a step |\n|---|---:|---:|");
    for (op, calls, seconds) in &ops {
        println!("| {op} | {} | {:.2} |", calls / PROFILED, per_step(*seconds));
    }
    println!("| all | | {:.2} |", per_step(ops.iter().map(|op| op.2).sum()));
}

#[cfg(not(feature = "cuda"))]
fn profile_from_now(_: &Arguments) {}

#[cfg(not(feature = "cuda"))]
fn print_profile() {
    println!("profile: only CUDA devices have one");
}

fn measure<B: LmBackend>(
    arguments: &Arguments,
    config: &TrainConfig,
    device: &B::Device,
    used: &dyn Fn() -> Option<u64>,
) -> Result<Line> {
    let model_config = model_config(arguments)?;
    let mut model = random_packed_model::<B>(&model_config, arguments.packed, device);
    if let Some(r) = arguments.lora {
        let (alpha, targets) = (2.0 * r as f32, vec![ALL_LINEAR.to_owned()]);
        let lora = LoraConfig { r, alpha, dropout: 0.0, rslora: false, targets, rank_pattern: BTreeMap::new() };
        model.attach_lora(&lora, 1)?;
    }
    let adapter_params = model.n_adapter_params();
    // Reading something waits for the weights.
    let first: Tensor<B, 1> = model.final_norm.gamma.clone();
    let _: TensorData = first.into_data();
    let optimizer = Optimizer::new(&model, config, device);
    let mut source = Box::new(tokens(arguments, model_config.vocab_size)?);
    let before_last = || {
        if arguments.profile {
            profile_from_now(arguments)
        }
    };
    let mut log = Log { steps: Vec::new(), before_last: &before_last, used, used_after: Vec::new(), evaluated: None };
    let mut save = TimedSave::new(arguments, config)?;
    let eval = EvalSet { batches: if arguments.eval { source.step(0)? } else { Vec::new() }, text_bytes: None };
    let mut around =
        Surroundings { eval: &eval, save: &mut save, observe: &mut log, interrupted: &AtomicBool::new(false) };
    let parts = Parts::new(model, optimizer, config, device.clone());
    train::<B>(
        &NextToken { z_loss: 0.0, router: RouterWeights::NONE },
        source,
        parts,
        &mut TrainState::default(),
        config,
        &mut around,
    )?;
    if arguments.profile {
        print_profile();
    }
    let used_gib = used().map(gib);
    let plan = MemoryPlan::new(&model_config, config, Head::CrossEntropy, adapter(arguments));
    let profiled = if arguments.profile { PROFILED as usize } else { 0 };
    let mut seconds: Vec<f64> = log.steps[WARMUP..log.steps.len() - profiled].iter().map(|step| step.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tok_s = config.tokens_per_step as f64 / median;
    let tflops = model_config.flops_per_token(arguments.seq) as f64 * tok_s / 1e12;
    Ok(Line {
        r#impl: "firebrick",
        preset: arguments.preset.clone(),
        params: model_config.n_params(),
        batch: arguments.batch,
        seq: arguments.seq,
        micro_batches: arguments.micro_batches,
        precision: arguments.numerics.precision.clone(),
        master: arguments.numerics.master.clone(),
        moments: arguments.numerics.moments.clone(),
        fp8_scaling: arguments.numerics.fp8_scaling.clone(),
        recompute: config.recompute,
        offload: config.offload,
        adapter_params,
        packed_experts: arguments.packed,
        ms: 1e3 * median,
        tok_s,
        tflops,
        mfu: tflops / H100_TFLOPS,
        used_gib,
        used_gib_after: log.used_after,
        planned_gib: gib(plan.total()),
        host_gib: gib(plan.host + if arguments.save.is_some() { plan.saved } else { 0 }),
        after_save_ms: save.slowest_after(&log.steps).map(|seconds| 1e3 * seconds),
        save_stalls_s: save.stalls,
        save_waits_s: save.waits,
        save_commits_s: save.commits,
        first_step_s: log.steps[0].seconds,
        losses: log.steps.iter().map(|step| step.loss).collect(),
        norms: log.steps.iter().map(|step| step.grad_norm).collect(),
        eval_loss: log.evaluated,
    })
}
