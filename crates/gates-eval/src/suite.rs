//! Suites: which tasks are run on which data.
//!
//! ```toml
//! version = 1
//! seed = 7                # of the bootstrap
//! resamples = 1000        # of the bootstrap
//! batch_tokens = 4096     # tokens in one forward pass; changes no result beyond rounding
//!
//! [[tasks]]
//! name = "heldout"        # metrics are heldout.perplexity, heldout.bits_per_byte
//! kind = "text"
//! data = "rows/heldout"   # relative to the folder given with --data
//! ```
//!
//! Kinds: `text` (token rows: perplexity, bits per byte), `answers` (conversations: share of exact greedy answers),
//! `preferences` (share of pairs whose chosen answer is the more likely one), `refusals` (lines with `prompt` and `target`, which is
//! `refuse` or `comply`: share of each that the model declines), `repetition` (share of repeated 4-grams
//! in greedy continuations), `weights` (share of finite parameters).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::EvalError;

/// Suites beyond this size are not ours.
const MAX_BYTES: u64 = 1 << 20;

/// A suite file.
#[derive(Clone, Debug, PartialEq)]
pub struct Suite {
    /// BLAKE3 (hex) of the file.
    pub hash: String,
    /// How tasks are run.
    pub settings: Settings,
    /// What is run, in this order.
    pub tasks: Vec<Task>,
}

/// How tasks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// Tokens in one forward pass.
    pub batch_tokens: usize,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// First part of the names of its metrics, unique.
    pub name: String,
    /// What is measured.
    pub kind: Kind,
    /// The data, relative to the data root; `weights` needs none.
    pub data: Option<PathBuf>,
    /// Only for `repetition`.
    pub repetition: Option<Repetition>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Perplexity and bits per byte of token rows.
    Text,
    /// Exact greedy answers to conversations.
    Answers,
    /// Chosen answer more likely than the rejected one.
    Preferences,
    /// Requests that the model declines.
    Refusals,
    /// Repeated 4-grams in greedy continuations of token rows.
    Repetition,
    /// Finite parameters.
    Weights,
}

/// How continuations are made for the `repetition` task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repetition {
    /// Continuations, one per document, from the first on.
    pub samples: usize,
    /// Tokens of the document that are given.
    pub prompt_tokens: usize,
    /// Tokens that are made.
    pub new_tokens: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    version: u64,
    seed: u64,
    resamples: usize,
    batch_tokens: usize,
    tasks: Vec<Task>,
}

impl Suite {
    /// The version that this build reads.
    pub const VERSION: u64 = 1;

    /// Reads a suite.
    ///
    /// # Errors
    /// [`EvalError::Toml`], [`EvalError::BadSuite`], [`EvalError::Artifact`].
    pub fn load(path: &Path) -> Result<Self, EvalError> {
        let bytes = gates::artifact::read_bounded(path, MAX_BYTES)?;
        Self::parse(path, &bytes)
    }

    /// Parses the bytes of a suite; `path` is for messages.
    ///
    /// # Errors
    /// As [`Suite::load`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, EvalError> {
        let file: SuiteFile = toml::from_slice(bytes)
            .map_err(|source| EvalError::Toml { path: path.into(), source: Box::new(source) })?;
        let bad = |key: String, expected, found| Err(EvalError::BadSuite { path: path.into(), key, expected, found });
        if file.version != Self::VERSION {
            return bad("version".into(), "1", file.version.to_string());
        }
        for (key, value) in [("resamples", file.resamples), ("batch_tokens", file.batch_tokens)] {
            if !(1..=1 << 20).contains(&value) {
                return bad(key.into(), "between 1 and 1048576", value.to_string());
            }
        }
        let mut names = BTreeSet::new();
        for (i, task) in file.tasks.iter().enumerate() {
            if let Err((key, expected, found)) = task.validate() {
                return bad(format!("tasks[{i}].{key}"), expected, found);
            }
            if !names.insert(&task.name) {
                return bad(format!("tasks[{i}].name"), "unique", task.name.clone());
            }
        }
        if file.tasks.is_empty() {
            return bad("tasks".into(), "at least one task", "none".into());
        }
        let settings = Settings { seed: file.seed, resamples: file.resamples, batch_tokens: file.batch_tokens };
        Ok(Self { hash: gates::artifact::hash_bytes(bytes), settings, tasks: file.tasks })
    }
}

impl Task {
    fn validate(&self) -> Result<(), (&'static str, &'static str, String)> {
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(("name", "letters, digits and _", format!("{:?}", self.name)));
        }
        match (self.kind == Kind::Weights, &self.data) {
            (false, None) => return Err(("data", "a path for this kind of task", "nothing".into())),
            (true, Some(path)) => return Err(("data", "absent for `weights`", path.display().to_string())),
            _ => {}
        }
        match (self.kind == Kind::Repetition, self.repetition) {
            (true, None) => Err(("repetition", "a table for this kind of task", "nothing".into())),
            (false, Some(_)) => Err(("repetition", "absent for this kind of task", "a table".into())),
            (true, Some(r)) if r.samples == 0 || r.prompt_tokens == 0 || r.new_tokens < 4 => Err((
                "repetition",
                "samples and prompt_tokens of at least 1, new_tokens of at least 4",
                format!("{r:?}"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
version = 1
seed = 7
resamples = 100
batch_tokens = 4096
[[tasks]]
name = "heldout"
kind = "text"
data = "rows/heldout"
[[tasks]]
name = "loops"
kind = "repetition"
data = "rows/heldout"
repetition = { samples = 8, prompt_tokens = 16, new_tokens = 32 }
[[tasks]]
name = "checkpoint"
kind = "weights"
"#;

    fn parse(text: &str) -> Result<Suite, EvalError> {
        Suite::parse(Path::new("suite.toml"), text.as_bytes())
    }

    #[test]
    fn a_suite_reads() {
        let suite = parse(GOOD).unwrap();
        assert_eq!(
            suite.tasks.iter().map(|t| t.kind).collect::<Vec<_>>(),
            [Kind::Text, Kind::Repetition, Kind::Weights]
        );
        assert_eq!(suite.settings, Settings { seed: 7, resamples: 100, batch_tokens: 4096 });
    }

    #[test]
    fn bad_suites_are_refused_with_key_and_reason() {
        for (from, to, want) in [
            ("seed = 7", "seeds = 7", "unknown field `seeds`"),
            ("seed = 7\n", "", "missing field `seed`"),
            ("version = 1", "version = 3", "`version` must be 1, found 3"),
            ("resamples = 100", "resamples = 0", "`resamples` must be between 1"),
            ("\"loops\"", "\"heldout\"", "`tasks[1].name` must be unique"),
            ("\"heldout\"", "\"held out\"", "`tasks[0].name` must be letters"),
            ("data = \"rows/heldout\"\n[[", "[[", "`tasks[0].data` must be a path"),
            ("kind = \"weights\"", "kind = \"weights\"\ndata = \"x\"", "`tasks[2].data` must be absent"),
            ("kind = \"text\"", "kind = \"texts\"", "unknown variant `texts`"),
            ("new_tokens = 32", "new_tokens = 3", "new_tokens of at least 4"),
            ("repetition = {", "repetitions = {", "unknown field `repetitions`"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let message = parse(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.contains(want), "{to}: {message}");
        }
        let message =
            parse("version = 1\nseed = 1\nresamples = 1\nbatch_tokens = 1\ntasks = []").unwrap_err().to_string();
        assert!(message.contains("at least one task"), "{message}");
    }
}
