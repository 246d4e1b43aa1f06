//! Policy optimisation over groups of sampled completions: GRPO and its relatives.
//!
//! A completion has one advantage `A`, its reward against its group ([`advantages`]). With the log-probability `π` of a token now
//! and `o` when it was sampled, `ρ = exp(π − o)`, or for whole sequences the exponential of the mean of `π − o`:
//! ```text
//! l = −min( min(ρ, δ)·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A )  +  β·kl         kl = (e^(r − π) − (r − π) − 1) · (1 or ρ)
//! ```
//! where `r` is the reference's log-probability. The sums, and what the loop divides them by over the whole step:
//! ```text
//! grpo     Σ_completions Σ_t l / tokens of it     completions
//! bnpo     Σ_t l / tokens of the micro-batch      micro-batches
//! dr_grpo  Σ_t l                                  completions · most tokens of a completion
//! dapo     Σ_t l                                  tokens
//! ```
//! A model with experts adds the weighted losses of its routers, which are means over tokens, times the units.
//!
//! # Numerics
//! f32 over the head's log-probabilities, which are f32 whatever the model is.
//!
//! # Source
//! Shao et al. 2024 (GRPO, `kl` of Schulman 2020); Yu et al. 2025 (DAPO); Liu et al. 2025 (Dr. GRPO); Zheng et al. 2025 (ratios of
//! sequences).

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use kernels_cubecl::{LmBackend, token_logprobs};
use model_core::{Decoder, Replay};
use serde::{Deserialize, Serialize};

use super::router::{self, RouterWeights};
use super::{LossSum, MetricSum, Objective, float_tensor, hidden_md, hidden_routed, int_tensor, to_host};
use crate::batch::Sample;
use crate::config::require;
use crate::{MicroBatch, TrainError};

/// Added to the deviation that rewards are divided by.
const EPSILON: f64 = 1e-4;

/// What the rewards of a group are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdvantageScale {
    /// The deviation within the group.
    #[default]
    Group,
    /// The deviation over all rewards of the step.
    Batch,
    /// Nothing.
    None,
}

/// Advantages of groups of rewards: each reward minus its group's mean, divided by the unbiased deviation plus 1e-4.
///
/// Equal rewards have advantages of exactly 0.
pub fn advantages(groups: &[Vec<f64>], scale: AdvantageScale) -> Vec<Vec<f64>> {
    let all: Vec<f64> = groups.concat();
    let of_group = |group: &Vec<f64>| {
        if !has_spread(group) {
            return vec![0.0; group.len()];
        }
        let mean = group.iter().sum::<f64>() / group.len() as f64;
        let divisor = match scale {
            AdvantageScale::Group => deviation(group) + EPSILON,
            AdvantageScale::Batch => deviation(&all) + EPSILON,
            AdvantageScale::None => 1.0,
        };
        group.iter().map(|reward| (reward - mean) / divisor).collect()
    };
    groups.iter().map(of_group).collect()
}

/// Whether any two rewards of a group differ.
pub fn has_spread(group: &[f64]) -> bool {
    group.iter().any(|reward| *reward != group[0])
}

/// The unbiased standard deviation; 0 of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// How the tokens of a step become one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Mean over completions of their means over tokens.
    Grpo,
    /// Mean over micro-batches of their means over tokens.
    Bnpo,
    /// Sum over tokens, divided by what the completions could have had at most.
    DrGrpo,
    /// Mean over the tokens of the step.
    Dapo,
}

/// What a ratio belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RatioLevel {
    /// Each token has its own.
    #[default]
    Token,
    /// All tokens of a completion share one.
    Sequence,
}

/// The objective of policy optimisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// How tokens become a loss.
    pub aggregation: Aggregation,
    /// What a ratio belongs to.
    pub level: RatioLevel,
    /// How far below 1 a ratio still counts.
    pub clip_low: f64,
    /// How far above 1 a ratio still counts.
    pub clip_high: f64,
    /// Largest ratio of the unclipped term.
    pub delta: Option<f64>,
    /// Strength of the pull to the reference.
    pub beta: f64,
    /// Whether the divergence is weighted by the ratio, which makes it unbiased for tokens sampled by older weights.
    pub kl_bias_correction: bool,
    /// Most tokens of a completion, for `dr_grpo`.
    pub max_completion: usize,
    /// Weights of the routers' losses.
    pub router: RouterWeights,
    /// Largest distance from 1 of a ratio whose token was sampled by the very weights that are trained.
    pub ratio_bound: f64,
    /// Largest distance between the log-probabilities of such a token when it was sampled and in training.
    pub sampler_bound: f64,
}

