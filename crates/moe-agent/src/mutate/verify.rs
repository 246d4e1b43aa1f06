//! Decides about mutants and edits of one crate by building and testing it: the unchanged crate passes, the changed one
//! fails tests by name or does not compile as wanted, and the unchanged one passes those tests again.

use std::path::Path;
use std::time::Duration;

use eval_rust::sandbox::{End, Outcome};

use super::diff::{apply, unified};
use super::error::Result;
use super::generator::Mutant;
use super::said::{compiler_text, failed_tests, failure_text, passed_tests};
use super::source::Source;
use super::state::Fate;
use super::workshop::{Bench, TestProgram, Tools};
use crate::MutationRecord;

/// Failing tests that are run again and shown.
const SHOWN_TESTS: usize = 3;

/// A crate that builds and passes its tests, formatted by rustfmt.
pub(crate) struct Verifier<'a> {
    pub(crate) bench: Bench<'a>,
    pub(crate) source: Source,
    /// Tests that pass.
    pub(crate) tests: usize,
    test_wall: Duration,
}

/// The source with every file as rustfmt writes it, and where it is laid out.
pub(crate) fn formatted<'a>(tools: &'a Tools<'a>, root: &Path, mut source: Source) -> Result<(Bench<'a>, Source)> {
    let bench = Bench::new(tools, root, &source)?;
    let edition = source.edition.clone();
    for (name, bytes) in &mut source.files {
        let Ok(text) = std::str::from_utf8(bytes) else { continue };
        if name.ends_with(".rs")
            && let Some(formatted) = bench.format(text, &edition)?
            && formatted != text
        {
            *bytes = formatted.into_bytes();
            bench.put(name, bytes)?;
        }
    }
    Ok((bench, source))
}

impl<'a> Verifier<'a> {
    /// Builds and tests the unchanged crate.
    ///
    /// The inner error says why the crate cannot be used: it does not resolve, build or pass, or has no tests.
    pub(crate) fn new(tools: &'a Tools<'a>, root: &Path, source: Source, test_s: u64) -> Result<Result<Self, String>> {
        let (bench, source) = formatted(tools, root, source)?;
        let resolved = bench.resolve()?;
        if !resolved.ok {
            return Ok(Err(format!("its dependencies are not there: {}", last_lines(&resolved.stderr))));
        }
        let built = bench.build_tests()?;
        if !built.ok {
            let error = built.errors.first().map_or(built.stderr.as_str(), |(_, message)| message);
            return Ok(Err(format!("its tests do not build unchanged: {}", last_lines(error))));
        }
        let mut verifier = Self { bench, source, tests: 0, test_wall: Duration::from_secs(test_s) };
        for program in &built.programs {
            let outcome = verifier.bench.test(program, false, &[], verifier.test_wall)?;
            let said = String::from_utf8_lossy(&outcome.stdout);
            if outcome.end != End::Exit(0) {
                let names = failed_tests(&said).join(", ");
                return Ok(Err(format!("its tests fail unchanged: {} ({:?}) {names}", program.target, outcome.end)));
            }
            verifier.tests += passed_tests(&said).len();
        }
        if verifier.tests == 0 {
            return Ok(Err("it has no tests that run".into()));
        }
        verifier.bench.keep(&built.programs)?;
        Ok(Ok(verifier))
    }

