//! The Rust-agent line: the record format of its mutation pairs, the tools of the agent with their executor, trajectories,
//! conversations in which every call of a tool was executed, its training stages, and rollouts, which a model plays with tools.
//!
//! A mutation pair is a whole file before and after a fix, with the failing test's own output.

pub mod grpo;
mod mutation;
pub mod rollout;
pub mod stages;
pub mod tools;
pub mod trajectories;

pub use mutation::{MutationRecord, read_mutations};

/// What can go wrong while reading agent records.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The file could not be read.
    #[error("reading records from {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A line is not a record.
    #[error(
        "{path}:{line}: not a mutation record: {source}; each line is one JSON object with exactly the documented fields"
    )]
    Line {
        /// The file.
        path: String,
        /// 1-based line number.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A record cannot teach a repair.
    #[error("{path}:{line}: {problem}; drop the record or mine it again")]
    Unusable {
        /// The file.
        path: String,
        /// 1-based line number.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}