impl Policy {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.router.check()?;
        let real = |key: &str, value: f64, ok: bool, want: &str| {
            require(value.is_finite() && ok, || format!("key `loss.{key}`: expected {want}, got {value}"))
        };
        real("clip_low", self.clip_low, (0.0..1.0).contains(&self.clip_low), "a number in [0, 1)")?;
        real("clip_high", self.clip_high, self.clip_high >= 0.0, "a finite number of at least 0")?;
        real("beta", self.beta, self.beta >= 0.0, "a finite number of at least 0")?;
        let delta = self.delta.unwrap_or(f64::MAX);
        real("delta", delta, delta > 1.0 + self.clip_high, "a number above 1 + clip_high, or none")?;
        require(self.max_completion > 0, || "key `max_new_tokens`: expected at least 1, got 0".into())
    }

    /// What the tokens of a completion weigh in the sum.
    pub(crate) fn weight(&self, n_tokens: usize, n_batch: usize) -> f32 {
        match self.aggregation {
            Aggregation::Grpo => 1.0 / n_tokens.max(1) as f32,
            Aggregation::Bnpo => 1.0 / n_batch.max(1) as f32,
            Aggregation::DrGrpo | Aggregation::Dapo => 1.0,
        }
    }

    pub(crate) fn batch_units(&self, samples: &[Sample]) -> f64 {
        let n_tokens: usize = samples.iter().map(|sample| sample.old.len()).sum();
        match self.aggregation {
            Aggregation::Grpo => samples.len() as f64,
            Aggregation::Bnpo => f64::from(u8::from(n_tokens > 0)),
            Aggregation::DrGrpo => (samples.len() * self.max_completion) as f64,
            Aggregation::Dapo => n_tokens as f64,
        }
    }
}

/// Log-probabilities, advantages and weights of a micro-batch, one for each position; 0 where nothing is predicted.
///
/// The completions are the runs of `members`: the positions of each.
pub struct PolicyTokens<B: Backend> {
    /// `[m]`: log-probability when it was sampled.
    pub old: Tensor<B, 1>,
    /// `[m]`: log-probability under the reference.
    pub reference: Option<Tensor<B, 1>>,
    /// `[m]`: advantage of the completion.
    pub advantage: Tensor<B, 1>,
    /// Positions of each completion's tokens.
    pub members: Vec<Vec<usize>>,
}

/// Loss of each token, `[m]`, from its log-probability now.
///
/// # Shapes
/// All `[m]`.
pub fn token_losses<B: Backend>(config: &Policy, logprob: Tensor<B, 1>, tokens: PolicyTokens<B>) -> Tensor<B, 1> {
    let PolicyTokens { old, reference, advantage, members } = tokens;
    let log_ratio = logprob.clone() - old;
    let log_ratio = match config.level {
        RatioLevel::Token => log_ratio,
        RatioLevel::Sequence => spread_means(log_ratio, &members),
    };
    let ratio = log_ratio.exp();
    let free = match config.delta {
        Some(delta) => ratio.clone().clamp_max(delta),
        None => ratio.clone(),
    };
    let clipped = ratio.clone().clamp(1.0 - config.clip_low, 1.0 + config.clip_high);
    let loss = (free * advantage.clone()).min_pair(clipped * advantage).neg();
    let Some(reference) = reference.filter(|_| config.beta > 0.0) else { return loss };
    let gap = reference - logprob;
    let kl = (gap.clone().exp() - gap).sub_scalar(1.0);
    let kl = if config.kl_bias_correction { kl * ratio } else { kl };
    loss + kl.mul_scalar(config.beta)
}

/// The mean over each completion in the place of its tokens; 0 elsewhere.
fn spread_means<B: Backend>(values: Tensor<B, 1>, members: &[Vec<usize>]) -> Tensor<B, 1> {
    let ([m], s) = (values.dims(), members.len());
    let (mut mean, mut spread) = (vec![0.0f32; s * m], vec![0.0f32; s * m]);
    for (row, positions) in members.iter().enumerate() {
        for &at in positions {
            mean[row * m + at] = 1.0 / positions.len() as f32;
            spread[at * s + row] = 1.0;
        }
    }
    let device = values.device();
    let matrix = |values: Vec<f32>, dims: [usize; 2]| {
        Tensor::<B, 2>::from_data(TensorData::new(values, dims), (&device, DType::F32))
    };
    matrix(spread, [m, s]).matmul(matrix(mean, [s, m]).matmul(values.reshape([m, 1]))).reshape([m])
}

