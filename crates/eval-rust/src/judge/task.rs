//! A task on disk: `task.toml`, the crate to begin with, the hidden tests, the solution.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gates::artifact::hash_bytes;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::collect::{Files, collect};
use super::error::{JudgeError, Result};
use super::hash;
use super::rewrite::{self, TestFile};
use super::values::Type;

/// Most bytes of `task.toml`.
const MAX_BYTES: u64 = 1 << 20;
/// Keys of a package that a task may have.
const PACKAGE_KEYS: [&str; 11] = [
    "name",
    "version",
    "edition",
    "publish",
    "license",
    "description",
    "authors",
    "rust-version",
    "repository",
    "keywords",
    "categories",
];
/// Tables of a manifest that a task may have.
const MANIFEST_KEYS: [&str; 8] =
    ["package", "lib", "dependencies", "dev-dependencies", "features", "lints", "test", "example"];

/// What decides about a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Tests that run in one process with the candidate's code, which must be free of `unsafe`.
    Tests,
    /// Functions that are called with random inputs and compared with the solution's answers outside, and tests where there
    /// are any.
    Functions,
    /// Tests that the candidate writes, which must hold on the task's crate and fail on mutants of it.
    WriteTests,
}

/// `task.toml` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// Name of the task.
    pub id: String,
    /// What a candidate is asked to do.
    pub description: String,
    /// What decides.
    pub kind: TaskKind,
    /// Tests, as `file::name`, that fail before and must pass.
    #[serde(default)]
    pub fail_to_pass: BTreeSet<String>,
    /// Tests that pass before and must still pass.
    #[serde(default)]
    pub pass_to_pass: BTreeSet<String>,
    /// New `unsafe` is counted instead of refused; only for functions without tests.
    #[serde(default)]
    pub allow_unsafe: bool,
    /// Limits.
    #[serde(default)]
    pub limits: TaskLimits,
    /// Functions to call.
    #[serde(default)]
    pub functions: Vec<Function>,
    /// What a candidate that writes tests is measured by.
    pub write_tests: Option<WriteTests>,
}

/// What a candidate that writes tests is measured by.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteTests {
    /// Names of the files `tests/NAME.rs` that the candidate writes; no other file of it is used.
    pub tests: BTreeSet<String>,
    /// Share of the counted mutants that must be killed: all, unless it says less.
    #[serde(default = "default_min_killed")]
    pub min_killed: f64,
    /// Mutants that must count, which those are not that a limit of time ended; half of them, unless it says otherwise.
    pub min_counted: Option<u64>,
}

impl WriteTests {
    /// Of so many mutants, how many must count.
    pub(crate) fn min_counted(&self, mutants: usize) -> u64 {
        self.min_counted.unwrap_or(mutants.div_ceil(2) as u64)
    }

    fn check(&self, mutants: usize) -> Result<(), String> {
        if self.tests.is_empty() || !self.tests.iter().all(|stem| is_name(stem)) {
            return Err("write_tests.tests names files by letters, digits and `_`, at least one".into());
        }
        if !(self.min_killed > 0.0 && self.min_killed <= 1.0) {
            return Err("write_tests.min_killed is a share above 0 and at most 1".into());
        }
        if mutants == 0 || !(1..=mutants as u64).contains(&self.min_counted(mutants)) {
            return Err(format!("{mutants} mutants, of which at least one and no more than there are must count"));
        }
        Ok(())
    }
}

fn default_min_killed() -> f64 {
    1.0
}

/// What judging one candidate may take.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskLimits {
    /// Seconds of the build of the candidate and its tests.
    pub check_s: u64,
    /// Seconds of clippy, which checks at the same time; a candidate that takes longer does not compile.
    pub clippy_s: u64,
    /// Seconds of all tests together.
    pub test_s: u64,
    /// MiB of a test's process.
    pub memory_mib: u64,
}

impl Default for TaskLimits {
    fn default() -> Self {
        Self { check_s: 60, clippy_s: 60, test_s: 300, memory_mib: 1024 }
    }
}

