//! Preference optimisation: DPO and its relatives over pairs of answers.
//!
//! With `h = (π_c − r_c) − (π_r − r_r)` over summed answer log-probabilities of policy π and reference r:
//! sigmoid `−log σ(βh)`; conservative (label smoothing ε) `−(1−ε) log σ(βh) − ε log σ(−βh)`; robust
//! `(−(1−ε) log σ(βh) + ε log σ(−βh)) / (1−2ε)`; hinge `max(0, 1 − βh)`; IPO `(h − 1/(2β))²`, where each log-ratio is
//! divided by the answer's length first when `length_normalised` says so. Units are pairs. A model with experts adds the
//! weighted losses of its routers, which are means over tokens, times the units.
//!
//! Sources: Rafailov et al. 2023 (DPO); Mitchell 2023 (conservative); Chowdhury et al. 2024 (robust); Zhao et al. 2023
//! (hinge); Azar et al. 2023 (IPO).

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, activation::log_sigmoid, backend::Backend};
use kernels_cubecl::{LmBackend, token_logprobs, token_stats};
use model_core::{Decoder, Replay};
use serde::{Deserialize, Serialize};

use super::router::{self, RouterWeights};
use super::{LossSum, MetricSum, Objective, float_tensor, hidden_md, hidden_routed, int_tensor, to_host};
use crate::{MicroBatch, TrainError};

/// Which loss over pairs; every variant names all it needs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum PreferenceLoss {
    /// Bradley-Terry likelihood; `label_smoothing` above 0 makes it conservative.
    Sigmoid {
        /// Share of pairs assumed to be labelled the wrong way round.
        label_smoothing: f64,
    },
    /// Unbiased under label noise.
    Robust {
        /// Share of pairs assumed to be labelled the wrong way round, below one half.
        label_smoothing: f64,
    },
    /// Margin loss.
    Hinge,
    /// Squared distance to a fixed margin.
    Ipo {
        /// Whether log-ratios are divided by the answer's length first.
        length_normalised: bool,
    },
}

/// The objective of the preference stages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// Loss.
    pub loss: PreferenceLoss,
    /// Strength of the pull to the reference.
    pub beta: f64,
    /// Weights of the routers' losses.
    pub router: RouterWeights,
}

impl Preference {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        let beta = self.beta;
        self.router.check()?;
        crate::config::require(beta.is_finite() && beta > 0.0, || {
            format!("key `objective.beta`: expected a finite number above 0, got {beta}")
        })?;
        if let PreferenceLoss::Sigmoid { label_smoothing } | PreferenceLoss::Robust { label_smoothing } = self.loss {
            crate::config::require((0.0..0.5).contains(&label_smoothing), || {
                format!("key `objective.loss.label_smoothing`: expected a number in [0, 0.5), got {label_smoothing}")
            })?;
        }
        Ok(())
    }
}

/// Loss of each pair from the log-ratios `π − r` of both answers and their lengths.
///
/// # Shapes
/// All `[p]`.
pub fn pair_losses<B: Backend>(
    config: &Preference,
    chosen_ratio: Tensor<B, 1>,
    rejected_ratio: Tensor<B, 1>,
    lengths: [Tensor<B, 1>; 2],
) -> Tensor<B, 1> {
    let beta = config.beta;
    let scaled = |sign: f64, h: Tensor<B, 1>| log_sigmoid(h.mul_scalar(sign * beta));
    match config.loss {
        PreferenceLoss::Sigmoid { label_smoothing: eps } => {
            let h = chosen_ratio - rejected_ratio;
            let wanted = scaled(1.0, h.clone()).mul_scalar(-(1.0 - eps));
            if eps == 0.0 { wanted } else { wanted - scaled(-1.0, h).mul_scalar(eps) }
        }
        PreferenceLoss::Robust { label_smoothing: eps } => {
            let h = chosen_ratio - rejected_ratio;
            let sum = scaled(-1.0, h.clone()).mul_scalar(eps) - scaled(1.0, h).mul_scalar(1.0 - eps);
            sum.div_scalar(1.0 - 2.0 * eps)
        }
        PreferenceLoss::Hinge => (chosen_ratio - rejected_ratio).mul_scalar(-beta).add_scalar(1.0).clamp_min(0.0),
        PreferenceLoss::Ipo { length_normalised } => {
            let [chosen_length, rejected_length] = lengths;
            let h = if length_normalised {
                chosen_ratio / chosen_length - rejected_ratio / rejected_length
            } else {
                chosen_ratio - rejected_ratio
            };
            h.sub_scalar(1.0 / (2.0 * beta)).powi_scalar(2)
        }
    }
}

/// Matrix `[2p, m]` that sums token values into chosen answers (first p rows) and rejected answers.
fn gather_matrix<B: Backend>(batch: &MicroBatch, targets: &[i32], device: &B::Device) -> (Tensor<B, 2>, Vec<f32>) {
    let (p, m) = (batch.pairs.len(), targets.len());
    let mut values = vec![0.0f32; 2 * p * m];
    let mut lengths = vec![0.0f32; 2 * p];
    for (i, pair) in batch.pairs.iter().enumerate() {
        for (row, range) in [(i, &pair.chosen), (p + i, &pair.rejected)] {
            for at in range.clone().filter(|&at| targets[at] >= 0) {
                values[row * m + at] = 1.0;
                lengths[row] += 1.0;
            }
        }
    }
    (Tensor::from_data(TensorData::new(values, [2 * p, m]), (device, DType::F32)), lengths)
}

