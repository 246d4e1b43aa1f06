//! The Rust-agent line.
//!
//! A mutation pair is a whole file before and after a fix, with the failing test's own output; `mutate` makes them,
//! and `tasks` makes task folders of them. `tools` are what an agent may do to a crate, really executed, and
//! `trajectories` makes conversations of that.

pub mod mutate;
mod mutation;
mod rust_text;
pub mod tasks;
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
