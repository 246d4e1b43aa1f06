//! Keys of the stage.

use std::path::PathBuf;

use model_core::hf::PackedExperts;
use serde::{Deserialize, Serialize};
use trainer::adapter::AdapterKeys;
use trainer::config::{Arithmetic, is_default, require};
use trainer::lineage::EntryGate;
use trainer::objective::{AdvantageScale, Aggregation, Policy, RatioLevel, RouterWeights};
use trainer::tune::Tuning;
use trainer::{TrainConfig, TrainError};

use crate::rollout::{JudgeKeys, PromptKeys};
use crate::stages::{adapter_tuning, check_adapter};

/// Configuration of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpoConfig {
    /// Folder of the stage: `runs/<run>/grpo`.
    pub dir: PathBuf,
    /// Model folder to start from; it is the reference too.
    pub model: PathBuf,
    /// The gate that the model must have passed.
    pub gate: EntryGate,
    /// Folder of task folders.
    pub tasks: PathBuf,
    /// Ids of tasks that cannot be solved, one a line: passes are reported as cheating and never rewarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted: Option<PathBuf>,
    /// The judge.
    pub judge: JudgeKeys,
    /// What the model is told of a task.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prompt: PromptKeys,
    /// Groups of a rollout.
    pub prompts_per_step: usize,
    /// Episodes of a group.
    pub group_size: usize,
    /// Updates for each rollout.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub iterations: u64,
    /// Row length, which is the longest episode too.
    pub seq_len: usize,
    /// Most tokens of one message, by step.
    pub max_new_tokens: Curriculum,
    /// Most calls and answers of an episode, by step.
    pub max_turns: Curriculum,
    /// How tokens are chosen.
    pub sampling: SamplingKeys,
    /// The loss.
    pub loss: LossKeys,
    /// The watch over the distance to the reference.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kl: KlKeys,
    /// Rollouts in a row without any group to learn from before the run stops.
    pub max_idle_steps: u64,
    /// Largest logit difference between adapter and merged model, in f32; none where all weights train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_max_diff: Option<f64>,
    /// In which form the weights of experts stay: `true` or `"mxfp4"` as the model folder has them, `"fp8"` rounded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub packed_experts: PackedExperts,
    /// Weights of the routers' losses, for models with experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub router: RouterWeights,
    /// The adapter; without this table all weights train. The reference is the model without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterKeys>,
    /// Loop and optimizer.
    pub train: TrainConfig,
}

fn one() -> u64 {
    1
}

fn is_one(n: &u64) -> bool {
    *n == 1
}

/// A number that changes at given steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, or a list of { from, value }")]
pub enum Curriculum {
    /// The same at every step.
    Always(u64),
    /// From step to step.
    Phases(Vec<Phase>),
}

/// A value from a step on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Completed steps from which on it holds.
    pub from: u64,
    /// The value.
    pub value: u64,
}

impl Curriculum {
    /// The value of the step that follows `step` completed ones.
    pub fn at(&self, step: u64) -> u64 {
        match self {
            Self::Always(value) => *value,
            Self::Phases(phases) => phases.iter().rev().find(|phase| phase.from <= step).map_or(0, |phase| phase.value),
        }
    }

    /// The largest value.
    pub fn largest(&self) -> u64 {
        match self {
            Self::Always(value) => *value,
            Self::Phases(phases) => phases.iter().map(|phase| phase.value).max().unwrap_or(0),
        }
    }

    fn check(&self, key: &str) -> Result<(), TrainError> {
        let steps: Vec<u64> = match self {
            Self::Always(_) => vec![0],
            Self::Phases(phases) => phases.iter().map(|phase| phase.from).collect(),
        };
        let in_order = steps.first() == Some(&0) && steps.windows(2).all(|pair| pair[0] < pair[1]);
        require(in_order, || format!("key `{key}`: expected phases from step 0 on, each later than the one before"))?;
        let positive = match self {
            Self::Always(value) => *value > 0,
            Self::Phases(phases) => phases.iter().all(|phase| phase.value > 0),
        };
        require(positive, || format!("key `{key}`: expected at least 1, got 0"))
    }
}

/// How tokens are chosen. Log-probabilities and ratios are those of the model itself, at temperature 1 and without limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingKeys {
    /// Logits are divided by this.
    pub temperature: f32,
    /// Only the fewest most likely tokens that hold this probability are considered; 1 considers all.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub top_p: f32,
    /// Only this many most likely tokens are considered; 0 considers all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub top_k: usize,
}

fn all() -> f32 {
    1.0
}

fn is_all(top_p: &f32) -> bool {
    *top_p == 1.0
}

/// The loss; see [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossKeys {
    /// How tokens become a loss: `grpo`, `bnpo`, `dr_grpo` or `dapo`.
    pub aggregation: Aggregation,
    /// What a ratio belongs to: `token` or `sequence`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub level: RatioLevel,
    /// What rewards are divided by: the deviation of their `group`, of the `batch`, or `none`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scale: AdvantageScale,
    /// How far below 1 a ratio still counts.
    pub clip_low: f64,
    /// How far above 1 a ratio still counts.
    pub clip_high: f64,
    /// Largest ratio of the unclipped term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,
    /// Strength of the pull to the reference.
    pub beta: f64,
    /// Whether the divergence is weighted by the ratio.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kl_bias_correction: bool,
}

