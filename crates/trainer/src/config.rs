//! Configuration: TOML in, checked values out.
//!
//! Unknown keys, duplicate keys and values out of range are errors that name the key. `--set key=value` changes only the
//! keys that were given. There are no hidden defaults: what runs is what [`TrainConfig`] says, and it is stored with the run.

use std::fmt;
use std::path::Path;

use figment::Figment;
use figment::providers::{Format, Toml};
use kernels_cubecl::{Device, Fp8, KernelError, Precision, Shelf};
use model_core::Replay;
use model_core::hf::FloatType;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::schedule::{LearningRate, Schedule};

/// Largest configuration file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What the loop and the optimizer need to know; a stage's configuration embeds it as `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps that shape the schedule.
    pub max_steps: u64,
    /// Step after which the run ends early, `max_steps` when absent.
    #[serde(default)]
    pub stop_after: Option<u64>,
    /// Tokens (row length times rows) of one optimizer step.
    pub tokens_per_step: u64,
    /// Tokens of one forward and backward pass; must divide `tokens_per_step`.
    pub tokens_per_micro_batch: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Final learning rate.
    pub min_lr: f64,
    /// Shape of the schedule.
    pub schedule: Schedule,
    /// Linear warm-up.
    pub warmup_steps: u64,
    /// Final descent, for `wsd`.
    #[serde(default)]
    pub decay_steps: u64,
    /// AdamW's first-moment decay.
    pub beta1: f64,
    /// AdamW's second-moment decay.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Largest global gradient norm.
    pub grad_clip: f64,
    /// Seed of the data order and of dropout.
    pub seed: u64,
    /// Steps between evaluations; 0 evaluates only at the end.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 saves only at the end.
    pub save_every: u64,
    /// Steps between console lines.
    pub log_every: u64,
    /// Checkpoints kept besides the best one.
    pub keep_last: usize,
    /// Run blocks again in the backward pass instead of keeping their activations: all, none, or the first ones.
    pub recompute: Blocks,
    /// Skipped steps in a row before the run stops.
    pub max_bad_steps: u64,
    /// Peak arithmetic of the device in TFLOP/s, for MFU; 0 leaves MFU out.
    pub peak_tflops: f64,
    /// Element type of weights, activations and gradients.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Arithmetic,
    /// What keeps small updates of bf16 weights from being lost; means nothing in f32.
    #[serde(default, skip_serializing_if = "is_default")]
    pub master: MasterKind,
    /// How the optimizer stores its moments.
    #[serde(default, skip_serializing_if = "is_default")]
    pub moments: MomentsKind,
    /// Where the scales of FP8 products come from; means nothing in other precisions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fp8_scaling: Fp8Scaling,
    /// Passes that a delayed scale looks back on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fp8_history: HistoryLength,
    /// Keep the inputs of recomputed blocks in the host's memory instead of the device's: all, none, or the first ones.
    #[serde(default, skip_serializing_if = "is_default")]
    pub offload: Blocks,
}

/// Which blocks something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "true, false or a number of blocks")]
pub enum Blocks {
    /// All or none.
    All(bool),
    /// So many, counted from the first; more than there are is all.
    First(usize),
}

impl Blocks {
    /// How many of `n` blocks.
    pub fn of(self, n: usize) -> usize {
        match self {
            Self::All(true) => n,
            Self::All(false) => 0,
            Self::First(first) => first.min(n),
        }
    }
}

impl Default for Blocks {
    fn default() -> Self {
        Self::All(false)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(all) => all.fmt(f),
            Self::First(n) => n.fmt(f),
        }
    }
}

impl From<bool> for Blocks {
    fn from(all: bool) -> Self {
        Self::All(all)
    }
}

/// Keys that say nothing new stay out of the lineage, so that it has what the file has.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Arithmetic of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// Everything in 32 bits.
    #[default]
    F32,
    /// Weights, activations and gradients in bf16, sums in f32; CUDA only.
    Bf16,
    /// As `bf16`, with the operands of the blocks' products in FP8, scaled as [`Fp8Scaling`] says; it needs a card with FP8 units.
    Fp8,
}

impl Arithmetic {
    /// Element type of the backend.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 | Self::Fp8 => Precision::Bf16,
        }
    }

    /// The device with this arithmetic.
    ///
    /// # Errors
    /// As [`Device::with`]; [`KernelError::NoFp8`] for FP8 on a device whose matrix units do not have it.
    pub fn on(self, device: Device) -> Result<Device, KernelError> {
        let device = device.with(self.precision())?;
        if self == Self::Fp8 {
            device.check_fp8()?;
        }
        Ok(device)
    }

    /// How the products of the blocks are done in training.
    pub fn fp8(self) -> Option<Fp8> {
        (self == Self::Fp8).then(Fp8::default)
    }

    /// Element type of weights on disk.
    pub fn float_type(self) -> FloatType {
        match self {
            Self::F32 => FloatType::F32,
            Self::Bf16 | Self::Fp8 => FloatType::Bf16,
        }
    }
}