/// Summed answer log-probabilities of every pair without a gradient: `[chosen, rejected]` per pair.
///
/// # Errors
/// When the batch has no pairs.
pub fn reference_logprobs<B: LmBackend>(
    model: &Decoder<B>,
    batch: &MicroBatch,
    device: &B::Device,
) -> Result<Vec<[f32; 2]>, TrainError> {
    require_pairs(batch)?;
    let (targets, _) = batch.targets();
    let stats =
        token_stats(hidden_md(model, batch, &Replay::default(), device), model.head(), int_tensor(&targets, device));
    let (sums, lengths) = gather_matrix::<B>(batch, &targets, device);
    require_answers(&lengths)?;
    let m = targets.len();
    let sums = to_host(sums.matmul(stats.logprob.reshape([m, 1])));
    let p = batch.pairs.len();
    Ok((0..p).map(|i| [sums[i], sums[p + i]]).collect())
}

fn require_pairs(batch: &MicroBatch) -> Result<(), TrainError> {
    let problem = "no preference pairs in the batch; give the stage prompt/chosen/rejected data";
    if batch.pairs.is_empty() { Err(TrainError::Batch { problem: problem.into() }) } else { Ok(()) }
}

fn require_answers(lengths: &[f32]) -> Result<(), TrainError> {
    let problem = "a pair has an answer without a token; drop it from the preference data";
    if lengths.contains(&0.0) { Err(TrainError::Batch { problem: problem.into() }) } else { Ok(()) }
}

/// The reference values as `[2p]`, chosen first.
fn reference(batch: &MicroBatch) -> Result<Vec<f32>, TrainError> {
    let of = |side: usize| batch.pairs.iter().map(move |pair| pair.reference.map(|r| r[side]));
    of(0).chain(of(1)).collect::<Option<Vec<f32>>>().ok_or_else(|| TrainError::Batch {
        problem: "reference log-probabilities are missing; every preference loss, IPO included, needs them: compute them with the initial model first".into(),
    })
}

/// The metrics of a batch under TRL's names, from policy and reference sums `[2p]`.
fn metrics(policy: &[f32], reference: &[f32], beta: f64) -> Vec<MetricSum> {
    let p = policy.len() / 2;
    let reward = |i: usize| beta * (f64::from(policy[i]) - f64::from(reference[i]));
    let sum = |f: &dyn Fn(usize) -> f64| (0..p).map(f).sum::<f64>();
    let units = p as f64;
    vec![
        MetricSum::new("rewards/chosen", sum(&|i| reward(i)), units),
        MetricSum::new("rewards/rejected", sum(&|i| reward(p + i)), units),
        MetricSum::new("rewards/accuracies", sum(&|i| f64::from(u8::from(reward(i) > reward(p + i)))), units),
        MetricSum::new("rewards/margins", sum(&|i| reward(i) - reward(p + i)), units),
        MetricSum::new("logps/chosen", sum(&|i| f64::from(policy[i])), units),
        MetricSum::new("logps/rejected", sum(&|i| f64::from(policy[p + i])), units),
    ]
}

impl Preference {
    /// Losses `[p]` from policy sums `[2p, 1]`.
    fn losses<B: Backend>(
        &self,
        policy: Tensor<B, 2>,
        reference: &[f32],
        lengths: &[f32],
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let p = reference.len() / 2;
        let ratio = policy.reshape([2 * p]) - float_tensor::<B>(reference, device);
        let lengths = [float_tensor::<B>(&lengths[..p], device), float_tensor::<B>(&lengths[p..], device)];
        pair_losses(self, ratio.clone().narrow(0, 0, p), ratio.narrow(0, p, p), lengths)
    }
}

impl<B: LmBackend> Objective<B> for Preference {
    fn units(&self, batch: &MicroBatch) -> f64 {
        batch.pairs.len() as f64
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<B>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &B::Device,
    ) -> Result<LossSum<B>, TrainError> {
        require_pairs(batch)?;
        let reference = reference(batch)?;
        let (targets, _) = batch.targets();
        let (x_md, routed) = hidden_routed(model, batch, replay, device);
        let logprobs = token_logprobs(x_md, model.head(), int_tensor(&targets, device));
        let (sums, lengths) = gather_matrix::<Autodiff<B>>(batch, &targets, device);
        require_answers(&lengths)?;
        let m = targets.len();
        let policy = sums.matmul(logprobs.reshape([m, 1]));
        let mut values = policy.clone().inner().reshape([lengths.len()]);
        let mut sum = self.losses(policy, &reference, &lengths, device).sum();
        if let Some(router) = self.router.sum(&routed, batch, batch.pairs.len() as f64, device)? {
            sum = router.sum.into_iter().fold(sum, |sum, more| sum + more);
            values = Tensor::cat(vec![values, router.values], 0);
        }
        let beta = self.beta;
        let metrics = move |values: &[f32]| {
            let (policy, routers) = values.split_at(reference.len());
            [metrics(policy, &reference, beta), router::metrics(routers)].concat()
        };
        Ok(LossSum { sum, values, metrics: Box::new(metrics) })
    }

    fn evaluate(
        &self,
        model: &Decoder<B>,
        batch: &MicroBatch,
        device: &B::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        let reference = reference(batch)?;
        let sums = reference_logprobs(model, batch, device)?;
        let policy: Vec<f32> = sums.iter().map(|s| s[0]).chain(sums.iter().map(|s| s[1])).collect();
        let (_, lengths) = gather_matrix::<B>(batch, &batch.targets().0, device);
        let policy_tensor = float_tensor::<B>(&policy, device).reshape([policy.len(), 1]);
        let losses = to_host(self.losses(policy_tensor, &reference, &lengths, device));
        let loss = losses.iter().map(|&l| f64::from(l)).sum();
        let mut all = vec![MetricSum::new("loss", loss, losses.len() as f64)];
        all.extend(metrics(&policy, &reference, self.beta));
        Ok(all)
    }
}
