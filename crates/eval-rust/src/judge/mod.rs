//! The judge: what a candidate for a task is worth, decided by what it cannot reach.
//!
//! 1. Only sources of the candidate are taken, into crates with manifests of ours (`policy`).
//! 2. `cargo check`, clippy, rustfmt and the build of the judge's programs run offline in the sandbox; no code of the candidate runs
//!    in them, because build scripts and macros that are programs are refused.
//! 3. Tests run one to a process, and each must say that it passed with a nonce (`rewrite`). That holds for safe code only, so
//!    `unsafe` is refused where tests decide.
//! 4. Functions are called with random inputs, and their answers are compared with the solution's here, outside (`driver`).
//!
//! 5. Tests that a candidate writes must hold on the reference and fail on mutants of it (`written`, `mutants`).
//!
//! A fault of the judge is [`Status::Error`]: neither a reward nor a verdict. A fault that only one candidate brings about is its
//! failure (`blame`). No model has a say here: words in comments, diagnostics and names are never more than text.

mod batch;
mod blame;
mod cache;
mod collect;
mod commands;
mod diff;
mod driver;
mod error;
mod mutants;
mod policy;
mod private;
mod read;
mod report;
mod rewrite;
mod steps;
mod task;
#[cfg(test)]
mod tests;
mod tokens;
mod toolchain;
mod values;
#[cfg(test)]
#[path = "harness/wire.rs"]
#[expect(unreachable_pub, reason = "the file is a module of the driver, where its items are public")]
mod wire;
mod workspace;
mod written;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use gates::artifact;

pub(crate) use batch::in_parallel;
pub use batch::{Entry, read_list};
pub use diff::changed_lines;
pub use error::JudgeError;
pub(crate) use error::io;
pub(crate) use private::write_new;
pub use read::{ReadError, read_judgements};
pub use report::{Judgement, Mutants, Status, VERSION};
pub use task::{Function, Task, TaskFile, TaskKind, TaskLimits, WriteTests};
pub(crate) use tokens::flatten;
pub use toolchain::find_toolchain;

use crate::sandbox::{CollectError, End, Run};
use crate::shown::shown;
use collect::{Files, Unfit, collect};
use error::Result;
use private::Private;

/// The longest that rustfmt may take.
const FORMAT: Duration = Duration::from_secs(30);

/// Name of a step, for errors.
type Step = &'static str;

/// What the judge works with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of a toolchain: `bin/cargo`, `lib/rustlib`.
    pub toolchain: PathBuf,
    /// Sources of dependencies, as `cargo vendor` writes them; without it tasks have none.
    pub vendor: Option<PathBuf>,
    /// Folder for the cache and for what is gone after each judging; no candidate may have a way to it.
    pub work: PathBuf,
}

/// Judges candidates.
pub struct Judge<'a> {
    runner: &'a (dyn Run + Sync),
    options: Options,
    /// What the cache depends on besides the task.
    identity: String,
    making: Mutex<()>,
    making_reference: Mutex<()>,
}

impl<'a> Judge<'a> {
    /// A judge that runs everything through `runner`.
    ///
    /// # Errors
    /// [`JudgeError::NoToolchain`] when the folder is none; [`JudgeError::Artifact`] when the vendored sources cannot be read.
    pub fn new(runner: &'a (dyn Run + Sync), options: Options) -> Result<Self> {
        let rustc = options.toolchain.join("bin/rustc");
        let size = std::fs::metadata(&rustc).map(|meta| meta.len());
        let size = size.map_err(|_| JudgeError::NoToolchain { looked: options.toolchain.display().to_string() })?;
        let vendor = options.vendor.as_deref().map(artifact::hash_tree).transpose()?.unwrap_or_default();
        let lib = toolchain::version(&options.toolchain);
        let identity = format!("{} {size} {lib} {vendor}", options.toolchain.display());
        Ok(Self { runner, options, identity, making: Mutex::new(()), making_reference: Mutex::new(()) })
    }