impl TaskLimits {
    pub(crate) fn check(&self) -> Duration {
        Duration::from_secs(self.check_s)
    }
    pub(crate) fn clippy(&self) -> Duration {
        Duration::from_secs(self.clippy_s)
    }
    pub(crate) fn test(&self) -> Duration {
        Duration::from_secs(self.test_s)
    }
}

/// A function of the crate that is called from outside.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Path below the crate, such as `math::gcd`.
    pub path: String,
    /// Types of the arguments.
    pub args: Vec<String>,
    /// Type of the result.
    pub returns: String,
    /// Random inputs.
    #[serde(default = "default_cases")]
    pub cases: u32,
    /// Most elements of a vector and characters of a string.
    #[serde(default = "default_max_len")]
    pub max_len: u32,
    /// Inclusive range of integers; without it the whole type, small numbers and both ends more often.
    pub ints: Option<(i128, i128)>,
    /// Inputs that are always asked, in the words of the driver: numbers, `x` and hexadecimal text, a length before elements.
    #[serde(default)]
    pub edges: Vec<String>,
}

fn default_cases() -> u32 {
    64
}

fn default_max_len() -> u32 {
    24
}

/// A task whose parts fit together.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its folder.
    pub dir: PathBuf,
    /// What was written.
    pub file: TaskFile,
    /// Hash of all that decides about a candidate: the file, the start, the hidden tests and the solution.
    pub hash: String,
    pub(crate) start: Files,
    pub(crate) manifest: Table,
    pub(crate) package: String,
    pub(crate) crate_name: String,
    pub(crate) edition: String,
    pub(crate) tests: BTreeMap<String, TestFile>,
    /// Sources that are replaced, by the name of the mutant.
    pub(crate) mutants: BTreeMap<String, Files>,
    pub(crate) types: Vec<(Vec<Type>, Type)>,
}

impl Task {
    /// Reads a task and checks that it can be judged.
    ///
    /// # Errors
    /// [`JudgeError::Task`] naming what is wrong: unknown keys, a manifest with more than a plain crate, test names that the
    /// hidden tests do not have exactly, functions of unknown types.
    pub fn load(dir: &Path) -> Result<Self> {
        let bad = |what: String| JudgeError::Task { path: dir.into(), what };
        let text = gates::artifact::read_bounded(&dir.join("task.toml"), MAX_BYTES)?;
        let text = String::from_utf8(text).map_err(|_| bad("task.toml is not UTF-8".into()))?;
        let file: TaskFile = toml::from_str(&text).map_err(|error| bad(format!("task.toml: {error}")))?;
        let read = |name: &str| collect(&dir.join(name)).map_err(|error| bad(format!("{name}/: {error}")));
        let start = read("start")?;
        let manifest = manifest(&start).map_err(bad)?;
        let name = |table: &str| Some(manifest.get(table)?.get("name")?.as_str()?.to_owned());
        let package = name("package").ok_or_else(|| bad("start/Cargo.toml has no package name".into()))?;
        let crate_name = name("lib").unwrap_or_else(|| package.clone()).replace('-', "_");
        let edition = manifest["package"].get("edition").and_then(|e| e.as_str()).unwrap_or("2015").to_owned();
        let hidden = if dir.join("hidden").is_dir() { read("hidden")? } else { Files::new() };
        let solution = if dir.join("solution").is_dir() { read("solution")? } else { Files::new() };
        let parts = [hash_bytes(text.as_bytes()), hash(&start), hash(&hidden), hash(&solution)];
        let mut task = Self {
            hash: hash_bytes(parts.concat().as_bytes()),
            dir: dir.into(),
            types: Vec::new(),
            tests: BTreeMap::new(),
            mutants: BTreeMap::new(),
            file,
            start,
            manifest,
            package,
            crate_name,
            edition,
        };
        if task.file.write_tests.is_none() {
            task.tests = task.test_files(&hidden).map_err(bad)?;
        }
        task.mutants = task.read_mutants(&hidden).map_err(bad)?;
        task.types = task.function_types().map_err(bad)?;
        task.check().map_err(bad)?;
        Ok(task)
    }

