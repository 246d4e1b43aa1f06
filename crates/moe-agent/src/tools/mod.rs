//! The tools of the agent: what a model may do to a crate, done for real.
//!
//! An [`Executor`] owns a copy of a crate. [`Executor::call`] does what a call asks, programs in the sandbox and everything
//! else here, and gives a [`ToolResult`]. Nothing outside this module can make one, so whoever takes a `ToolResult` knows
//! that it was executed. A call that cannot be done is a result too, with [`Status::Refused`]; an [`ExecutorError`] is a
//! fault on this side, which says nothing about the call.
//!
//! Outputs are made the same on every machine: no times, no process ids, no paths of the host, diagnostics in the order of
//! their places. Code of the crate runs only in `run_tests` and `cargo test`; it can write the target folder of its own
//! executor, so what earns a reward is decided by the judge, which builds anew, and not by a result of this module.
//!
//! A result cannot be made up:
//!
//! ```compile_fail,E0451
//! use moe_agent::tools::{Status, Tool, ToolCall, ToolResult};
//! let call = ToolCall::new("functions.run_tests", "{}");
//! let forged = ToolResult { call, tool: Some(Tool::RunTests), status: Status::Done, output: "ok: 9 passed".into() };
//! ```

mod call;
mod cargo;
mod command;
mod declare;
mod documentation;
mod error;
mod executor;
mod files;
mod harness;
mod index;
mod messages;
mod normalise;
mod result;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use call::{
    ApplyPatch, Arguments, CargoDoc, MAX_ARGUMENT_BYTES, ReadError, ReadFile, RepoSearch, RunCommand, RunTests,
    SearchCratesIo, ToolCall,
};
pub use declare::{PromptStyle, declarations, opening};
pub use error::{CallError, ExecutorError, Refusal};
pub use executor::{Executor, Setup, Snapshot, Spent};
pub use files::{Files, files_hash, load_crate};
pub use harness::{FailedTest, TestReport};
pub use index::{CrateEntry, CrateIndex, index_sources};
pub use messages::Diagnostic;
pub use result::{Status, ToolResult};

/// What a model can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// One of a few programs, with its arguments as a list.
    RunCommand,
    /// A file or some of its lines.
    ReadFile,
    /// One text of a file replaced by another.
    ApplyPatch,
    /// The lines that have a text.
    RepoSearch,
    /// The crate's tests.
    RunTests,
    /// The documentation of an item, as rustdoc has it.
    CargoDoc,
    /// Crates by name and words, from a local index.
    SearchCratesIo,
    /// One of the compiler's last messages in full.
    ReadError,
}

impl Tool {
    /// Every tool.
    pub const ALL: [Self; 8] = [
        Self::RunCommand,
        Self::ReadFile,
        Self::ApplyPatch,
        Self::RepoSearch,
        Self::RunTests,
        Self::CargoDoc,
        Self::SearchCratesIo,
        Self::ReadError,
    ];

    /// The name behind `functions.`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RunCommand => "run_command",
            Self::ReadFile => "read_file",
            Self::ApplyPatch => "apply_patch",
            Self::RepoSearch => "repo_search",
            Self::RunTests => "run_tests",
            Self::CargoDoc => "cargo_doc",
            Self::SearchCratesIo => "search_crates_io",
            Self::ReadError => "read_error",
        }
    }
}

impl FromStr for Tool {
    type Err = CallError;

    fn from_str(name: &str) -> Result<Self, CallError> {
        let found = Self::ALL.into_iter().find(|tool| tool.name() == name);
        found.ok_or_else(|| CallError::UnknownTool { name: error::shown(name) })
    }
}
