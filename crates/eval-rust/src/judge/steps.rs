//! The steps of judging an admitted candidate, each on what the one before left.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Judge;
use super::cache::copy;
use super::commands::{self, ended, program};
use super::driver::{self, DRIVER};
use super::error::{JudgeError, Result, io};
use super::policy::Admitted;
use super::private::Private;
use super::report::{Judgement, Status};
use super::task::Task;
use super::values::Random;
use super::workspace::{HARNESS, programs, test_program};
use crate::sandbox::{End, Outcome};
use crate::shown::shown;

/// Most bytes of diagnostics that are kept.
const DIAGNOSTICS: usize = 16 << 10;
/// Runs over the same questions, each in another order.
const RUNS: u64 = 2;
/// The size of a program is a multiple of this.
const PROGRAM_SIZE: u64 = 16 << 20;
/// What cargo's id of the candidate's package contains.
const CANDIDATE: &str = "/ws/candidate#";
/// Lints that stay on whatever an attribute says.
const FORCED: [&str; 4] = ["--force-warn", "clippy::all", "--force-warn", "unused"];

/// Runs every step.
pub(super) fn run(judge: &Judge<'_>, task: &Task, admitted: &Admitted, report: &mut Judgement) -> Result<()> {
    report.unsafe_added = admitted.unsafe_added;
    report.lint_attributes_added = admitted.lint_attributes_added;
    report.diff_lines = admitted.diff_lines;
    report.files_changed = admitted.files_changed;
    report.tests_expected = task.expected().count() as u64;
    if task.file.write_tests.is_some() && task.tests.is_empty() {
        report.status = Status::Judged;
        report.because("there is no test");
        return Ok(());
    }
    let private = Private::new(&judge.options.work)?;
    judge.lay_out(&private, task, Some(&admitted.files))?;
    let steps = Steps { judge, task, private: &private };
    if steps.clippy(report)? {
        steps.format(admitted, report)?;
        let built = steps.build(&[], report)?;
        if report.compiled {
            let tests = steps.tests(&built, report)?;
            report.tests_passed = tests && steps.functions(&built, report)? && steps.mutants(admitted, report)?;
        }
    }
    if !report.compiled {
        (report.clippy_clean, report.formatted) = (false, false);
        report.tests_failed = task.expected().cloned().collect();
    }
    report.passed = report.compiled && report.tests_passed;
    report.status = Status::Judged;
    Ok(())
}

#[derive(Clone, Copy)]
pub(super) struct Steps<'a> {
    pub(super) judge: &'a Judge<'a>,
    pub(super) task: &'a Task,
    pub(super) private: &'a Private,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ran {
    Passed,
    Failed,
    /// Its process ended well and did not say how the test did.
    Unsaid,
    Limit,
}