    /// The solution's folder.
    pub fn solution(&self) -> PathBuf {
        self.dir.join("solution")
    }

    /// The folder of the crate to begin with.
    pub fn start(&self) -> PathBuf {
        self.dir.join("start")
    }

    /// `file::name` of every test that must pass.
    pub fn expected(&self) -> impl Iterator<Item = &String> {
        self.file.fail_to_pass.union(&self.file.pass_to_pass)
    }

    /// Whether a candidate is asked for this file of tests.
    pub(crate) fn asks_for(&self, path: &str) -> bool {
        let stem = path.strip_prefix("tests/").and_then(|name| name.strip_suffix(".rs"));
        self.file.write_tests.as_ref().zip(stem).is_some_and(|(asked, stem)| asked.tests.contains(stem))
    }

    /// Sources below `hidden/mutants/NAME/`, each another text of one that the start has.
    fn read_mutants(&self, hidden: &Files) -> Result<BTreeMap<String, Files>, String> {
        let mut mutants: BTreeMap<String, Files> = BTreeMap::new();
        for (path, bytes) in hidden {
            let Some((name, file)) = path.strip_prefix("mutants/").and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            let old = self.start.get(file).filter(|_| file.starts_with("src/") && file.ends_with(".rs"));
            if !is_id(name) || old.is_none_or(|old| old == bytes) {
                return Err(format!("hidden/{path} must replace a source of start/ by another one"));
            }
            mutants.entry(name.to_owned()).or_default().insert(file.to_owned(), bytes.clone());
        }
        Ok(mutants)
    }

    /// Visible tests and hidden ones; a hidden file replaces a visible one of its name.
    fn test_files(&self, hidden: &Files) -> Result<BTreeMap<String, TestFile>, String> {
        let mut found = BTreeMap::new();
        for (path, bytes) in self.start.iter().chain(hidden) {
            let Some(stem) = path.strip_prefix("tests/").and_then(|name| name.strip_suffix(".rs")) else { continue };
            if !is_name(stem) {
                return Err(format!(
                    "tests/{stem}.rs: a test file is named by letters, digits and `_`, without folders"
                ));
            }
            let text = std::str::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8"))?;
            let test = rewrite::test_file(text, &self.crate_name).map_err(|what| format!("{path}: {what}"))?;
            found.insert(stem.to_owned(), test);
        }
        Ok(found)
    }

    fn function_types(&self) -> Result<Vec<(Vec<Type>, Type)>, String> {
        let parse =
            |text: &String| Type::parse(text).ok_or_else(|| format!("type `{text}` is not one that can be asked"));
        let one = |function: &Function| {
            if !function.path.split("::").all(is_name) {
                return Err(format!("`{}` is no path of a function", function.path));
            }
            let args = function.args.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
            let returns = parse(&function.returns)?;
            if args.iter().any(|arg| matches!(arg, Type::Result(_))) {
                return Err(format!("`{}`: a Result is no argument", function.path));
            }
            if matches!(returns, Type::Str | Type::Slice(_) | Type::MutVec(_)) {
                return Err(format!("`{}` returns a reference; only owned values are compared", function.path));
            }
            Ok((args, returns))
        };
        self.file.functions.iter().map(one).collect()
    }

