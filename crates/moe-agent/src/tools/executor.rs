//! The executor: a copy of a crate and the tools that work on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eval_rust::sandbox::{Caps, Command, End, Outcome, Run, SandboxError, collect};

use super::call::{Arguments, CargoDoc, ReadFile, RepoSearch, RunCommand, RunTests, ToolCall};
use super::command::{self, Allowed};
use super::error::{CallError, ExecutorError, shown};
use super::files::{Files, Workspace, inside};
use super::harness::TestReport;
use super::index::CrateIndex;
use super::messages::{self, Diagnostic};
use super::normalise::{cap, normalise};
use super::result::{Status, ToolResult};
use super::{Tool, cargo, documentation};

/// Tries of a run that the sandbox itself failed.
const TRIES: usize = 3;
/// Most lines that a search gives.
const MAX_FOUND: usize = 20;
/// Most characters of a line that a search gives.
const MAX_LINE: usize = 160;
/// What rustdoc may have made.
const PAGES: Caps = Caps { entries: 20_000, bytes: 64 << 20, depth: 16 };

/// What executors work with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Folder of a toolchain: `bin/cargo`, `lib/rustlib`.
    pub toolchain: PathBuf,
    /// Sources of dependencies, as `cargo vendor` writes them; without it crates have none.
    pub vendor: Option<PathBuf>,
    /// Folder for copies of crates, gone with their executors.
    pub work: PathBuf,
    /// What `search_crates_io` searches.
    pub index: Arc<CrateIndex>,
    /// The tools that a call may name.
    pub tools: Vec<Tool>,
    /// Most bytes of an output, about.
    pub output_bytes: usize,
    /// Whether messages of the compiler are given as one line each even where they fit in full.
    pub brief: bool,
    /// Whether `apply_patch` may change `tests/` and `benches/`.
    pub may_change_tests: bool,
    /// Wall seconds of a program; processor seconds are twice that.
    pub seconds: u64,
    /// Wall seconds of what `run_tests` runs, once it is built; without it building and running share `seconds`.
    pub test_seconds: Option<u64>,
    /// Memory of a program, in MiB.
    pub memory_mib: u64,
}

impl Setup {
    /// Every tool with 4 KiB of output, 120 seconds and 2 GiB, no dependencies and an empty index.
    pub fn new(toolchain: PathBuf, work: PathBuf) -> Self {
        Self {
            toolchain,
            vendor: None,
            work,
            index: Arc::default(),
            tools: Tool::ALL.to_vec(),
            output_bytes: 4096,
            brief: false,
            may_change_tests: false,
            seconds: 120,
            test_seconds: None,
            memory_mib: 2048,
        }
    }
}

/// What an executor has run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Programs.
    pub runs: u64,
    /// Their time on the clock, launches included.
    pub wall: Duration,
}

/// The state of an executor between two calls.
#[derive(Debug, Clone)]
pub struct Snapshot {
    files: Files,
    diagnostics: Vec<Diagnostic>,
    tests: Option<TestReport>,
}

/// Does what calls ask, on a crate of its own.
///
/// The target folder is kept from call to call and over [`Executor::reset`], so only what changed is compiled again.
pub struct Executor<'a> {
    runner: &'a (dyn Run + Sync),
    setup: Arc<Setup>,
    workspace: Workspace,
    diagnostics: Vec<Diagnostic>,
    tests: Option<TestReport>,
    /// Pages of the documentation and the workspace that they are of.
    pages: Option<(String, Files)>,
    spent: Spent,
}

impl std::fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("workspace", &self.workspace.hash()).finish_non_exhaustive()
    }
}

impl<'a> Executor<'a> {
    /// An executor over a copy of these files, as [`super::load_crate`] reads them. A crate without `Cargo.lock` gets one.
    ///
    /// # Errors
    /// [`ExecutorError::Crate`] when the crate has a build script or no lock file can be made, [`ExecutorError::Sandbox`], [`ExecutorError::Io`].
    pub fn new(runner: &'a (dyn Run + Sync), setup: &Arc<Setup>, files: Files) -> Result<Self, ExecutorError> {
        if files.contains_key("build.rs") {
            return Err(ExecutorError::Crate { reason: "it has a build script".into() });
        }
        let workspace = Workspace::new(&setup.work, files)?;
        let mut this = Self {
            runner,
            setup: setup.clone(),
            workspace,
            diagnostics: Vec::new(),
            tests: None,
            pages: None,
            spent: Spent::default(),
        };
        if !this.workspace.files().contains_key("Cargo.lock") {
            let outcome = this.run("cargo", &["generate-lockfile", "--offline"], true)?;
            this.workspace.take_over()?;
            if outcome.end != End::Exit(0) || !this.workspace.files().contains_key("Cargo.lock") {
                let said = normalise(&String::from_utf8_lossy(&outcome.stderr));
                return Err(ExecutorError::Crate { reason: format!("no lock file: {}", cap(&said, 500)) });
            }
        }
        Ok(this)
    }