/// Log-probability of every sampled token by completion, without a gradient, by the forward pass of training.
///
/// # Errors
/// When the batch has no completions.
pub fn sample_logprobs<B: LmBackend>(
    model: &Decoder<B>,
    batch: &MicroBatch,
    device: &B::Device,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let (targets, _) = batch.targets();
    let members = members(batch, &targets)?;
    let x_md = hidden_md(model, batch, &Replay::default(), device);
    let all = to_host(token_logprobs(x_md, model.head(), int_tensor(&targets, device)));
    Ok(members.iter().map(|positions| positions.iter().map(|&at| all[at]).collect()).collect())
}

/// The positions that predict a sampled token, by completion.
fn members(batch: &MicroBatch, targets: &[i32]) -> Result<Vec<Vec<usize>>, TrainError> {
    let of = |sample: &Sample| sample.tokens.clone().filter(|&at| targets[at] >= 0).collect::<Vec<_>>();
    let members: Vec<Vec<usize>> = batch.samples.iter().map(of).collect();
    let problem = "no completions in the batch, or one without a sampled token; let the stage sample them";
    if members.is_empty() || members.iter().any(Vec::is_empty) {
        return Err(TrainError::Batch { problem: problem.into() });
    }
    Ok(members)
}

/// A micro-batch on the host, one value for each position.
struct HostTokens {
    targets: Vec<i32>,
    members: Vec<Vec<usize>>,
    old: Vec<f32>,
    reference: Option<Vec<f32>>,
    advantage: Vec<f32>,
    weights: Vec<f32>,
}

impl HostTokens {
    fn new(config: &Policy, batch: &MicroBatch) -> Result<Self, TrainError> {
        let (targets, _) = batch.targets();
        let members = members(batch, &targets)?;
        let m = targets.len();
        let n_all: usize = members.iter().map(Vec::len).sum();
        let mut tokens = Self {
            old: vec![0.0; m],
            reference: None,
            advantage: vec![0.0; m],
            weights: vec![0.0; m],
            targets,
            members,
        };
        let mut references = vec![0.0; m];
        for (sample, positions) in batch.samples.iter().zip(&tokens.members) {
            let fits = |values: &[f32]| values.len() == positions.len();
            let known = sample.reference.as_deref().is_none_or(fits);
            if !fits(&sample.old) || !known {
                let (n, got) = (positions.len(), sample.old.len());
                return Err(TrainError::Batch {
                    problem: format!(
                        "a completion of {n} sampled tokens has {got} log-probabilities; let the stage sample it again"
                    ),
                });
            }
            for (i, &at) in positions.iter().enumerate() {
                tokens.old[at] = sample.old[i];
                tokens.advantage[at] = sample.advantage;
                tokens.weights[at] = config.weight(positions.len(), n_all);
                references[at] = sample.reference.as_ref().map_or(0.0, |reference| reference[i]);
            }
        }
        let has_reference = batch.samples.iter().all(|sample| sample.reference.is_some());
        if config.beta > 0.0 && !has_reference {
            return Err(TrainError::Batch {
                problem: "reference log-probabilities are missing; with beta above 0 the reference has to score every completion".into(),
            });
        }
        tokens.reference = has_reference.then_some(references);
        Ok(tokens)
    }

    fn on_device<B: Backend>(&self, device: &B::Device) -> PolicyTokens<B> {
        PolicyTokens {
            old: float_tensor(&self.old, device),
            reference: self.reference.as_ref().map(|reference| float_tensor(reference, device)),
            advantage: float_tensor(&self.advantage, device),
            members: self.members.clone(),
        }
    }

    /// The weighted sum of the losses, `[1]`.
    fn loss<B: Backend>(&self, config: &Policy, logprob: Tensor<B, 1>, device: &B::Device) -> Tensor<B, 1> {
        (token_losses(config, logprob, self.on_device(device)) * float_tensor(&self.weights, device)).sum()
    }

