//! `perf curve`: the losses of a training run on a token file, for comparison with another trainer's from the same weights.
//!
//! The first run makes the model folder; `benches/rival/torch_curve.py` reads the same folder and the same file.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use kernels_cubecl::{Cpu, DeviceChoice, LmBackend, on_device};
use model_core::{Decoder, ModelConfig, Rows};
use serde::Serialize;
use trainer::objective::{NextToken, RouterWeights};
use trainer::optim::Optimizer;
use trainer::schedule::Schedule;
use trainer::train::{Surroundings, train};
use trainer::{BatchSource, EvalSet, MicroBatch, Parts, TrainConfig, TrainError, TrainState};

use super::train::{Log, NoSave, Numerics, base_config};

/// Largest token file.
const MAX_TOKEN_BYTES: u64 = 1 << 30;
/// Seed of the fresh weights.
const SEED: u64 = 7;
/// A shard of the saved model is at most this large.
const MAX_SHARD_BYTES: u64 = 4 << 30;

/// Arguments of `curve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to train
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// Model folder; made with fresh weights of the named size when it is not there
    #[arg(long)]
    model: PathBuf,
    /// Named size of a fresh model
    #[arg(long, default_value = "125m")]
    preset: String,
    /// Token ids, u16 little-endian
    #[arg(long)]
    tokens: PathBuf,
    /// Rows of a step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 1024)]
    seq: usize,
    /// Steps
    #[arg(long, default_value_t = 500)]
    steps: usize,
    #[command(flatten)]
    numerics: Numerics,
    /// File for the losses, JSON
    #[arg(long)]
    out: PathBuf,
}

/// What is written.
#[derive(Debug, Serialize)]
struct Curve<'a> {
    r#impl: &'static str,
    precision: &'a str,
    master: &'a str,
    moments: &'a str,
    fp8_scaling: &'a str,
    batch: usize,
    seq: usize,
    losses: Vec<f64>,
    norms: Vec<f64>,
}

/// Consecutive rows of the file, step by step.
struct FileRows {
    ids: Vec<i32>,
    batch: usize,
    seq: usize,
}

impl BatchSource for FileRows {
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        let n = self.batch * self.seq;
        let ids = self.ids[step as usize * n..][..n].to_vec();
        let rows = Rows::from_segments(self.batch, self.seq, ids, vec![0; n])?;
        Ok(vec![MicroBatch { rows, weights: vec![1.0; n], pairs: Vec::new(), samples: Vec::new() }])
    }

    fn seq_len(&self, _: u64) -> usize {
        self.seq
    }

    fn fingerprint(&self) -> String {
        String::new()
    }
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = TrainConfig {
        max_steps: arguments.steps as u64,
        tokens_per_step: (arguments.batch * arguments.seq) as u64,
        tokens_per_micro_batch: (arguments.batch * arguments.seq) as u64,
        lr: 3e-4,
        min_lr: 3e-5,
        schedule: Schedule::Cosine,
        warmup_steps: arguments.steps as u64 / 10,
        ..base_config(&arguments.numerics)?
    };
    config.check()?;
    let source = read_tokens(arguments)?;
    if !arguments.model.exists() {
        let size = ModelConfig { vocab_size: vocabulary(&source.ids), ..ModelConfig::preset(&arguments.preset)? };
        std::fs::create_dir_all(&arguments.model).with_context(|| format!("make {}", arguments.model.display()))?;
        Decoder::<Cpu>::init(&size, SEED, &Default::default()).save(&arguments.model, MAX_SHARD_BYTES)?;
    }
    #[cfg(feature = "cuda")]
    kernels_cubecl::cuda::keep_exact_sizes();
    let device = config.precision.on(arguments.device.resolve()?)?;
    let log = on_device!(device, B, on => follow::<B>(arguments, &config, source, &on))??;
    let curve = Curve {
        r#impl: "firebrick",
        precision: &arguments.numerics.precision,
        master: &arguments.numerics.master,
        moments: &arguments.numerics.moments,
        fp8_scaling: &arguments.numerics.fp8_scaling,
        batch: arguments.batch,
        seq: arguments.seq,
        losses: log.steps.iter().map(|step| step.loss).collect(),
        norms: log.steps.iter().map(|step| step.grad_norm).collect(),
    };
    gates::artifact::write_atomic(&arguments.out, &serde_json::to_vec(&curve)?)?;
    Ok(ExitCode::SUCCESS)
}

fn read_tokens(arguments: &Arguments) -> Result<FileRows> {
    let path = &arguments.tokens;
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(MAX_TOKEN_BYTES).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    let ids: Vec<i32> = bytes.chunks_exact(2).map(|pair| i32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect();
    let need = arguments.batch * arguments.seq * arguments.steps;
    ensure!(need > 0, "perf curve: expected at least one token a step and one step");
    ensure!(ids.len() >= need, "{}: expected {need} tokens, got {}", path.display(), ids.len());
    Ok(FileRows { ids, batch: arguments.batch, seq: arguments.seq })
}

/// Smallest multiple of 128 that has every id.
fn vocabulary(ids: &[i32]) -> usize {
    (ids.iter().copied().max().unwrap_or(0) as usize + 1).next_multiple_of(128)
}

fn follow<B: LmBackend>(
    arguments: &Arguments,
    config: &TrainConfig,
    source: FileRows,
    device: &B::Device,
) -> Result<Log<'static>> {
    let (model, optimizer) = Optimizer::<B>::start(&arguments.model, config, device)?;
    let parts = Parts::new(model, optimizer, config, device.clone());
    let mut log =
        Log { steps: Vec::new(), before_last: &|| (), used: &|| None, used_after: Vec::new(), evaluated: None };
    let mut around = Surroundings {
        eval: &EvalSet::default(),
        save: &mut NoSave,
        observe: &mut log,
        interrupted: &AtomicBool::new(false),
    };
    let objective = NextToken { z_loss: 0.0, router: RouterWeights::NONE };
    train::<B>(&objective, Box::new(source), parts, &mut TrainState::default(), config, &mut around)?;
    Ok(log)
}