    /// The files as they are now.
    pub fn files(&self) -> &Files {
        self.workspace.files()
    }

    /// The text of a file; `None` when it is not there or no text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.workspace.text(path).ok()
    }

    /// BLAKE3 over names and contents of the files.
    pub fn workspace_hash(&self) -> &str {
        self.workspace.hash()
    }

    /// The tests of the last run, by `run_tests` or `cargo test`.
    pub fn tests(&self) -> Option<&TestReport> {
        self.tests.as_ref()
    }

    /// The messages of the compiler in the last run, errors first.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// What has been run so far.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Begins anew with other files and keeps what is compiled.
    ///
    /// # Errors
    /// [`ExecutorError::Io`].
    pub fn reset(&mut self, files: Files) -> Result<(), ExecutorError> {
        self.diagnostics.clear();
        self.tests = None;
        self.workspace.replace(files)
    }

    /// The state, to come back to.
    pub fn snapshot(&self) -> Snapshot {
        let (diagnostics, tests) = (self.diagnostics.clone(), self.tests.clone());
        Snapshot { files: self.files().clone(), diagnostics, tests }
    }

    /// Comes back to a state.
    ///
    /// # Errors
    /// [`ExecutorError::Io`].
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<(), ExecutorError> {
        self.diagnostics = snapshot.diagnostics;
        self.tests = snapshot.tests;
        self.workspace.replace(snapshot.files)
    }

    /// Does what a call asks. A call that is wrong in any way is a result, with [`Status::Refused`].
    ///
    /// # Errors
    /// [`ExecutorError`] when something on this side failed: then nothing is known about the call.
    pub fn call(&mut self, call: &ToolCall) -> Result<ToolResult, ExecutorError> {
        let before = self.workspace.hash().to_owned();
        let parsed = call.parse();
        let canonical = parsed.as_ref().ok().map(Arguments::canonical);
        let named = call.recipient.strip_prefix("functions.").and_then(|name| name.parse().ok());
        let done = match parsed {
            Ok(arguments) => self.perform(&arguments)?,
            Err(error) => Err(error),
        };
        let (status, output) = match done {
            Ok((status, output)) => (status, output),
            Err(error) => (Status::Refused(error.refusal()), format!("error: {error}\n")),
        };
        // A long line keeps its beginning and its end, so the cap holds whatever a program writes.
        let output = cap(&output, self.setup.output_bytes);
        Ok(ToolResult::new(call, named, canonical, &before, (status, output)))
    }

    fn perform(&mut self, arguments: &Arguments) -> Result<Result<(Status, String), CallError>, ExecutorError> {
        let tool = arguments.tool();
        if !self.setup.tools.contains(&tool) {
            return Ok(Err(CallError::NotOffered { tool }));
        }
        let done = |said: Result<String, CallError>| Ok(said.map(|said| (Status::Done, said)));
        match arguments {
            Arguments::RunCommand(it) => self.command(it),
            Arguments::ReadFile(it) => done(self.read(it)),
            Arguments::RepoSearch(it) => done(self.search(it)),
            Arguments::RunTests(it) => self.run_tests(it),
            Arguments::CargoDoc(it) => self.documentation(it),
            Arguments::SearchCratesIo(it) => {
                let found = self.setup.index.search(&it.query);
                done(found.ok_or_else(|| CallError::not_found(format!("crate for `{}`", shown(&it.query)), "")))
            }
            Arguments::ReadError(it) => {
                let found = it.number.checked_sub(1).and_then(|at| self.diagnostics.get(at));
                let hint = format!("; the last output had {}", self.diagnostics.len());
                done(
                    found
                        .map(|one| one.rendered.clone())
                        .ok_or_else(|| CallError::not_found(format!("message {}", it.number), hint)),
                )
            }
            Arguments::ApplyPatch(it) => {
                let tests = self.setup.may_change_tests;
                match self.workspace.patch(&it.path, &it.old, &it.new, tests) {
                    Ok(written) => done(Ok(written? + "\n")),
                    Err(error) => Ok(Err(error)),
                }
            }
        }
    }

    fn read(&self, it: &ReadFile) -> Result<String, CallError> {
        let text = self.workspace.text(inside(&it.path)?)?;
        let n = text.lines().count();
        let (start, end) = (it.start.unwrap_or(1).max(1), it.end.unwrap_or(n).min(n));
        if start > end {
            return Err(CallError::not_found(
                format!("lines {start} to {end}"),
                format!("; {} has {n} lines", it.path),
            ));
        }
        let mut out: String =
            text.lines().skip(start - 1).take(end + 1 - start).map(|line| format!("{line}\n")).collect();
        if (start, end) != (1, n) {
            out += &format!("(lines {start}-{end} of {n})\n");
        }
        Ok(out)
    }

    fn search(&self, it: &RepoSearch) -> Result<String, CallError> {
        if it.query.is_empty() || it.query.contains('\n') {
            return Err(CallError::Arguments { reason: "query is part of one line and not empty".into() });
        }
        let below = it.path.as_deref().map(|path| inside(path.trim_end_matches('/'))).transpose()?;
        let mut lines = Vec::new();
        for (path, bytes) in self.files() {
            let within = below.is_none_or(|below| path == below || path.starts_with(&format!("{below}/")));
            let Ok(text) = std::str::from_utf8(bytes) else { continue };
            if !within || path == "Cargo.lock" {
                continue;
            }
            let found = text.lines().enumerate().filter(|(_, line)| line.contains(&it.query));
            lines.extend(found.map(|(i, line)| {
                let line: String = line.trim().chars().take(MAX_LINE).collect();
                format!("{path}:{}: {line}\n", i + 1)
            }));
        }
        if lines.is_empty() {
            return Err(CallError::not_found(format!("`{}`", shown(&it.query)), ""));
        }
        let more = lines.len().saturating_sub(MAX_FOUND);
        lines.truncate(MAX_FOUND);
        if more > 0 {
            lines.push(format!("and {more} more lines\n"));
        }
        Ok(lines.concat())
    }

    fn command(&mut self, it: &RunCommand) -> Result<Result<(Status, String), CallError>, ExecutorError> {
        let allowed = match command::allow(&it.command) {
            Ok(allowed) => allowed,
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(match allowed {
            Allowed::Build(args) => {
                let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
                words.splice(1..1, ["--offline", "--locked", "--message-format=json"]);
                let outcome = self.run("cargo", &words, false)?;
                let (_, errors) = self.understand(&outcome);
                let said: Vec<&Diagnostic> = self.diagnostics.iter().collect();
                let mut text = messages::describe(&said, self.setup.output_bytes, self.setup.brief);
                if said.is_empty() {
                    text = if outcome.end == End::Exit(0) { "no errors or warnings\n".into() } else { errors };
                }
                with_end(outcome.end, text)
            }
            Allowed::Test(args, harness) => self.test(&args, &harness)?,
            Allowed::Format { check } => {
                let args: &[&str] = if check { &["fmt", "--check"] } else { &["fmt"] };
                let outcome = self.run("cargo", args, !check)?;
                if !check {
                    self.workspace.take_over()?;
                }
                let text = normalise(&String::from_utf8_lossy(&[outcome.stdout, outcome.stderr].concat()));
                with_end(outcome.end, if text.is_empty() { "formatted\n".into() } else { text })
            }
            Allowed::Explain(code) => {
                let outcome = self.run("rustc", &["--explain", &code], false)?;
                with_end(outcome.end, normalise(&String::from_utf8_lossy(&[outcome.stdout, outcome.stderr].concat())))
            }
            Allowed::List(path) => match self.list(&path) {
                Some(text) => (Status::Done, text),
                None => return Ok(Err(CallError::not_found(format!("folder {}", shown(&path)), ""))),
            },
        }))
    }

    /// The names in a folder, folders with `/`.
    fn list(&self, path: &str) -> Option<String> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names: Vec<&str> = Vec::new();
        for inner in self.files().keys().filter_map(|name| name.strip_prefix(&prefix)) {
            let end = inner.find('/').map_or(inner.len(), |at| at + 1);
            if names.last() != Some(&&inner[..end]) {
                names.push(&inner[..end]);
            }
        }
        if names.is_empty() && self.files().contains_key(path) {
            names.push(path);
        }
        (!names.is_empty()).then(|| names.join("\n") + "\n")
    }

    fn run_tests(&mut self, it: &RunTests) -> Result<Result<(Status, String), CallError>, ExecutorError> {
        let name = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_:-".contains(c);
            !text.is_empty() && text.len() <= 200 && !text.starts_with('-') && text.chars().all(plain)
        };
        for (key, value) in [("filter", &it.filter), ("target", &it.target)] {
            if value.as_ref().is_some_and(|value| !name(value)) {
                return Ok(Err(CallError::Arguments { reason: format!("{key} must be a name") }));
            }
        }
        let mut args: Vec<String> = match it.target.as_deref() {
            None => vec!["--tests".into()],
            Some("lib") => vec!["--lib".into()],
            Some(target) if self.files().contains_key(&format!("tests/{target}.rs")) => {
                vec!["--test".into(), target.into()]
            }
            Some(target) => return Ok(Err(CallError::not_found(format!("tests/{target}.rs"), ""))),
        };
        if let Some(seconds) = self.setup.test_seconds {
            let outcome = self.build_and_test(&args, it.filter.as_deref(), Duration::from_secs(seconds))?;
            return Ok(Ok(self.report(&outcome)));
        }
        args.extend(it.filter.clone());
        Ok(Ok(self.test(&args, &[])?))
    }

    /// Runs tests one after the other.
    fn test(&mut self, args: &[String], harness: &[String]) -> Result<(Status, String), ExecutorError> {
        let mut words = vec!["test", "--offline", "--locked", "--no-fail-fast", "--message-format=json"];
        words.extend(args.iter().map(String::as_str).filter(|word| *word != "--no-fail-fast"));
        words.extend(["--", "--test-threads=1"]);
        words.extend(harness.iter().map(String::as_str));
        let outcome = self.run("cargo", &words, false)?;
        Ok(self.report(&outcome))
    }

    /// Builds tests, then runs them as [`Executor::test`] does, in `left` together: tests that never end are stopped soon.
    fn build_and_test(
        &mut self,
        targets: &[String],
        filter: Option<&str>,
        mut left: Duration,
    ) -> Result<Outcome, ExecutorError> {
        let mut words = vec!["test", "--offline", "--locked", "--no-run", "--message-format=json"];
        words.extend(targets.iter().map(String::as_str));
        let mut all = self.run("cargo", &words, false)?;
        if all.end != End::Exit(0) {
            return Ok(all);
        }
        for program in messages::test_programs(&String::from_utf8_lossy(&all.stdout)) {
            let args: Vec<&str> = filter.into_iter().chain(["--test-threads=1"]).collect();
            let mut command = cargo::tool(&self.setup, &self.workspace, "", &args, false);
            command.program = program.into();
            command.limits.wall = left;
            command.limits.cpu = command.limits.wall * 2;
            let outcome = self.launch(&command)?;
            left = left.saturating_sub(outcome.wall).max(Duration::from_millis(100));
            all.stdout.extend(outcome.stdout);
            all.stderr.extend(outcome.stderr);
            all.end = if all.end == End::Exit(0) { outcome.end } else { all.end };
        }
        Ok(all)
    }

    /// What a run of tests came to.
    fn report(&mut self, outcome: &Outcome) -> (Status, String) {
        let (printed, errors) = self.understand(outcome);
        let failed: Vec<&Diagnostic> = self.diagnostics.iter().filter(|one| one.is_error()).collect();
        let limit = self.setup.output_bytes;
        if !failed.is_empty() {
            let said = messages::describe(&failed, limit, self.setup.brief);
            let s = if failed.len() == 1 { "" } else { "s" };
            return with_words(outcome.end, format!("does not compile, {} error{s}\n{said}", failed.len()));
        }
        let report = TestReport::read(&printed);
        let ran = report.passed + report.failed.len() + report.ignored > 0;
        let status = Status::of(outcome.end);
        let said = if report.cut_short || (!ran && outcome.end != End::Exit(0)) {
            let tail = cap(&format!("{printed}{errors}"), limit);
            // A program that leaves in the middle of its tests has not passed them, whatever its exit code.
            let status = if status.is_success() { Status::Stopped(outcome.end) } else { status };
            (status, format!("the tests did not run to their end\n{tail}"))
        } else if ran {
            let (status, text) = with_words(outcome.end, report.describe(limit));
            let failing = status.is_success() && !report.failed.is_empty();
            (if failing { Status::Stopped(outcome.end) } else { status }, text)
        } else {
            (status, "no test ran\n".to_owned())
        };
        self.tests = Some(report);
        said
    }

    fn documentation(&mut self, it: &CargoDoc) -> Result<Result<(Status, String), CallError>, ExecutorError> {
        let Some(krate) = self.crate_name() else {
            return Ok(Err(CallError::not_found("library of this crate", "")));
        };
        let hash = self.workspace.hash().to_owned();
        if self.pages.as_ref().is_none_or(|(of, _)| *of != hash) {
            let args = ["doc", "--offline", "--locked", "--no-deps", "--lib", "--message-format=json"];
            let outcome = self.run("cargo", &args, false)?;
            let (_, errors) = self.understand(&outcome);
            if outcome.end != End::Exit(0) {
                let said: Vec<&Diagnostic> = self.diagnostics.iter().filter(|one| one.is_error()).collect();
                let text = messages::describe(&said, self.setup.output_bytes, self.setup.brief);
                return Ok(Ok(with_end(outcome.end, if text.is_empty() { errors } else { text })));
            }
            let folder = self.workspace.target_folder().join("doc");
            let pages = collect(&folder, &PAGES).map_err(|source| ExecutorError::Collect { path: folder, source })?;
            let own = pages.into_iter().filter(|(path, _)| documentation::is_page(path, &krate));
            let own = own.filter_map(|(path, bytes)| Some((path.into_os_string().into_string().ok()?, bytes)));
            self.pages = Some((hash, own.collect()));
        }
        let none = Files::new();
        let pages = self.pages.as_ref().map_or(&none, |(_, pages)| pages);
        Ok(match documentation::page(pages, &krate, &it.item) {
            Some(text) => Ok((Status::Exit(0), text)),
            None => {
                let items = cap(&documentation::items(pages, &krate).join(", "), 400);
                Err(CallError::not_found(format!("item `{}`", shown(&it.item)), format!("; there are {items}")))
            }
        })
    }

    /// The name of the library in paths.
    fn crate_name(&self) -> Option<String> {
        let manifest: toml::Table = self.text("Cargo.toml")?.parse().ok()?;
        let name = |table: &str| manifest.get(table).and_then(|table| table.get("name")).and_then(toml::Value::as_str);
        Some(name("lib").or_else(|| name("package"))?.replace('-', "_"))
    }

    /// Keeps the messages of a run; what else it printed, and what cargo itself complained of.
    fn understand(&mut self, outcome: &Outcome) -> (String, String) {
        let (diagnostics, rest) = messages::split(&String::from_utf8_lossy(&outcome.stdout));
        self.diagnostics = diagnostics;
        self.tests = None;
        (normalise(&rest), normalise(&String::from_utf8_lossy(&outcome.stderr)))
    }

    /// Runs a program of the toolchain, again where the sandbox itself failed.
    fn run(&mut self, program: &str, args: &[&str], writable: bool) -> Result<Outcome, ExecutorError> {
        let command = cargo::tool(&self.setup, &self.workspace, program, args, writable);
        self.launch(&command)
    }

    fn launch(&mut self, command: &Command) -> Result<Outcome, ExecutorError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.runner.run(command) {
                Ok(outcome) => {
                    self.spent.runs += 1;
                    self.spent.wall += outcome.wall;
                    return Ok(outcome);
                }
                Err(error @ (SandboxError::Host { .. } | SandboxError::Lost(_) | SandboxError::Left(_)))
                    if tries < TRIES =>
                {
                    drop(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The status and a text that begins with how a program ended, unless it ended well.
fn with_end(end: End, text: String) -> (Status, String) {
    let words = match end {
        End::Exit(0) => String::new(),
        End::Exit(code) => format!("exit code {code}\n"),
        other => stopped(other),
    };
    (Status::of(end), words + &text)
}

/// As [`with_end`], for a text that says itself whether it went well.
fn with_words(end: End, text: String) -> (Status, String) {
    let words = if matches!(end, End::Exit(_)) { String::new() } else { stopped(end) };
    (Status::of(end), words + &text)
}

fn stopped(end: End) -> String {
    match end {
        End::Exit(code) => format!("exit code {code}\n"),
        End::Signal(signal) => format!("stopped by signal {signal}\n"),
        End::WallTime => "stopped: it took too long\n".into(),
        End::CpuTime => "stopped: it used too much processor time\n".into(),
        End::Memory => "stopped: it used too much memory\n".into(),
        End::Output => "stopped: it wrote too much\n".into(),
    }
}