    /// Tries one mutant or edit; the crate is unchanged again afterwards.
    pub(crate) fn attempt(&self, mutant: &Mutant) -> Result<(Fate, Option<MutationRecord>)> {
        let fixed = self.source.files.get(&mutant.file).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let Some((fixed, raw)) = fixed.and_then(|fixed| Some((fixed, mutant.apply(fixed)?))) else {
            return Ok((Fate::Unchanged, None));
        };
        let buggy = match self.bench.format(&raw, &self.source.edition)? {
            Some(buggy) if buggy != fixed => buggy,
            _ => return Ok((Fate::Unchanged, None)),
        };
        let diff = unified(&mutant.file, &buggy, fixed);
        if apply(&buggy, &diff).as_deref() != Some(fixed) {
            return Ok((Fate::Unchanged, None));
        }
        self.bench.put(&mutant.file, buggy.as_bytes())?;
        let result = if mutant.codes.is_empty() { self.run_tests() } else { self.compile(&mutant.codes) };
        self.bench.put(&mutant.file, fixed.as_bytes())?;
        let (fate, evidence) = result?;
        let record = evidence.map(|evidence| MutationRecord {
            buggy_code: buggy,
            error_message: evidence.message,
            fixed_code: fixed.to_owned(),
            repo: Some(self.source.name.clone()),
            file: Some(mutant.file.clone()),
            version: Some(self.source.version.clone()),
            licence: Some(self.source.licence.clone()),
            genre: Some(mutant.genre.clone()),
            mutation: Some(mutant.name.clone()),
            function: mutant.function.clone(),
            diff: Some(diff),
            failing_tests: evidence.tests,
            error_codes: evidence.codes,
        });
        if record.as_ref().is_some_and(|record| record.problem().is_some()) {
            return Ok((Fate::Unfit, None));
        }
        Ok((fate, record))
    }

    /// Whether the tests notice: fails, fails the same way again, and the kept programs of the unchanged crate pass.
    fn run_tests(&self) -> Result<(Fate, Option<Evidence>)> {
        let built = self.bench.build_tests()?;
        if built.timeout {
            return Ok((Fate::Timeout, None));
        }
        if !built.ok {
            return Ok((Fate::Unviable, None));
        }
        let mut failed: Vec<(&TestProgram, Vec<String>)> = Vec::new();
        for program in &built.programs {
            let outcome = self.bench.test(program, false, &[], self.test_wall)?;
            let names = failed_tests(&String::from_utf8_lossy(&outcome.stdout));
            match outcome.end {
                End::Exit(0) => {}
                End::Exit(_) if !names.is_empty() && !outcome.truncated => failed.push((program, names)),
                // A process that died or was stopped names no test.
                _ => return Ok((Fate::Timeout, None)),
            }
        }
        let Some((program, names)) = failed.first() else { return Ok((Fate::Missed, None)) };
        let shown = &names[..names.len().min(SHOWN_TESTS)];
        let again = self.run_named(program, false, shown)?;
        let said = String::from_utf8_lossy(&again.stdout);
        if failed_tests(&said) != shown {
            return Ok((Fate::Flaky, None));
        }
        let fixed = self.run_named(program, true, shown)?;
        let passed = passed_tests(&String::from_utf8_lossy(&fixed.stdout));
        if fixed.end != End::Exit(0) || passed.len() != shown.len() {
            return Ok((Fate::Flaky, None));
        }
        let all = failed.iter().flat_map(|(program, names)| names.iter().map(|name| program.test_name(name)));
        let evidence = Evidence { message: failure_text(&said), tests: all.collect(), codes: Vec::new() };
        Ok((Fate::Pair, Some(evidence)))
    }

    fn run_named(&self, program: &TestProgram, kept: bool, names: &[String]) -> Result<Outcome> {
        let mut args = vec!["--exact", "--test-threads=1"];
        args.extend(names.iter().map(String::as_str));
        self.bench.test(program, kept, &args, self.test_wall)
    }

    /// Whether the compiler refuses it with one of the wanted codes; that it takes the unchanged crate was seen before.
    fn compile(&self, wanted: &[String]) -> Result<(Fate, Option<Evidence>)> {
        let built = self.bench.check()?;
        if built.timeout {
            return Ok((Fate::Timeout, None));
        }
        if built.ok {
            return Ok((Fate::Missed, None));
        }
        if !built.errors.iter().any(|(code, _)| wanted.contains(code)) {
            return Ok((Fate::OtherError, None));
        }
        let mut codes: Vec<String> =
            built.errors.iter().map(|(code, _)| code.clone()).filter(|code| !code.is_empty()).collect();
        codes.sort();
        codes.dedup();
        let message = compiler_text(built.errors.iter().map(|(_, message)| message.as_str()));
        Ok((Fate::Pair, Some(Evidence { message, tests: Vec::new(), codes })))
    }
}

/// What shows that a change is a fault.
struct Evidence {
    message: String,
    tests: Vec<String>,
    codes: Vec<String>,
}

/// The end of what a program said, on one line.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    let from = lines.len().saturating_sub(6);
    super::said::clean_paths(&lines[from..].iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "))
}
