//! What is said about a candidate.

use serde::{Deserialize, Serialize};

use crate::sandbox::Layer;
use crate::shown::shown;

/// Version of the format of [`Judgement`].
pub const VERSION: u32 = 2;

/// How far judging came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every step was run or stood on one that failed.
    Judged,
    /// The candidate has something that is not accepted; nothing of it was run.
    Refused,
    /// The judge failed. This says nothing about the candidate and is no reward.
    Error,
}

/// What became of mutants under the tests of a candidate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutants {
    /// Those on which a test failed.
    pub killed: u64,
    /// Names of those that no test tells from the reference.
    pub survived: Vec<String>,
    /// Names of those on which a limit ended a test and no other failed; they count as neither.
    pub neutral: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One candidate's result. Only `passed` is a success; every field is what an unrewarded candidate has until shown otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// Version of this format.
    pub version: u32,
    /// Task id.
    pub task: String,
    /// Hash of all that decided: [`Task::hash`](super::Task::hash).
    pub task_hash: String,
    /// Hash of the candidate's files.
    pub candidate: String,
    /// How far judging came.
    pub status: Status,
    /// Compiled, every expected test passed, every answer was right.
    pub passed: bool,
    /// `cargo check` had no error.
    pub compiled: bool,
    /// Every expected test passed and every answer was right.
    pub tests_passed: bool,
    /// Tests that must pass.
    pub tests_expected: u64,
    /// Tests that passed.
    pub tests_ok: u64,
    /// Tests that did not.
    pub tests_failed: Vec<String>,
    /// Questions to functions, over all runs.
    pub questions: u64,
    /// Right answers.
    pub answers_right: u64,
    /// The tests did not build with it, or the process of one ended well without saying how the test ended: it is worth no more
    /// than what does not compile.
    #[serde(default)]
    pub unsound: bool,
    /// Clippy had nothing to say, and nothing was silenced.
    pub clippy_clean: bool,
    /// What clippy had to say.
    pub clippy_findings: u64,
    /// Attributes that silence lints, more than before.
    pub lint_attributes_added: u64,
    /// rustfmt would change nothing.
    pub formatted: bool,
    /// `unsafe`, more often than before.
    pub unsafe_added: u64,
    /// Lines added plus lines removed.
    pub diff_lines: u64,
    /// Files that differ.
    pub files_changed: u64,
    /// Wall time of all runs.
    pub wall_ms: u64,
    /// CPU time of all runs.
    pub cpu_ms: u64,
    /// Most memory of a run.
    pub peak_memory_bytes: u64,
    /// Layers of the sandbox that were missing and that the caller had allowed to be.
    pub weaker: Vec<Layer>,
    /// Runs that were repeated because the sandbox or the judge's own part failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// What became of the mutants, where the candidate writes tests and they hold on the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutants: Option<Mutants>,
    /// Seed of the random inputs.
    pub seed: u64,
    /// The first thing that went wrong; empty when nothing did.
    pub reason: String,
    /// Codes of the compiler's errors in the candidate's own crate, each once, such as `E0425`.
    pub error_codes: Vec<String>,
    /// Names of the lints that found something, each once, such as `clippy::needless_return`.
    pub lints: Vec<String>,
    /// What the compiler and clippy said, shortened.
    pub diagnostics: String,
}

impl Judgement {
    pub(crate) fn new(task: &str, seed: u64) -> Self {
        Self {
            version: VERSION,
            task: task.into(),
            task_hash: String::new(),
            candidate: String::new(),
            status: Status::Error,
            passed: false,
            compiled: false,
            tests_passed: false,
            tests_expected: 0,
            tests_ok: 0,
            tests_failed: Vec::new(),
            questions: 0,
            answers_right: 0,
            unsound: false,
            clippy_clean: false,
            clippy_findings: 0,
            lint_attributes_added: 0,
            formatted: false,
            unsafe_added: 0,
            diff_lines: 0,
            files_changed: 0,
            wall_ms: 0,
            cpu_ms: 0,
            peak_memory_bytes: 0,
            weaker: Vec::new(),
            retries: 0,
            mutants: None,
            seed,
            reason: String::new(),
            error_codes: Vec::new(),
            lints: Vec::new(),
            diagnostics: String::new(),
        }
    }

    /// A candidate that brings the judge down: nothing of it counts, and it is worth no more than what does not compile.
    pub(crate) fn provoked<'a>(&mut self, tests: impl Iterator<Item = &'a String>, reason: String) {
        self.status = Status::Judged;
        (self.passed, self.tests_passed, self.unsound, self.tests_ok) = (false, false, true, 0);
        if !self.compiled {
            (self.clippy_clean, self.formatted) = (false, false);
        }
        self.tests_failed = tests.cloned().collect();
        self.reason = shown(&reason);
    }

    /// Adds what a part of the judging took.
    pub(crate) fn add_cost(&mut self, part: &Self) {
        self.wall_ms += part.wall_ms;
        self.cpu_ms += part.cpu_ms;
        self.peak_memory_bytes = self.peak_memory_bytes.max(part.peak_memory_bytes);
        self.add_weaker(&part.weaker);
    }

    pub(crate) fn add_weaker(&mut self, weaker: &[Layer]) {
        self.weaker.extend(weaker);
        self.weaker.sort_unstable();
        self.weaker.dedup();
    }

    /// Keeps the first reason.
    pub(crate) fn because(&mut self, reason: impl Into<String>) {
        if self.reason.is_empty() {
            self.reason = shown(&reason.into());
        }
    }
}