    fn check(&self) -> Result<(), String> {
        let file = &self.file;
        if !is_id(&file.id) || !is_id(&self.package) {
            return Err("id and package name are letters, digits, `-` and `_`".into());
        }
        if let Some(both) = file.fail_to_pass.intersection(&file.pass_to_pass).next() {
            return Err(format!("`{both}` cannot both fail and pass before"));
        }
        let wanted: BTreeSet<String> = self.expected().cloned().collect();
        let names = |(stem, test): (&String, &TestFile)| {
            test.tests.iter().map(|test| format!("{stem}::{}", test.name)).collect::<Vec<_>>()
        };
        let there: BTreeSet<String> = self.tests.iter().flat_map(names).collect();
        if let Some(name) = wanted.symmetric_difference(&there).next() {
            let side =
                if wanted.contains(name) { "expected but in no test file" } else { "in a test file but not expected" };
            return Err(format!("test `{name}` is {side}"));
        }
        match (file.kind, &file.write_tests) {
            (TaskKind::WriteTests, Some(asked)) => asked.check(self.mutants.len())?,
            (TaskKind::WriteTests, None) => return Err("a task of kind `write_tests` needs [write_tests]".into()),
            (_, Some(_)) => return Err("[write_tests] needs kind `write_tests`".into()),
            (_, None) if !self.mutants.is_empty() => return Err("hidden/mutants needs kind `write_tests`".into()),
            _ => {}
        }
        match (file.kind, file.functions.is_empty()) {
            (TaskKind::WriteTests, empty) if !empty || !wanted.is_empty() || file.allow_unsafe => {
                return Err("a task of kind `write_tests` has no functions, no tests to pass and no unsafe".into());
            }
            (TaskKind::Tests, false) => return Err("a task of kind `tests` has no functions".into()),
            (TaskKind::Functions, true) => return Err("a task of kind `functions` needs [[functions]]".into()),
            (TaskKind::Tests, true) if file.fail_to_pass.is_empty() => {
                return Err("nothing has to change: fail_to_pass is empty".into());
            }
            _ => {}
        }
        if file.allow_unsafe && (file.kind == TaskKind::Tests || !there.is_empty()) {
            return Err(
                "allow_unsafe needs functions and no tests: unsafe code can forge what its own process says".into()
            );
        }
        let limits = [file.limits.check_s, file.limits.clippy_s, file.limits.test_s, file.limits.memory_mib];
        let cases = |f: &Function| f.cases > 0 && f.cases <= 10_000 && f.max_len <= 10_000;
        if limits.contains(&0) || !file.functions.iter().all(cases) {
            return Err("limits and cases must be above 0, cases and max_len at most 10000".into());
        }
        if !["2018", "2021", "2024"].contains(&self.edition.as_str()) {
            return Err(format!("edition {} is not one of 2018, 2021 and 2024", self.edition));
        }
        if !self.start.contains_key("src/lib.rs") {
            return Err("start/ has no src/lib.rs".into());
        }
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !text.starts_with(|c: char| c.is_ascii_digit())
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// The start's manifest, which must describe a plain library.
fn manifest(start: &Files) -> Result<Table, String> {
    let bytes = start.get("Cargo.toml").ok_or("start/ has no Cargo.toml")?;
    let text = std::str::from_utf8(bytes).map_err(|_| "start/Cargo.toml is not UTF-8")?;
    let table: Table = text.parse().map_err(|error| format!("start/Cargo.toml: {error}"))?;
    if let Some(key) = table.keys().find(|key| !MANIFEST_KEYS.contains(&key.as_str())) {
        return Err(format!("start/Cargo.toml: `{key}` is not part of a task"));
    }
    let keys = |name: &str| table.get(name).and_then(toml::Value::as_table).into_iter().flatten();
    if let Some((key, _)) = keys("package").find(|(key, _)| !PACKAGE_KEYS.contains(&key.as_str())) {
        return Err(format!("start/Cargo.toml: `package.{key}` is not part of a task"));
    }
    if let Some((key, _)) = keys("lib").find(|(key, _)| key.as_str() != "name") {
        return Err(format!("start/Cargo.toml: `lib.{key}` is not part of a task"));
    }
    for (name, value) in keys("dependencies").chain(keys("dev-dependencies")) {
        if ["path", "git", "registry", "workspace"].iter().any(|key| value.get(key).is_some()) {
            return Err(format!("start/Cargo.toml: dependency `{name}` must be a version"));
        }
    }
    if start.contains_key("build.rs") {
        return Err("start/ has a build.rs".into());
    }
    Ok(table)
}