impl Steps<'_> {
    /// Checks and lints in one go; whether the candidate may compile. Whether it does is for the build to say, because clippy
    /// has errors of its own, and an attribute can tell it from the compiler.
    fn clippy(&self, report: &mut Judgement) -> Result<bool> {
        let package = &self.task.package;
        let mut args = vec!["clippy", "--frozen", "-p", package, "--lib", "--no-deps", "--message-format=json"];
        if self.task.file.write_tests.is_some() {
            args.extend(self.task.tests.keys().flat_map(|stem| ["--test", stem]));
        }
        args.push("--");
        if !self.silences() {
            args.extend(FORCED);
        }
        let (outcome, said) = self.tool("cargo", &args, "ws", self.task.file.limits.clippy(), report)?;
        // What takes too long here would not be faster in the build.
        if said.has_hard_error() || !matches!(outcome.end, End::Exit(_)) {
            said.keep_errors(report);
            report.because(format!("does not compile: {}", ended(outcome.end)));
            return Ok(false);
        }
        report.clippy_findings = said.messages.len() as u64;
        report.lints = said.codes(|_| true);
        let whole = outcome.end == End::Exit(0) && !outcome.truncated;
        report.clippy_clean = whole && said.messages.is_empty() && report.lint_attributes_added == 0;
        keep(report, said.messages.iter());
        Ok(true)
    }

    /// Whether the task's own crate silences lints, which then stays as it is.
    fn silences(&self) -> bool {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let allows = |text: String| {
            super::tokens::flatten(&text).is_none_or(|tokens| {
                let silence = |word: &str| word == "allow" || word == "expect";
                tokens.windows(2).any(|pair| pair[0].in_attribute && silence(&pair[0].text) && pair[1].is("("))
            })
        };
        let sources = self.task.start.iter().filter(|(name, _)| name.starts_with("src/") && name.ends_with(".rs"));
        sources.into_iter().any(|(_, bytes)| allows(text(bytes)))
    }

    fn format(&self, admitted: &Admitted, report: &mut Judgement) -> Result<()> {
        let config = "/judge/ws/candidate/rustfmt.toml";
        let mut args = vec!["--check", "--edition", &self.task.edition, "--config-path", config];
        let written: Vec<String> = self.task.tests.keys().map(|stem| format!("tests/{stem}.rs")).collect();
        match self.task.file.write_tests {
            Some(_) => args.extend(written.iter().map(String::as_str)),
            None => args.push("src/lib.rs"),
        }
        let (outcome, _) = self.tool("rustfmt", &args, "ws/candidate", self.task.file.limits.clippy(), report)?;
        report.formatted = outcome.end == End::Exit(0) && admitted.format_attributes_added == 0;
        Ok(())
    }

    /// Builds the candidate and the judge's programs over it, and takes those that there are; the target folder is not looked
    /// at again.
    pub(super) fn build(&self, more: &[&str], report: &mut Judgement) -> Result<Vec<String>> {
        let args = ["build", "--frozen", "--keep-going", "-p", HARNESS, "--bins", "--message-format=json"];
        let args = [&args, more].concat();
        let (outcome, said) = self.tool("cargo", &args, "ws", self.task.file.limits.check(), report)?;
        report.compiled = said.built;
        if outcome.end != End::Exit(0) {
            if !said.built {
                said.keep_errors(report);
                report.because(format!("does not compile: {}", ended(outcome.end)));
                return Ok(Vec::new());
            }
            report.unsound = true;
            report.because(format!("tests do not build with it: {}", ended(outcome.end)));
        }
        let mut built = programs(self.task);
        let debug = self.private.path().join("target/debug");
        built.retain(|name| debug.join(name).is_file());
        for name in &built {
            let program = self.private.path().join("bin").join(name);
            copy(&debug.join(name), &program)?;
            seal(&program)?;
        }
        Ok(built)
    }

    /// Runs every expected test in a process of its own.
    fn tests(&self, built: &[String], report: &mut Judgement) -> Result<bool> {
        let mut left = self.task.file.limits.test();
        let mut passed = 0;
        for id in self.task.expected() {
            let file = test_program(id.split("::").next().unwrap_or_default());
            if !built.contains(&file) || left.is_zero() {
                report.because(format!("test {id} was not run"));
                report.tests_failed.push(id.clone());
                continue;
            }
            let (ran, outcome) = self.test(id, left, report)?;
            left = left.saturating_sub(outcome.wall);
            if ran == Ran::Passed {
                passed += 1;
            } else {
                // A test that fails says so, too.
                report.unsound |= ran == Ran::Unsaid;
                report.because(format!("test {id} did not pass: {}", ended(outcome.end)));
                report.tests_failed.push(id.clone());
            }
        }
        report.tests_ok = passed;
        Ok(passed == report.tests_expected)
    }

    /// Runs one test.
    pub(super) fn test(&self, id: &str, wall: Duration, report: &mut Judgement) -> Result<(Ran, Outcome)> {
        let (stem, name) = id.split_once("::").unwrap_or((id, ""));
        let nonce = nonce()?;
        let outcome = self.program(&test_program(stem), format!("{nonce} {name}\n").into(), wall, report)?;
        let says = |word: &str| says(&outcome.stdout, &format!("{nonce} {name} {word}"));
        let ran = match outcome.end {
            End::Exit(0) if says("passed") => Ran::Passed,
            End::Exit(0) if says("failed") => Ran::Failed,
            End::Exit(0) => Ran::Unsaid,
            End::Exit(_) | End::Signal(_) => Ran::Failed,
            _ => Ran::Limit,
        };
        Ok((ran, outcome))
    }

    /// Compares the answers of the candidate with those of the solution.
    fn functions(&self, built: &[String], report: &mut Judgement) -> Result<bool> {
        if self.task.file.functions.is_empty() {
            return Ok(true);
        }
        let questions = driver::questions(self.task, report.seed);
        let wanted = self.wanted(&questions)?;
        report.questions = wanted.len() as u64 * RUNS;
        if !built.contains(&DRIVER.to_owned()) {
            report.unsound = true;
            report.because("the functions cannot be called as the task says");
            return Ok(false);
        }
        let mut left = self.task.file.limits.test();
        for round in 0..RUNS {
            let nonce = nonce()?;
            let input = driver::input(&nonce, &questions, &mut Random(report.seed ^ (round + 1)));
            let outcome = self.program(DRIVER, input, left, report)?;
            left = left.saturating_sub(outcome.wall);
            let got = driver::answers(&outcome.stdout, &nonce);
            report.answers_right +=
                wanted.iter().filter(|(index, answer)| got.get(index) == Some(answer)).count() as u64;
            let wrong = wanted.iter().find(|(index, answer)| got.get(index) != Some(answer));
            if let Some((index, _)) = wrong.filter(|_| outcome.end == End::Exit(0)) {
                report.because(format!("wrong or no answer to `{}`", questions[*index]));
            }
            if outcome.end != End::Exit(0) || outcome.truncated {
                report.because(format!("calling functions ended by {}", ended(outcome.end)));
                return Ok(false);
            }
            if left.is_zero() {
                report.because("calling functions took too long");
                return Ok(false);
            }
        }
        Ok(report.answers_right == report.questions)
    }

    /// The solution's answers; a question at which it panics is not asked, because the task says nothing there.
    fn wanted(&self, questions: &[String]) -> Result<BTreeMap<usize, String>> {
        let reference = self.judge.reference(self.task)?;
        let private = Private::new(&self.judge.options.work)?;
        let bin = private.path().join("bin");
        copy(&reference.join(DRIVER), &bin.join(DRIVER))?;
        let nonce = nonce()?;
        let input = driver::input(&nonce, questions, &mut Random(0));
        let limits = &self.task.file.limits;
        let command = program(&bin, DRIVER, input, limits.memory_mib, limits.test());
        let outcome = commands::run(self.judge.runner, &command, &mut Judgement::new("", 0))?;
        let mut answers = driver::answers(&outcome.stdout, &nonce);
        let whole = outcome.end == End::Exit(0) && !outcome.truncated && answers.len() == questions.len();
        answers.retain(|_, answer| answer != "panic");
        if !whole || answers.len() * 2 < questions.len() {
            let what = format!("{} of {} questions answered, {}", answers.len(), questions.len(), ended(outcome.end));
            return Err(JudgeError::Own { step: "solution", what });
        }
        Ok(answers)
    }
}

