//! Whose fault it is when a run of a candidate goes wrong on the judge's side.
//!
//! A candidate could bring down what runs it, to have an error, which counts for nothing, where a failure would be. So such a run is
//! tried again, at most [`RETRIES`] times in a judgement. When it goes wrong still, something harmless is run in the same way: only
//! if that goes wrong too is it the judge's error.

use std::path::PathBuf;
use std::time::Duration;

use super::Step;
use super::commands::{self, ended, program, tool};
use super::error::{JudgeError, Result};
use super::private::Private;
use super::report::Judgement;
use super::steps::{Said, Steps};
use super::workspace::HARNESS;
use crate::sandbox::{Command, End, Outcome, SandboxError};

/// Runs that are repeated in one judgement.
const RETRIES: u32 = 2;
/// A program of every machine that ends at once.
const HARMLESS: &str = "/bin/true";

impl Steps<'_> {
    /// Runs a tool over the candidate; where cargo fails without a fault of `package` it is a fault of ours.
    pub(super) fn tool(
        &self,
        name: &'static str,
        args: &[&str],
        cwd: &str,
        wall: Duration,
        report: &mut Judgement,
    ) -> Result<(Outcome, Said)> {
        let runner = self.judge.runner;
        let command = |private: &Private| tool(&self.judge.places(private.path()), name, args, cwd, false, wall);
        let harmless = || {
            let private = Private::new(&self.judge.options.work)?;
            self.judge.lay_out(&private, self.task, None)?;
            ends_well(name, &commands::run(runner, &command(&private), &mut Judgement::new("", 0))?)
        };
        self.insist(report, harmless, |report| {
            let outcome = commands::once(runner, &command(self.private), report)?;
            let said = Said::new(&outcome.stdout);
            if name == "cargo" && outcome.end != End::Exit(0) {
                let builds = args.first() == Some(&"build");
                let package = if builds && said.built { HARNESS } else { &self.task.package };
                blame(if builds { "build" } else { "clippy" }, &outcome, package)?;
            }
            Ok((outcome, said))
        })
    }

    /// Runs a built program of the judge's with the candidate's code in it.
    pub(super) fn program(
        &self,
        name: &str,
        stdin: Vec<u8>,
        wall: Duration,
        report: &mut Judgement,
    ) -> Result<Outcome> {
        let bin = self.private.path().join("bin");
        let command = program(&bin, name, stdin, self.task.file.limits.memory_mib, wall);
        let harmless = || {
            let command = Command { program: PathBuf::from(HARMLESS), stdin: Vec::new(), ..command.clone() };
            ends_well(HARMLESS, &commands::run(self.judge.runner, &command, &mut Judgement::new("", 0))?)
        };
        self.insist(report, harmless, |report| Ok(commands::once(self.judge.runner, &command, report)?))
    }

    fn insist<T>(
        &self,
        report: &mut Judgement,
        harmless: impl FnOnce() -> Result<()>,
        mut act: impl FnMut(&mut Judgement) -> Result<T>,
    ) -> Result<T> {
        loop {
            let error = match act(report) {
                Err(error @ (JudgeError::Sandbox(_) | JudgeError::Own { .. })) => error,
                other => return other,
            };
            if report.retries < RETRIES {
                report.retries += 1;
            } else if can_be_provoked(&error) && harmless().is_ok() {
                return Err(JudgeError::Provoked { what: error.to_string() });
            } else {
                return Err(error);
            }
        }
    }
}

/// Whether something that runs inside could be the cause; a layer that is missing is found before anything runs.
fn can_be_provoked(error: &JudgeError) -> bool {
    match error {
        JudgeError::Sandbox(error) => matches!(
            error,
            SandboxError::Start { .. } | SandboxError::Host { .. } | SandboxError::Lost(_) | SandboxError::Left(_)
        ),
        JudgeError::Own { .. } => true,
        _ => false,
    }
}

fn ends_well(step: Step, outcome: &Outcome) -> Result<()> {
    match outcome.end {
        End::Exit(0) => Ok(()),
        end => Err(JudgeError::Own { step, what: ended(end) }),
    }
}

/// An error unless cargo says that `package` failed, or a limit did: then the fault is ours.
fn blame(step: Step, outcome: &Outcome, package: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&outcome.stderr);
    let limit = !matches!(outcome.end, End::Exit(_) | End::Signal(_));
    if limit || said.contains(&format!("could not compile `{package}`")) {
        return Ok(());
    }
    Err(JudgeError::Own { step, what: format!("{}: {}", ended(outcome.end), tail(&said)) })
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(2000);
    (from..text.len()).find_map(|at| text.get(at..)).unwrap_or_default()
}
