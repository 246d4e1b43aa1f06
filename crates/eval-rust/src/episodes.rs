//! What an agent used up on the way to a candidate: one line of `episodes.jsonl` for each sample of a task.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gates::artifact::{ArtifactError, read_bounded};
use serde::{Deserialize, Serialize};

/// Most bytes of a file of episodes.
const MAX_BYTES: u64 = 256 << 20;

/// One try of an agent at a task, from the prompt to the candidate that it handed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episode {
    /// Task id.
    pub task: String,
    /// Number of the sample within its task, from 0; samples of a task are judged in this order.
    pub sample: u64,
    /// Turns of the model, the one that handed the candidate in included; at least 1.
    pub iterations: u64,
    /// Tool calls that the model made or meant to make.
    pub tool_calls: u64,
    /// Those whose recipient is a tool and whose arguments are as its schema says; what the tool then did does not matter.
    pub tool_calls_well_formed: u64,
    /// Tokens that the model sampled.
    pub tokens: u64,
    /// Seconds on the clock, tools included.
    pub seconds: f64,
}

/// Why episodes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EpisodesError {
    /// The file cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A line is not an episode.
    #[error(
        "{path}:{line}: not an episode: {source}; each line is one JSON object with exactly the fields of `Episode`"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// An episode contradicts itself or another one.
    #[error("{path}:{line}: task `{task}`, sample {sample}: {what}; write the episodes again")]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// Its task.
        task: String,
        /// Its sample.
        sample: u64,
        /// What does not fit.
        what: &'static str,
    },
}

impl Episode {
    fn contradiction(&self) -> Option<&'static str> {
        if self.iterations == 0 {
            return Some("no iteration, so nothing can have been handed in");
        }
        if self.tool_calls_well_formed > self.tool_calls {
            return Some("more calls are well formed than were made");
        }
        (!(self.seconds >= 0.0 && self.seconds.is_finite())).then_some("seconds are no time")
    }
}

/// Reads episodes from JSON lines.
///
/// # Errors
/// A line that is no episode, contradicts itself or comes twice is an error naming file and line.
pub fn read_episodes(path: &Path) -> Result<Vec<Episode>, EpisodesError> {
    let bytes = read_bounded(path, MAX_BYTES)?;
    let mut seen = BTreeSet::new();
    let mut episodes: Vec<Episode> = Vec::new();
    for (i, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let line_error = |source| EpisodesError::Line { path: path.into(), line: i + 1, source };
        let episode: Episode = serde_json::from_slice(line).map_err(line_error)?;
        let new = seen.insert((episode.task.clone(), episode.sample));
        if let Some(what) = episode.contradiction().or((!new).then_some("is there twice")) {
            let Episode { task, sample, .. } = episode;
            return Err(EpisodesError::Contradiction { path: path.into(), line: i + 1, task, sample, what });
        }
        episodes.push(episode);
    }
    Ok(episodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn episodes_survive_the_disk_and_bad_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("episodes.jsonl");
        let episode = Episode {
            task: "t".into(),
            sample: 0,
            iterations: 2,
            tool_calls: 3,
            tool_calls_well_formed: 2,
            tokens: 90,
            seconds: 1.5,
        };
        let good = serde_json::to_string(&episode).unwrap();
        std::fs::write(&path, format!("{good}\n\n{}\n", good.replace("\"sample\":0", "\"sample\":1"))).unwrap();
        let got = read_episodes(&path).unwrap();
        assert_eq!((got.len(), &got[0], got[1].sample), (2, &episode, 1));
        for (bad, want) in [
            (good.replace("\"tokens\"", "\"token\""), "unknown field `token`"),
            (good.replace(":3", ":1"), "well formed"),
            (good.replace("\"iterations\":2", "\"iterations\":0"), "no iteration"),
            (good.replace("1.5", "-1"), "seconds"),
            (good.clone(), "twice"),
        ] {
            std::fs::write(&path, format!("{good}\n{bad}\n")).unwrap();
            let got = read_episodes(&path).unwrap_err().to_string();
            assert!(got.contains(want) && got.contains("episodes.jsonl:2"), "{got}");
        }
    }
}
