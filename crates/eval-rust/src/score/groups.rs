//! Judgements and episodes by task, complete and of one set.

use std::collections::{BTreeMap, BTreeSet};

use gates::artifact::hash_bytes;
use gates::interval::{Estimate, clustered_rate};

use super::error::{Result, ScoreError};
use crate::Episode;
use crate::judge::{Judgement, Status};

/// The judgements of a task.
#[derive(Debug)]
pub(super) struct Group<'a> {
    hash: &'a str,
    samples: usize,
    /// Without errors of the judge.
    pub(super) judged: Vec<&'a Judgement>,
}

impl Group<'_> {
    pub(super) fn passed(&self) -> u64 {
        self.judged.iter().filter(|one| one.passed).count() as u64
    }

    pub(super) fn is_passed(&self) -> bool {
        self.passed() * 2 >= self.judged.len() as u64
    }
}

/// Judgements by task.
#[derive(Debug)]
pub(super) struct Groups<'a>(pub(super) BTreeMap<&'a str, Group<'a>>);

impl<'a> Groups<'a> {
    /// Every task has as many samples as every other, of one version of the task, and one at least that was judged.
    pub(super) fn new(judgements: &'a [Judgement], what: &'static str) -> Result<Self> {
        let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
        for one in judgements {
            let group = groups.entry(&one.task).or_insert(Group { hash: "", samples: 0, judged: Vec::new() });
            group.samples += 1;
            // A task that the judge could not read has no hash.
            if !one.task_hash.is_empty() {
                if !group.hash.is_empty() && group.hash != one.task_hash {
                    return Err(ScoreError::TaskChanged { what, task: one.task.clone() });
                }
                group.hash = &one.task_hash;
            }
            if one.status != Status::Error {
                group.judged.push(one);
            }
        }
        let most = groups.values().map(|group| group.samples).max().ok_or(ScoreError::Empty)?;
        for (task, group) in &groups {
            if group.samples != most {
                return Err(ScoreError::Uneven { what, task: (*task).into(), samples: group.samples, most });
            }
            if group.judged.is_empty() {
                return Err(ScoreError::Missing { what, task: (*task).into() });
            }
        }
        Ok(Self(groups))
    }

    /// Refuses other tasks than these, by id and hash.
    pub(super) fn compare(&self, wanted: &BTreeMap<String, String>, what: &'static str) -> Result<()> {
        for (task, hash) in wanted {
            match self.0.get(task.as_str()) {
                None => return Err(ScoreError::Missing { what, task: task.clone() }),
                Some(group) if group.hash != hash => {
                    return Err(ScoreError::TaskChanged { what, task: task.clone() });
                }
                Some(_) => {}
            }
        }
        match self.0.keys().find(|task| !wanted.contains_key(**task)) {
            Some(task) => Err(ScoreError::Unknown { what, task: (*task).into() }),
            None => Ok(()),
        }
    }

    /// The listed tasks and the others.
    pub(super) fn split(self, listed: &BTreeSet<String>) -> (Self, Self) {
        let (inside, outside) = self.0.into_iter().partition(|(task, _)| listed.contains(*task));
        (Self(inside), Self(outside))
    }

    pub(super) fn hashes(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(task, group)| ((*task).to_owned(), group.hash.to_owned())).collect()
    }

    /// Hash over ids and hashes of the tasks.
    pub(super) fn dataset_hash(&self) -> String {
        let lines: String = self.0.iter().map(|(task, group)| format!("{task} {}\n", group.hash)).collect();
        hash_bytes(lines.as_bytes())
    }

    /// Samples of each task.
    pub(super) fn samples(&self) -> usize {
        self.0.values().next().map_or(0, |group| group.samples)
    }

    /// The share of candidates of which something holds.
    pub(super) fn rate(&self, holds: fn(&Judgement) -> bool) -> Estimate {
        self.ratio(|group| (group.judged.iter().filter(|one| holds(one)).count() as f64, group.judged.len() as f64))
    }

    /// A share over (hits, items) of each task.
    pub(super) fn ratio(&self, of_task: impl Fn(&Group<'_>) -> (f64, f64)) -> Estimate {
        let counts: Vec<(f64, f64)> = self.0.values().map(of_task).collect();
        clustered_rate(&counts, counts.iter().map(|task| task.1).sum())
    }
}

/// Episodes by task and sample.
pub(super) struct Sampled<'a>(BTreeMap<(&'a str, u64), &'a Episode>);

impl<'a> Sampled<'a> {
    /// Every sample that was judged has an episode, and no other.
    pub(super) fn new(episodes: &'a [Episode], tasks: &Groups<'_>) -> Result<Self> {
        let all: BTreeMap<_, _> = episodes.iter().map(|one| ((one.task.as_str(), one.sample), one)).collect();
        for (task, group) in &tasks.0 {
            let absent = (0..group.samples as u64).find(|sample| !all.contains_key(&(*task, *sample)));
            if let Some(sample) = absent {
                return Err(ScoreError::Episode {
                    task: (*task).into(),
                    sample,
                    what: "was judged and has no episode",
                });
            }
        }
        for (task, sample) in all.keys() {
            if tasks.0.get(task).is_none_or(|group| *sample >= group.samples as u64) {
                let what = "has an episode and was not judged";
                return Err(ScoreError::Episode { task: (*task).into(), sample: *sample, what });
            }
        }
        Ok(Self(all))
    }

    pub(super) fn of<'s>(&'s self, task: &'s str) -> impl Iterator<Item = &'a Episode> + 's {
        self.0.range((task, 0)..=(task, u64::MAX)).map(|(_, episode)| *episode)
    }
}
