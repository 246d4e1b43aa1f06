//! Tests that a candidate wrote, measured by the mutants of the reference that they tell from it.
//!
//! The tests must pass on the reference before and after the mutants, and a mutant is killed by a test that fails on it twice, so
//! that tests that pass and fail by chance or by the clock are worth nothing. At the run there is nothing that tells a mutant from the
//! reference but what its functions do: no source, and a program that may not be read and whose size says nothing. What is left, places
//! of functions in memory and lines in panics, is other in a disguised reference, on which the tests must pass as well.

use std::time::Duration;

use super::collect::Files;
use super::error::{JudgeError, Result};
use super::policy::{Admitted, is_source};
use super::private::Private;
use super::report::{Judgement, Mutants};
use super::steps::{Ran, Steps};
use super::workspace::test_program;

/// How much longer tests may take on a mutant than on the reference, and besides.
const SLOWER: u32 = 5;
const GRACE: Duration = Duration::from_secs(10);
/// Moves the lines of a source.
const LINES: &[u8] = b"// Other lines\n// than those\n// of the task.\n";

/// What became of a mutant.
enum Fate {
    Killed,
    Survived,
    Neutral,
}

impl Steps<'_> {
    /// Whether the tests, which passed once, kill enough mutants.
    pub(super) fn mutants(&self, admitted: &Admitted, report: &mut Judgement) -> Result<bool> {
        let Some(asked) = &self.task.file.write_tests else { return Ok(true) };
        let Some(took) = self.again(report)? else { return Ok(false) };
        if !self.disguised(&admitted.files, report)? {
            return Ok(false);
        }
        let wall = (took * SLOWER + GRACE).min(self.task.file.limits.test());
        let mut found = Mutants::default();
        for (name, files) in &self.task.mutants {
            let mut sources = admitted.files.clone();
            sources.extend(files.clone());
            match self.mutant(name, &sources, wall, report)? {
                Fate::Killed => found.killed += 1,
                Fate::Survived => found.survived.push(name.clone()),
                Fate::Neutral => found.neutral.push(name.clone()),
            }
        }
        if self.again(report)?.is_none() {
            return Ok(false);
        }
        let counted = found.killed + found.survived.len() as u64;
        let enough = counted >= asked.min_counted(self.task.mutants.len());
        let good = enough && found.killed as f64 >= asked.min_killed * counted as f64;
        if !enough {
            report.because(format!("the tests ended in time on {counted} mutants only"));
        } else if !good {
            report.because(format!("the tests tell {} of {counted} mutants from the reference", found.killed));
        }
        report.mutants = Some(found);
        Ok(good)
    }

    /// Runs every test once more; how long that took, and `None` where one does not pass now.
    fn again(&self, report: &mut Judgement) -> Result<Option<Duration>> {
        let limit = self.task.file.limits.test();
        let mut left = limit;
        for id in self.task.expected() {
            let (ran, outcome) = self.test(id, left.max(Duration::from_millis(1)), report)?;
            left = left.saturating_sub(outcome.wall);
            if ran != Ran::Passed {
                report.because(format!("test {id} does not pass every time"));
                report.tests_failed.push(id.clone());
                report.tests_ok -= 1;
                return Ok(None);
            }
        }
        Ok(Some(limit - left))
    }

    /// Whether every test passes on a reference that does the same and looks otherwise: compiled with optimisation, on other lines.
    fn disguised(&self, reference: &Files, report: &mut Judgement) -> Result<bool> {
        let mut sources = reference.clone();
        for (_, bytes) in sources.iter_mut().filter(|(path, _)| is_source(path)) {
            bytes.splice(0..0, LINES.iter().copied());
        }
        let private = Private::new(&self.judge.options.work)?;
        let other = Steps { private: &private, ..*self };
        let config = format!("profile.dev.package.{}.opt-level=1", self.task.package);
        let (built, own) = other.build_apart(&sources, &["--config", &config], report)?;
        if !own.compiled {
            return Err(JudgeError::Own { step: "disguise", what: own.diagnostics });
        }
        let mut left = self.task.file.limits.test();
        for id in self.task.expected() {
            let ran = if built.contains(&program_of(id)) && !left.is_zero() {
                let (ran, outcome) = other.test(id, left, report)?;
                left = left.saturating_sub(outcome.wall);
                ran
            } else {
                Ran::Limit
            };
            if ran != Ran::Passed {
                report.because(format!("test {id} is about more than what the crate does"));
                report.tests_failed.push(id.clone());
                report.tests_ok -= 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Builds the tests over other sources in a private folder that is still empty.
    fn build_apart(&self, sources: &Files, more: &[&str], report: &mut Judgement) -> Result<(Vec<String>, Judgement)> {
        self.judge.lay_out(self.private, self.task, Some(sources))?;
        let mut own = Judgement::new("", report.seed);
        own.retries = report.retries;
        let built = self.build(more, &mut own)?;
        report.retries = own.retries;
        report.add_cost(&own);
        Ok((built, own))
    }

    fn mutant(&self, name: &str, sources: &Files, wall: Duration, report: &mut Judgement) -> Result<Fate> {
        let private = Private::new(&self.judge.options.work)?;
        let mutant = Steps { private: &private, ..*self };
        let (built, own) = mutant.build_apart(sources, &[], report)?;
        if !own.compiled {
            let what = format!("hidden/mutants/{name} does not compile: {}", own.diagnostics);
            return Err(JudgeError::Task { path: self.task.dir.clone(), what });
        }
        let (mut left, mut neutral) = (wall, false);
        for id in self.task.expected() {
            // What does not build with the mutant says nothing about what it does.
            if !built.contains(&program_of(id)) {
                continue;
            }
            for failed_before in [false, true] {
                if left.is_zero() {
                    return Ok(Fate::Neutral);
                }
                let (ran, outcome) = mutant.test(id, left, report)?;
                left = left.saturating_sub(outcome.wall);
                neutral |= ran == Ran::Limit;
                match (ran, failed_before) {
                    (Ran::Failed, true) => return Ok(Fate::Killed),
                    (Ran::Failed, false) => {}
                    _ => break,
                }
            }
        }
        Ok(if neutral { Fate::Neutral } else { Fate::Survived })
    }
}

/// The program that has a test.
fn program_of(id: &str) -> String {
    test_program(id.split("::").next().unwrap_or_default())
}