/// What is kept of a bf16 weight besides itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasterKind {
    /// The lower 16 bits of an exact f32 weight.
    #[default]
    Remainder,
    /// Nothing: updates are rounded stochastically.
    Stochastic,
}

/// How moments are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentsKind {
    /// In 32 bits.
    #[default]
    #[serde(rename = "f32")]
    Full,
    /// In 8 bits with a scale per block of 256.
    #[serde(rename = "8bit")]
    Packed,
}

/// Where the scale of an FP8 tensor comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8Scaling {
    /// From its own largest magnitude, which takes a pass over it before the rounding.
    #[default]
    Current,
    /// From its largest magnitude in the last passes, in one pass over it; what is larger now is rounded to the largest number of
    /// the format.
    Delayed,
}

/// A number of forward and backward passes, one for each micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HistoryLength(pub usize);

impl HistoryLength {
    /// Longest history.
    pub const MAX: usize = 1024;
}

impl Default for HistoryLength {
    fn default() -> Self {
        Self(16)
    }
}

impl TrainConfig {
    /// Cross-field checks, before anything is allocated.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        let real = |key: &str, value: f64, ok: bool, want: &str| {
            require(value.is_finite() && ok, || format!("key `train.{key}`: expected {want}, got {value}"))
        };
        real("lr", self.lr, self.lr > 0.0, "a finite number above 0")?;
        real("min_lr", self.min_lr, self.min_lr >= 0.0 && self.min_lr <= self.lr, "a number from 0 to lr")?;
        real("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "a number in [0, 1)")?;
        real("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "a number in [0, 1)")?;
        real("eps", self.eps, self.eps > 0.0, "a finite number above 0")?;
        real("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "a finite number of at least 0")?;
        real("grad_clip", self.grad_clip, self.grad_clip > 0.0, "a finite number above 0")?;
        real("peak_tflops", self.peak_tflops, self.peak_tflops >= 0.0, "a finite number of at least 0")?;
        let whole = |key: &str, value: u64, ok: bool, want: &str| {
            require(ok, || format!("key `train.{key}`: expected {want}, got {value}"))
        };
        whole("max_steps", self.max_steps, (1..1 << 40).contains(&self.max_steps), "1 to 2^40 steps")?;
        whole("warmup_steps", self.warmup_steps, self.warmup_steps < self.max_steps, "less than max_steps")?;
        let decay_max = self.max_steps - self.warmup_steps;
        whole("decay_steps", self.decay_steps, self.decay_steps <= decay_max, "at most max_steps - warmup_steps")?;
        if self.schedule == Schedule::Wsd {
            whole("decay_steps", self.decay_steps, self.decay_steps > 0, "at least 1 for the wsd schedule")?;
        }
        let micro = self.tokens_per_micro_batch;
        let fits = micro > 0 && self.tokens_per_step > 0 && self.tokens_per_step.is_multiple_of(micro);
        whole("tokens_per_micro_batch", micro, fits, "a divisor of tokens_per_step")?;
        whole("log_every", self.log_every, self.log_every > 0, "at least 1")?;
        whole("keep_last", self.keep_last as u64, self.keep_last > 0, "at least 1")?;
        whole("max_bad_steps", self.max_bad_steps, self.max_bad_steps > 0, "at least 1")?;
        if let Some(stop) = self.stop_after {
            whole("stop_after", stop, (1..=self.max_steps).contains(&stop), "1 to max_steps")?;
        }
        let (recompute, offload) = (self.recompute, self.offload);
        let enough = match offload {
            Blocks::All(all) => !all || recompute.of(1) == 1,
            Blocks::First(n) => n <= recompute.of(usize::MAX),
        };
        require(enough, || {
            format!(
                "key `train.offload`: expected at most the blocks that are recomputed, got {offload} with \
                 train.recompute = {recompute}; set train.recompute = true, or offload fewer blocks"
            )
        })?;
        self.check_fp8()
    }

    /// The keys of FP8 scaling, which say nothing without FP8 products.
    fn check_fp8(&self) -> Result<(), TrainError> {
        let HistoryLength(n) = self.fp8_history;
        let delayed = self.fp8_scaling == Fp8Scaling::Delayed;
        require(!delayed || self.precision == Arithmetic::Fp8, || {
            "key `train.fp8_scaling`: expected \"current\", because only precision = \"fp8\" has scales, got \"delayed\"".to_owned()
        })?;
        require((1..=HistoryLength::MAX).contains(&n), || {
            format!("key `train.fp8_history`: expected 1 to {} passes, got {n}", HistoryLength::MAX)
        })?;
        require(delayed || self.fp8_history == HistoryLength::default(), || {
            format!(
                "key `train.fp8_history`: expected none, because only fp8_scaling = \"delayed\" has a history, got {n}"
            )
        })
    }

    /// Passes of the history that FP8 scales come from; `None` where they come from the tensors now, or there are none.
    pub fn history(&self) -> Option<usize> {
        let delayed = self.precision == Arithmetic::Fp8 && self.fp8_scaling == Fp8Scaling::Delayed;
        delayed.then_some(self.fp8_history.0)
    }

    /// Which of `n_layers` blocks run again in the backward pass, with a shelf for the inputs of the offloaded ones.
    pub fn replay(&self, n_layers: usize) -> Replay {
        let blocks = self.recompute.of(n_layers);
        Replay { blocks, offloaded: self.offload.of(blocks), shelf: Shelf::default() }
    }

    /// The step at which the run ends.
    pub fn last_step(&self) -> u64 {
        self.stop_after.unwrap_or(self.max_steps)
    }

    /// The schedule.
    pub fn learning_rate(&self) -> LearningRate {
        LearningRate {
            schedule: self.schedule,
            lr: self.lr,
            min_lr: self.min_lr,
            warmup_steps: self.warmup_steps,
            decay_steps: self.decay_steps,
            max_steps: self.max_steps,
        }
    }

    /// Rows of one optimizer step and of one micro-batch for rows of `seq_len` tokens.
    ///
    /// # Errors
    /// When `seq_len` does not divide the token counts.
    pub fn rows(&self, seq_len: usize) -> Result<(usize, usize), TrainError> {
        let seq = seq_len as u64;
        let fits = seq > 0 && self.tokens_per_micro_batch.is_multiple_of(seq);
        require(fits, || {
            let micro = self.tokens_per_micro_batch;
            format!("key `train.tokens_per_micro_batch`: expected a multiple of the row length {seq_len}, got {micro}")
        })?;
        Ok(((self.tokens_per_step / seq) as usize, (self.tokens_per_micro_batch / seq) as usize))
    }
}

/// `Ok` when `ok`, else a configuration error.
///
/// # Errors
/// When `ok` is false.
pub fn require(ok: bool, problem: impl FnOnce() -> String) -> Result<(), TrainError> {
    if ok { Ok(()) } else { Err(TrainError::Config { origin: "values".into(), problem: problem() }) }
}

/// Reads a TOML file and lays `--set key=value` options over it.
///
/// # Errors
/// A file that cannot be read or parsed, an unknown or duplicate key, a value of the wrong type: by file and key.
pub fn load<T: DeserializeOwned>(path: &Path, sets: &[String]) -> Result<T, TrainError> {
    let origin = path.display().to_string();
    let bytes = gates::artifact::read_bounded(path, MAX_CONFIG_BYTES)?;
    let text = String::from_utf8(bytes)
        .map_err(|e| TrainError::Config { origin: origin.clone(), problem: format!("not UTF-8: {e}") })?;
    // Parsed once on its own, because only the plain parser reports duplicate keys with their line.
    toml::from_str::<toml::Table>(&text)
        .map_err(|e| TrainError::Config { origin: origin.clone(), problem: e.to_string() })?;
    let mut figment = Figment::from(Toml::string(&text));
    for set in sets {
        figment = figment.merge(Toml::string(&set_to_toml(set)?));
    }
    figment.extract().map_err(|e| {
        let problems: Vec<String> = e.into_iter().map(|e| format!("key `{}`: {}", e.path.join("."), e.kind)).collect();
        let over = if sets.is_empty() { origin } else { format!("{origin} with --set {}", sets.join(" --set ")) };
        TrainError::Config { origin: over, problem: problems.join("; ") }
    })
}

/// `a.b=value` as TOML; a value that is not TOML by itself is taken as a string.
fn set_to_toml(set: &str) -> Result<String, TrainError> {
    let wrong = |problem: &str| TrainError::Config { origin: format!("--set {set}"), problem: problem.into() };
    let (key, value) = set.split_once('=').ok_or_else(|| wrong("expected key=value"))?;
    let key = key.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if key.is_empty() || !key.chars().all(plain) {
        return Err(wrong("expected a dotted key of letters, digits, `_` and `-`"));
    }
    if value.contains(['\n', '\r']) {
        return Err(wrong("expected a value on one line; give every key its own --set"));
    }
    let literal = format!("{key} = {}", value.trim());
    if toml::from_str::<toml::Table>(&literal).is_ok_and(|table| table.len() == 1) {
        return Ok(literal);
    }
    Ok(format!("{key} = {}", toml::Value::String(value.trim().into())))
}

#[cfg(test)]
mod tests;
