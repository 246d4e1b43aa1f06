//! Scores of Rust answers: the judge that decides about them, and the figures over what it decided.
//!
//! `judge` compiles and runs what nobody trusts, through `sandbox::Run`, and says what it is worth; `score` turns its judgements
//! into the report that gates read; `human_eval` makes tasks of a published set;
//! `bench` measures the judge itself.

mod bench;
mod episodes;
pub mod human_eval;
pub mod judge;
mod pass_at_k;
pub mod sandbox;
mod score;
mod shown;

pub use bench::{BenchReport, Plan, Recorder, bench};
pub use episodes::{Episode, EpisodesError, read_episodes};
pub use pass_at_k::{TooFewSamples, pass_at_k};
pub use score::{Input, ScoreError, score};
pub use shown::shown;