    /// What is logged, from the log-probabilities `[m]` now.
    fn metrics(&self, config: &Policy, samples: &[Sample], logprobs: &[f32]) -> Vec<MetricSum> {
        let (mut kl, mut low, mut high, mut n) = (0.0, 0.0, 0.0, 0.0);
        let (mut deviation, mut beyond, mut sampler, mut sampler_beyond, mut fresh) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let count = |on: bool| f64::from(u8::from(on));
        for (sample, positions) in samples.iter().zip(&self.members) {
            let gap = |at: usize| f64::from(logprobs[at]) - f64::from(self.old[at]);
            let mean = positions.iter().map(|&at| gap(at)).sum::<f64>() / positions.len() as f64;
            for (i, &at) in positions.iter().enumerate() {
                let ratio = match config.level {
                    RatioLevel::Token => gap(at).exp(),
                    RatioLevel::Sequence => mean.exp(),
                };
                low += count(ratio < 1.0 - config.clip_low && sample.advantage < 0.0);
                high += count(ratio > 1.0 + config.clip_high && sample.advantage > 0.0);
                n += 1.0;
                if let Some(reference) = &self.reference {
                    let gap = f64::from(reference[at]) - f64::from(logprobs[at]);
                    kl += gap.exp() - gap - 1.0;
                }
                if sample.age == 0 {
                    let distance = (gap(at).exp() - 1.0).abs();
                    let apart = (f64::from(logprobs[at]) - f64::from(sample.sampled[i])).abs();
                    (deviation, sampler, fresh) = (deviation + distance, sampler + apart, fresh + 1.0);
                    beyond += count(distance.is_nan() || distance > config.ratio_bound);
                    sampler_beyond += count(apart.is_nan() || apart > config.sampler_bound);
                }
            }
        }
        let kl = self.reference.is_some().then(|| MetricSum::new("kl", kl, n));
        let rest = [
            MetricSum::new("clip_low", low, n),
            MetricSum::new("clip_high", high, n),
            MetricSum::new(RATIO_DEVIATION, deviation, fresh),
            MetricSum::new(RATIO_BEYOND, beyond, fresh),
            MetricSum::new(SAMPLER_DEVIATION, sampler, fresh),
            MetricSum::new(SAMPLER_BEYOND, sampler_beyond, fresh),
        ];
        kl.into_iter().chain(rest).collect()
    }
}

/// Metric: distance of ratios from 1 right after sampling.
pub const RATIO_DEVIATION: &str = "ratio_deviation";
/// Metric: share of tokens whose ratio was beyond [`Policy::ratio_bound`] right after sampling.
pub const RATIO_BEYOND: &str = "ratio_beyond";
/// Metric: distance between log-probabilities of the sampler and of training.
pub const SAMPLER_DEVIATION: &str = "sampler_deviation";
/// Metric: share of tokens with that distance beyond [`Policy::sampler_bound`].
pub const SAMPLER_BEYOND: &str = "sampler_beyond";

impl<B: LmBackend> Objective<B> for Policy {
    fn units(&self, batch: &MicroBatch) -> f64 {
        self.batch_units(&batch.samples)
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<B>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &B::Device,
    ) -> Result<LossSum<B>, TrainError> {
        let tokens = HostTokens::new(self, batch)?;
        let (x_md, routed) = hidden_routed(model, batch, replay, device);
        let logprob = token_logprobs(x_md, model.head(), int_tensor(&tokens.targets, device));
        let mut values = logprob.clone().inner();
        let mut sum = tokens.loss(self, logprob, device);
        if let Some(router) = self.router.sum(&routed, batch, self.batch_units(&batch.samples), device)? {
            sum = router.sum.into_iter().fold(sum, |sum, more| sum + more);
            values = Tensor::cat(vec![values, router.values], 0);
        }
        let (config, samples) = (*self, batch.samples.clone());
        let metrics = move |values: &[f32]| {
            let (logprobs, routers) = values.split_at(tokens.targets.len());
            [tokens.metrics(&config, &samples, logprobs), router::metrics(routers)].concat()
        };
        Ok(LossSum { sum, values, metrics: Box::new(metrics) })
    }

    fn evaluate(
        &self,
        model: &Decoder<B>,
        batch: &MicroBatch,
        device: &B::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        let tokens = HostTokens::new(self, batch)?;
        let x_md = hidden_md(model, batch, &Replay::default(), device);
        let logprob = token_logprobs(x_md, model.head(), int_tensor(&tokens.targets, device));
        let logprobs = to_host(logprob.clone());
        let loss = f64::from(to_host(tokens.loss(self, logprob, device))[0]);
        let first = MetricSum::new("loss", loss, self.batch_units(&batch.samples));
        Ok([vec![first], tokens.metrics(self, &batch.samples, &logprobs)].concat())
    }
}