/// The watch over the distance to the reference, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlKeys {
    /// Score every rollout with the reference also where `loss.beta` is 0; a copy of the model waits for it.
    pub monitor: bool,
    /// From here on a warning.
    pub warn: f64,
    /// From here on the run ends, with exit code 3.
    pub abort: f64,
}

impl Default for KlKeys {
    fn default() -> Self {
        Self { monitor: true, warn: 0.3, abort: 0.5 }
    }
}

/// Largest distance from 1 of a ratio right after sampling, and between the sampler's log-probability and training's.
const BOUNDS_F32: [f64; 2] = [1e-6, 1e-3];
/// The same in bf16, whose products round more the more rows they have.
const BOUNDS_BF16: [f64; 2] = [1e-2, 0.5];

impl GrpoConfig {
    /// The objective.
    pub fn policy(&self) -> Policy {
        let LossKeys { aggregation, level, clip_low, clip_high, delta, beta, kl_bias_correction, .. } = self.loss;
        let [ratio_bound, sampler_bound] =
            if self.train.precision == Arithmetic::F32 { BOUNDS_F32 } else { BOUNDS_BF16 };
        let most = self.max_new_tokens.largest().saturating_mul(self.max_turns.largest());
        let max_completion = usize::try_from(most).unwrap_or(usize::MAX).min(self.seq_len);
        Policy {
            aggregation,
            level,
            clip_low,
            clip_high,
            delta,
            beta,
            kl_bias_correction,
            max_completion,
            router: self.router,
            ratio_bound,
            sampler_bound,
        }
    }

    /// The stage as one of those that tune a model.
    pub fn tuning(&self, name: &'static str) -> Tuning<'_> {
        let adapter = adapter_tuning(self.adapter.as_ref(), self.packed_experts, self.merge_max_diff);
        let gate = Some(&self.gate);
        Tuning { name, dir: &self.dir, model_dir: &self.model, gate, adapter, train: &self.train }
    }

    /// Whether a reference scores the rollouts.
    pub fn needs_reference(&self) -> bool {
        self.kl.monitor || self.loss.beta > 0.0
    }

    /// Checks across keys.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        self.max_new_tokens.check("max_new_tokens")?;
        self.max_turns.check("max_turns")?;
        self.policy().check()?;
        check_adapter(self.adapter.as_ref(), self.packed_experts, self.merge_max_diff)?;
        let dropout = self.adapter.as_ref().map_or(0.0, |adapter| adapter.dropout);
        require(dropout == 0.0, || {
            format!("key `adapter.dropout`: expected 0, since what samples must compute what trains, got {dropout}")
        })?;
        let whole = |key: &str, value: u64, least: u64| {
            require(value >= least, || format!("key `{key}`: expected at least {least}, got {value}"))
        };
        whole("prompts_per_step", self.prompts_per_step as u64, 1)?;
        whole("group_size", self.group_size as u64, 2)?;
        whole("iterations", self.iterations, 1)?;
        whole("max_idle_steps", self.max_idle_steps, 1)?;
        whole("judge.jobs", self.judge.jobs as u64, 1)?;
        let SamplingKeys { temperature, top_p, .. } = self.sampling;
        require(temperature.is_finite() && temperature > 0.0, || {
            format!("key `sampling.temperature`: expected a finite number above 0, got {temperature}")
        })?;
        require(top_p > 0.0 && top_p <= 1.0, || {
            format!("key `sampling.top_p`: expected a number in (0, 1], got {top_p}")
        })?;
        let KlKeys { warn, abort, .. } = self.kl;
        require(warn > 0.0 && abort >= warn && abort.is_finite(), || {
            format!("key `kl`: expected 0 < warn <= abort, got {warn} and {abort}")
        })?;
        require(self.train.precision != Arithmetic::Fp8, || {
            "key `train.precision`: expected f32 or bf16, since what samples must round as what trains, got fp8".into()
        })?;
        let (got, want) = (self.train.tokens_per_step, self.most_tokens());
        require(got == want, || {
            format!(
                "key `train.tokens_per_step`: expected prompts_per_step · group_size · seq_len = {want}, which a step takes at most, got {got}"
            )
        })
    }

    fn most_tokens(&self) -> u64 {
        (self.prompts_per_step * self.group_size * self.seq_len) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curriculum_changes_at_its_steps() {
        #[derive(Deserialize)]
        struct Keys {
            a: Curriculum,
            b: Curriculum,
        }
        let keys: Keys =
            toml::from_str("a = 3\nb = [{ from = 0, value = 1 }, { from = 5, value = 4 }, { from = 9, value = 2 }]")
                .unwrap();
        assert_eq!([0, 4, 5, 8, 9, 100].map(|step| keys.b.at(step)), [1, 1, 4, 4, 2, 2]);
        assert_eq!((keys.a.at(7), keys.a.largest(), keys.b.largest()), (3, 3, 4));
        keys.b.check("b").unwrap();
        let phases = |phases: &[(u64, u64)]| {
            Curriculum::Phases(phases.iter().map(|&(from, value)| Phase { from, value }).collect())
        };
        for bad in [phases(&[]), phases(&[(1, 1)]), phases(&[(0, 1), (0, 2)]), phases(&[(0, 0)]), Curriculum::Always(0)]
        {
            assert!(bad.check("max_turns").unwrap_err().to_string().contains("max_turns"), "{bad:?}");
        }
    }
}