    /// Judges a candidate. The seed decides the random inputs and must not be known to who made the candidate.
    ///
    /// Never fails: what goes wrong on this side is a judgement with [`Status::Error`].
    pub fn judge(&self, task: &Task, candidate: &Path, seed: u64) -> Judgement {
        let mut report = Judgement::new(&task.file.id, seed);
        report.task_hash.clone_from(&task.hash);
        report.tests_expected = task.expected().count() as u64;
        match self.decide(task, candidate, &mut report) {
            Ok(()) => {}
            Err(error @ JudgeError::Provoked { .. }) => report.provoked(task.expected(), error.to_string()),
            Err(error) => {
                report.status = Status::Error;
                report.passed = false;
                report.tests_passed = false;
                report.reason = shown(&error.to_string());
            }
        }
        report
    }

    fn decide(&self, task: &Task, candidate: &Path, report: &mut Judgement) -> Result<()> {
        let files = match collect(candidate) {
            Ok(files) => files,
            Err(Unfit::Collect(CollectError::Read { path, source })) => {
                return Err(JudgeError::Io { op: "read", path: candidate.join(path), source });
            }
            Err(unfit) => {
                report.status = Status::Refused;
                report.because(unfit.to_string());
                return Ok(());
            }
        };
        report.candidate = hash(&files);
        let admitted = match task.file.kind {
            TaskKind::WriteTests => written::admit(task, &files).map(|(task, admitted)| (Cow::Owned(task), admitted)),
            _ => policy::admit(task, &files).map(|admitted| (Cow::Borrowed(task), admitted)),
        };
        match admitted {
            Ok((task, admitted)) => steps::run(self, &task, &admitted, report),
            Err(reason) => {
                report.status = Status::Refused;
                report.because(reason);
                Ok(())
            }
        }
    }

    /// Checks that a task says what it means: its solution passes, and its start fails exactly what must fail before.
    ///
    /// # Errors
    /// [`JudgeError::Task`] naming the contradiction; any error of judging.
    pub fn check_task(&self, task: &Task, seed: u64) -> Result<()> {
        let solution = self.judge(task, &task.solution(), seed);
        let wrong = solution_fault(&solution).or_else(|| start_fault(task, &self.judge(task, &task.start(), seed)));
        wrong.map_or(Ok(()), |what| Err(JudgeError::Task { path: task.dir.clone(), what }))
    }

    /// A file of Rust as rustfmt writes it.
    ///
    /// # Errors
    /// [`JudgeError::Own`] with what rustfmt says where it cannot.
    pub fn format(&self, source: &str, edition: &str) -> Result<String> {
        let private = Private::new(&self.options.work)?;
        let args = ["--edition", edition, "--emit", "stdout"];
        let mut command = commands::tool(&self.places(private.path()), "rustfmt", &args, "ws", false, FORMAT);
        command.stdin = source.into();
        let outcome = commands::run(self.runner, &command, &mut Judgement::new("", 0))?;
        let own = |what: String| JudgeError::Own { step: "rustfmt", what };
        if outcome.end != End::Exit(0) {
            let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
            return Err(own(format!("{}: {said}", commands::ended(outcome.end))));
        }
        String::from_utf8(outcome.stdout).map_err(|error| own(error.to_string()))
    }
}

/// Why a judged solution is none.
pub(crate) fn solution_fault(solution: &Judgement) -> Option<String> {
    let good = solution.passed && solution.clippy_clean && solution.formatted;
    let Judgement { reason, tests_failed, lints, .. } = solution;
    (!good).then(|| format!("the solution does not pass: {reason} {tests_failed:?} {lints:?}"))
}

/// Why a judged start is none.
pub(crate) fn start_fault(task: &Task, start: &Judgement) -> Option<String> {
    if start.status == Status::Error {
        return Some(format!("the start cannot be judged: {}", start.reason));
    }
    if start.passed {
        return Some("the start passes already".into());
    }
    let fails = |name: &String| !start.compiled || start.tests_failed.contains(name);
    if let Some(name) = task.file.fail_to_pass.iter().find(|name| !fails(name)) {
        return Some(format!("`{name}` passes already"));
    }
    task.file.pass_to_pass.iter().find(|name| fails(name)).map(|name| format!("`{name}` fails before"))
}

/// Hash over names and contents.
pub(crate) fn hash(files: &Files) -> String {
    let lines: String =
        files.iter().map(|(name, bytes)| format!("{} {name:?}\n", artifact::hash_bytes(bytes))).collect();
    artifact::hash_bytes(lines.as_bytes())
}
