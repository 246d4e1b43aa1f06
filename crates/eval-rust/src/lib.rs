//! Scores of Rust answers: the judge that decides about them, rates and pass@k over its verdicts.
//!
//! `judge` compiles and runs what nobody trusts, through `sandbox::Run`, and says what it is worth; `verdict` and
//! `pass_at_k` are the arithmetic over that.

mod episodes;
pub mod judge;
mod pass_at_k;
pub mod sandbox;
mod verdict;

pub use episodes::{Episode, EpisodesError, read_episodes};
pub use pass_at_k::{mean_pass_at_k, pass_at_k};
pub use verdict::{Rates, Verdict, read_verdicts, score};

/// What can go wrong while reading or scoring verdicts.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The file could not be read.
    #[error("reading verdicts from {path}: {source}; check that the judge wrote this file")]
    Read {
        /// The file.
        path: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A line is not a verdict.
    #[error(
        "{path}:{line}: not a verdict: {source}; each line is one JSON object with exactly the fields of `Verdict`"
    )]
    Line {
        /// The file.
        path: String,
        /// 1-based line number.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A verdict contradicts itself.
    #[error(
        "{path}:{line}: task {task} reports passed tests although it did not compile; the judge's output is damaged"
    )]
    Contradiction {
        /// The file.
        path: String,
        /// 1-based line number.
        line: usize,
        /// The task.
        task: String,
    },
    /// pass@k needs at least k samples per task.
    #[error(
        "pass@{k} needs at least {k} samples of every task, a task has {n}; draw more samples or ask for a smaller k"
    )]
    TooFewSamples {
        /// Requested k.
        k: u64,
        /// Samples found.
        n: u64,
    },
    /// There is nothing to score.
    #[error("no verdict in the input: a rate over nothing is undefined; run the judge first")]
    Empty,
}
