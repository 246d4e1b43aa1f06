//! Rollouts on disk: what was said, what it was worth, and everything that updates are made of.

use std::path::{Path, PathBuf};

use gates::artifact;
use serde::{Deserialize, Serialize};

use crate::rollout::{Ending, Episode, Level, RolloutError, Worth};

/// Version of the format.
const VERSION: u32 = 1;
/// Largest file.
const MAX_BYTES: u64 = 1 << 30;
/// Folder of a stage with its rollouts.
pub(super) const FOLDER: &str = "rollouts";

/// One rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollout {
    version: u32,
    /// Completed steps before its first update.
    pub(super) step: u64,
    /// The groups.
    pub(super) groups: Vec<Group>,
}

/// Episodes that began alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    /// Task id.
    pub(super) task: String,
    /// Whether anything is learnt from it: its rewards differ.
    pub(super) kept: bool,
    /// The episodes.
    pub(super) samples: Vec<SampleRecord>,
}

/// One episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SampleRecord {
    /// Reward; `None` when the judge failed, and nothing is learnt from the episode.
    pub(super) reward: Option<f64>,
    /// How far the candidate came.
    pub(super) level: Option<Level>,
    /// A planted task was passed.
    pub(super) cheated: bool,
    /// What was wrong, in the judge's words.
    pub(super) reason: String,
    /// Why the episode ended.
    pub(super) ending: Ending,
    /// Calls and answers.
    pub(super) turns: u64,
    /// Calls made, and those that were proper.
    pub(super) calls: [u64; 2],
    /// What stands behind the prompt, for people.
    pub(super) text: String,
    /// Tokens.
    pub(super) ids: Vec<u32>,
    /// Half-open ranges of the tokens that the model sampled.
    pub(super) sampled: Vec<[usize; 2]>,
    /// Advantage.
    #[serde(with = "bit")]
    pub(super) advantage: f32,
    /// Log-probability of each sampled token as the sampler knew it.
    #[serde(with = "bits")]
    pub(super) sampler: Vec<f32>,
    /// By the forward pass of training; empty where nothing is learnt.
    #[serde(with = "bits")]
    pub(super) old: Vec<f32>,
    /// Under the reference; empty without one.
    #[serde(with = "bits")]
    pub(super) reference: Vec<f32>,
}

impl SampleRecord {
    /// The record of an episode; `text` is what stands behind the prompt.
    pub(super) fn new(episode: &Episode, worth: &Worth, text: String) -> Self {
        Self {
            reward: worth.reward,
            level: worth.level,
            cheated: worth.cheated,
            reason: worth.reason.clone(),
            ending: episode.ending.clone(),
            turns: episode.turns,
            calls: [episode.calls, episode.calls_well_formed],
            text,
            ids: episode.ids.clone(),
            sampled: ranges(&episode.sampled),
            advantage: 0.0,
            sampler: episode.scores.iter().map(|score| score.logprob).collect(),
            old: Vec::new(),
            reference: Vec::new(),
        }
    }

    /// Loss weight of every token.
    pub(super) fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.ids.len()];
        self.sampled.iter().for_each(|[from, to]| weights[*from..*to].fill(1.0));
        weights
    }
}

/// The runs of `true`.
fn ranges(mask: &[bool]) -> Vec<[usize; 2]> {
    let mut ranges: Vec<[usize; 2]> = Vec::new();
    for (at, _) in mask.iter().enumerate().filter(|(_, on)| **on) {
        match ranges.last_mut().filter(|range| range[1] == at) {
            Some(range) => range[1] = at + 1,
            None => ranges.push([at, at + 1]),
        }
    }
    ranges
}

impl Rollout {
    /// A rollout before step `step + 1`.
    pub(super) fn new(step: u64, groups: Vec<Group>) -> Self {
        Self { version: VERSION, step, groups }
    }

    /// The episodes that something is learnt from, in order.
    pub(super) fn kept(&self) -> Vec<&SampleRecord> {
        let kept = self.groups.iter().filter(|group| group.kept);
        kept.flat_map(|group| &group.samples).filter(|sample| sample.reward.is_some()).collect()
    }

    /// As [`Rollout::kept`], to fill in what the forward passes say.
    pub(super) fn kept_mut(&mut self) -> Vec<&mut SampleRecord> {
        let kept = self.groups.iter_mut().filter(|group| group.kept);
        kept.flat_map(|group| &mut group.samples).filter(|sample| sample.reward.is_some()).collect()
    }

    /// File of the rollout before step `step + 1` of a stage.
    pub(super) fn path(dir: &Path, step: u64) -> PathBuf {
        dir.join(FOLDER).join(format!("step-{step:08}.json"))
    }

    /// Writes it whole, in the place of what an interrupted run left.
    pub(super) fn write(&self, dir: &Path) -> Result<(), RolloutError> {
        let path = Self::path(dir, self.step);
        let folder = dir.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(RolloutError::io("create", &folder))?;
        let text = serde_json::to_vec(self).map_err(|error| broken(&path, error.to_string()))?;
        Ok(artifact::write_atomic(&path, &text)?)
    }

    /// Reads the rollout before step `step + 1` of a stage.
    pub(super) fn read(dir: &Path, step: u64) -> Result<Self, RolloutError> {
        let path = Self::path(dir, step);
        let bytes = artifact::read_bounded(&path, MAX_BYTES)?;
        let rollout: Self = serde_json::from_slice(&bytes).map_err(|error| broken(&path, error.to_string()))?;
        if rollout.version != VERSION || rollout.step != step {
            let (version, found) = (rollout.version, rollout.step);
            return Err(broken(&path, format!("version {version} of step {found}, expected {VERSION} of {step}")));
        }
        for sample in rollout.kept() {
            let n: usize = sample.sampled.iter().map(|[from, to]| to.saturating_sub(*from)).sum();
            let inside = sample.sampled.iter().all(|[from, to]| from < to && *to <= sample.ids.len());
            let fits = |values: &[f32]| values.is_empty() || values.len() == n;
            if !inside || sample.old.len() != n || sample.sampler.len() != n {
                return Err(broken(&path, "an episode whose parts do not fit together".into()));
            }
            if !fits(&sample.reference) {
                return Err(broken(&path, "an episode with some reference values".into()));
            }
        }
        Ok(rollout)
    }
}

fn broken(path: &Path, problem: String) -> RolloutError {
    RolloutError::Record { path: path.to_path_buf(), problem }
}

/// f32 as its bits: the text form is exact.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        Ok(Vec::<u32>::deserialize(deserializer)?.into_iter().map(f32::from_bits).collect())
    }
}

/// One f32 as its bits.
mod bit {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        Ok(f32::from_bits(u32::deserialize(deserializer)?))
    }
}