/// Lets a program be run and not be read, and makes all as large: what is compiled into it is nothing that it can look at.
fn seal(program: &Path) -> Result<()> {
    let file = std::fs::File::options().append(true).open(program).map_err(io("seal", program))?;
    let size = file.metadata().map_err(io("seal", program))?.len();
    file.set_len(size.next_multiple_of(PROGRAM_SIZE)).map_err(io("seal", program))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o111)).map_err(io("seal", program))
}

/// Whether exactly one line is this.
fn says(stdout: &[u8], line: &str) -> bool {
    stdout.split(|byte| *byte == b'\n').filter(|got| *got == line.as_bytes()).count() == 1
}

/// 128 bits that cannot be guessed.
fn nonce() -> Result<String> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    read.map_err(io("read", path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Message {
    level: String,
    /// `E0425`, a lint's name, or nothing.
    code: String,
    rendered: String,
}

impl Message {
    /// An error of the compiler and not of a lint: this is no Rust that compiles.
    fn is_hard(&self) -> bool {
        let numbered = self.code.strip_prefix('E').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        self.level == "error" && (self.code.is_empty() || numbered)
    }
}

/// What cargo said about the candidate's own crate.
pub(super) struct Said {
    /// What has a place in the source, so without summaries.
    messages: Vec<Message>,
    /// Its library is there.
    pub(super) built: bool,
}

impl Said {
    pub(super) fn new(stdout: &[u8]) -> Self {
        let mut said = Self { messages: Vec::new(), built: false };
        for line in String::from_utf8_lossy(stdout).lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            if !line["package_id"].as_str().is_some_and(|id| id.contains(CANDIDATE)) {
                continue;
            }
            said.built |= line["reason"] == "compiler-artifact";
            let Some(message) = line.get("message").filter(|_| line["reason"] == "compiler-message") else { continue };
            if message["spans"].as_array().is_some_and(|spans| !spans.is_empty()) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (level, rendered) = (text(&message["level"]), text(&message["rendered"]));
                said.messages.push(Message { level, code: text(&message["code"]["code"]), rendered });
            }
        }
        said
    }

    fn has_hard_error(&self) -> bool {
        self.messages.iter().any(Message::is_hard)
    }

    /// The codes of some messages, each once.
    fn codes(&self, of: impl Fn(&Message) -> bool) -> Vec<String> {
        let codes = self.messages.iter().filter(|message| of(message) && !message.code.is_empty());
        codes.map(|message| message.code.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn keep_errors(&self, report: &mut Judgement) {
        report.error_codes = self.codes(Message::is_hard);
        report.diagnostics.clear();
        keep(report, self.messages.iter().filter(|message| message.level == "error"));
    }
}

fn keep<'m>(report: &mut Judgement, said: impl Iterator<Item = &'m Message>) {
    for message in said {
        let rendered = shown(&message.rendered);
        if report.diagnostics.len() + rendered.len() > DIAGNOSTICS {
            report.diagnostics += "(more was said)\n";
            return;
        }
        report.diagnostics += &rendered;
    }
}
