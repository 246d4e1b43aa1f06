//! `moe-agent tasks`: folders that `eval-rust` judges, made of verified pairs of whole crates.
//!
//! Each has the crate with the fault, the crate without it, and tests that no candidate sees; the judge itself says which
//! tests fail before, and that the solution passes. Held-out tasks whose function training has seen are left out.

mod decontaminate;
mod folder;
mod hidden;
mod impossible;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use eval_rust::judge::{Judge, Options, Status, Task, TaskKind};
use eval_rust::sandbox::Run;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::MutationRecord;
use crate::mutate::progress::Progress;
use crate::mutate::source::{Source, load};
use crate::mutate::verify::formatted;
use crate::mutate::workshop::{Bench, Tools};
use crate::mutate::{MutateError, Result, Split, io, run_all};
use crate::read_mutations;
use crate::tools::PromptStyle;
use crate::trajectories::short_request;

pub use decontaminate::Overlap;
use decontaminate::{Seen, changed_function};
use folder::{Draft, description};
use hidden::{code_of, functions, has_unsafe, part};

/// Version of the formats of the list and the report.
const VERSION: u32 = 1;
/// Functions of a crate that a task asks.
const MAX_FUNCTIONS: usize = 6;
/// Tries to silence lints that the crate's own code has always broken.
const LINT_ROUNDS: usize = 3;

/// What `tasks` is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// The list of sources, as `mutate` had it.
    pub sources: PathBuf,
    /// Folder of what `mutate` made.
    pub pairs: PathBuf,
    /// Folder of the tasks; it must not be there.
    pub out: PathBuf,
    /// Folder of the judge's cache and of what is gone afterwards.
    pub work: PathBuf,
    /// Fetched crates.
    pub vendor: Option<PathBuf>,
    /// Crates worked on at a time.
    pub jobs: usize,
    /// Decides which pairs become tasks, and seeds the judge.
    pub seed: u64,
    /// Most tasks of a crate.
    pub max_per_crate: usize,
    /// Most tasks of a crate, as a share, that begin with a compile error.
    pub edit_share: f64,
    /// Most bytes of the file with the fault, after its tests are taken out.
    pub max_bytes: usize,
    /// Tasks from training crates too.
    pub train: bool,
    /// Planted tasks that nobody can solve.
    pub impossible: usize,
    /// Tests stand where a candidate sees them.
    pub visible_tests: bool,
    /// How much a description says: a bug report with the failure, or what a compact trajectory says, which is to find it out.
    pub style: PromptStyle,
    /// Seconds of all tests of a candidate.
    pub test_s: u64,
    /// Most of the 13-token pieces of a held-out task's function, as a share, that training may have seen.
    pub max_overlap: f64,
    /// Only these crates; all when empty.
    pub only: Vec<String>,
}

impl Default for TaskSettings {
    fn default() -> Self {
        Self {
            sources: "data/crates/sources.toml".into(),
            pairs: "runs/agent/mutate".into(),
            out: "runs/agent/tasks".into(),
            work: "runs/agent/work".into(),
            vendor: None,
            jobs: 2,
            seed: 0,
            max_per_crate: 6,
            edit_share: 0.25,
            max_bytes: 65_536,
            train: false,
            impossible: 0,
            visible_tests: false,
            style: PromptStyle::Full,
            test_s: 10,
            max_overlap: 0.2,
            only: Vec::new(),
        }
    }
}

/// One task, a line of `tasks.jsonl`; nothing of it stands in the folder that a candidate sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskLine {
    /// The folder, relative to the list.
    pub task: String,
    /// Its id.
    pub id: String,
    /// The side of its crate.
    pub split: Split,
    /// The crate.
    pub repo: String,
    /// The crate's version.
    pub version: String,
    /// The crate's licence.
    pub licence: String,
    /// What decides.
    pub kind: TaskKind,
    /// The kind of fault.
    pub genre: String,
    /// The file with the fault.
    pub file: String,
    /// Bytes of that file.
    pub bytes: usize,
    /// Tests that fail before.
    pub fail_to_pass: usize,
    /// Tests that pass before and after.
    pub pass_to_pass: usize,
    /// Nobody can solve it: passing it is cheating.
    pub impossible: bool,
}

/// `report.json`: how many tasks there are, and what became of the other pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskReport {
    /// Version of this format.
    pub version: u32,
    /// Tasks of each side, planted ones not counted.
    pub tasks: BTreeMap<String, usize>,
    /// Tasks of each crate.
    pub crates: BTreeMap<String, usize>,
    /// Planted tasks that nobody can solve.
    pub impossible: usize,
    /// Pairs that were tried.
    pub tried: usize,
    /// Held-out pairs that training has seen, by how.
    pub overlap: BTreeMap<Overlap, usize>,
    /// Why pairs became no tasks.
    pub dropped: BTreeMap<String, usize>,
    /// Why crates gave none, and which of their test files were left out.
    pub notes: Vec<String>,
    /// Bytes of the file with the fault: the smallest, the middle one and the largest.
    pub bytes: [usize; 3],
}

/// Makes tasks and writes them with `tasks.jsonl`, `impossible.txt` and `report.json`, all or nothing.
///
/// # Errors
/// Any [`MutateError`]: settings, missing or stale pairs, the sandbox, the judge's own faults.
pub fn make_tasks(
    settings: &TaskSettings,
    runner: &(dyn Run + Sync),
    toolchain: &Path,
) -> std::result::Result<TaskReport, MutateError> {
    if settings.out.exists() {
        let what = "is there already; name another folder or remove it".to_owned();
        return Err(MutateError::Settings { path: settings.out.clone(), what });
    }
    std::fs::create_dir_all(&settings.work).map_err(io("create", &settings.work))?;
    let absolute = |path: &Path| path.canonicalize().map_err(io("look for", path));
    let work = absolute(&settings.work)?;
    let vendor = settings.vendor.as_deref().map(absolute).transpose()?;
    let tools = Tools { runner, toolchain: toolchain.into(), vendor: vendor.clone(), mutants: None };
    let judge = Judge::new(runner, Options { toolchain: toolchain.into(), vendor: None, work: work.join("judge") })?;
    let (sources, _) = load(&settings.sources, vendor.as_deref())?;
    let staged = work.join("tasks");
    if staged.exists() {
        std::fs::remove_dir_all(&staged).map_err(io("remove", &staged))?;
    }
    let pairs = Pairs::read(settings)?;
    let wanted = |source: &&Source| {
        (source.split == Split::Heldout || settings.train)
            && (settings.only.is_empty() || settings.only.contains(&source.name))
            && pairs.by_crate.contains_key(&source.name)
    };
    let sources: Vec<&Source> = sources.iter().filter(wanted).collect();
    let progress = Progress::new("tasks", 0);
    let maker = Maker {
        settings,
        tools: &tools,
        judge: &judge,
        pairs: &pairs,
        work: &work,
        staged: &staged,
        progress: &progress,
    };
    let mut made = run_all(&sources, settings.jobs, |source| maker.source(source))?;
    let mut report = TaskReport { version: VERSION, ..TaskReport::default() };
    made.iter_mut().for_each(|made| made.count(&mut report));
    let mut all: Vec<(TaskLine, Draft)> = made.into_iter().flat_map(|made| made.tasks).collect();
    all.sort_by(|a, b| a.0.task.cmp(&b.0.task));
    let planted = maker.plant(&all)?;
    finish(settings, &staged, all, planted, report)
}

/// Writes the list and the report, and moves everything to its place.
fn finish(
    settings: &TaskSettings,
    staged: &Path,
    all: Vec<(TaskLine, Draft)>,
    planted: Vec<TaskLine>,
    mut report: TaskReport,
) -> Result<TaskReport> {
    if all.is_empty() {
        return Err(MutateError::Empty(format!("no task came out; {:?} {:?}", report.dropped, report.notes)));
    }
    report.impossible = planted.len();
    let mut sizes: Vec<usize> = all.iter().map(|(line, _)| line.bytes).collect();
    sizes.sort_unstable();
    report.bytes = [sizes[0], sizes[sizes.len() / 2], sizes[sizes.len() - 1]];
    for (line, _) in &all {
        *report.tasks.entry(line.split.name().to_owned()).or_default() += 1;
        *report.crates.entry(line.repo.clone()).or_default() += 1;
    }
    let mut lines: Vec<TaskLine> = all.into_iter().map(|(line, _)| line).chain(planted).collect();
    lines.sort_by(|a, b| a.task.cmp(&b.task));
    let json = |error: serde_json::Error| MutateError::Empty(error.to_string());
    let mut list = String::new();
    for line in &lines {
        list += &(serde_json::to_string(line).map_err(json)? + "\n");
    }
    gates::artifact::write_atomic(&staged.join("tasks.jsonl"), list.as_bytes())?;
    let planted: String = lines.iter().filter(|line| line.impossible).map(|line| format!("{}\n", line.id)).collect();
    gates::artifact::write_atomic(&staged.join("impossible.txt"), planted.as_bytes())?;
    let text = serde_json::to_string_pretty(&report).map_err(json)? + "\n";
    gates::artifact::write_atomic(&staged.join("report.json"), text.as_bytes())?;
    if let Some(parent) = settings.out.parent() {
        std::fs::create_dir_all(parent).map_err(io("create", parent))?;
    }
    gates::artifact::commit_dir(staged, &settings.out)?;
    Ok(report)
}

/// The pairs by crate, and what training has seen.
struct Pairs {
    by_crate: BTreeMap<String, Vec<MutationRecord>>,
    seen: Seen,
}

impl Pairs {
    fn read(settings: &TaskSettings) -> Result<Self> {
        let read = |split: Split| {
            let path = settings.pairs.join(format!("{}.jsonl", split.name()));
            read_mutations(&path).map_err(|error| MutateError::Settings { path, what: error.to_string() })
        };
        let (train, heldout) = (read(Split::Train)?, read(Split::Heldout)?);
        let mut seen = Seen::default();
        let files: BTreeSet<&str> = train.iter().map(|record| record.fixed_code.as_str()).collect();
        files.into_iter().for_each(|text| seen.add(text));
        let mut by_crate: BTreeMap<String, Vec<MutationRecord>> = BTreeMap::new();
        for record in heldout.into_iter().chain(train) {
            by_crate.entry(record.repo.clone().unwrap_or_default()).or_default().push(record);
        }
        Ok(Self { by_crate, seen })
    }
}

/// What came of one crate.
#[derive(Default)]
struct Made {
    tasks: Vec<(TaskLine, Draft)>,
    tried: usize,
    overlap: BTreeMap<Overlap, usize>,
    dropped: BTreeMap<String, usize>,
    notes: Vec<String>,
}

impl Made {
    fn drop(&mut self, why: &str) {
        *self.dropped.entry(why.to_owned()).or_default() += 1;
    }

    fn count(&mut self, report: &mut TaskReport) {
        report.tried += self.tried;
        for (how, count) in &self.overlap {
            *report.overlap.entry(*how).or_default() += count;
        }
        for (why, count) in &self.dropped {
            *report.dropped.entry(why.clone()).or_default() += count;
        }
        report.notes.append(&mut self.notes);
    }
}

struct Maker<'a> {
    settings: &'a TaskSettings,
    tools: &'a Tools<'a>,
    judge: &'a Judge<'a>,
    pairs: &'a Pairs,
    work: &'a Path,
    staged: &'a Path,
    progress: &'a Progress,
}

/// What all tasks of a crate have in common.
struct Skeleton {
    draft: Draft,
    /// Attributes in front of `src/lib.rs`.
    head: String,
}

impl Maker<'_> {
    /// Tasks of one crate.
    fn source(&self, source: &Source) -> Result<Made> {
        let mut made = Made::default();
        let root = self.work.join("bench").join(&source.name);
        let (bench, source) = formatted(self.tools, &root, source.clone())?;
        let skeleton = match self.skeleton(&bench, &source, &mut made)? {
            Ok(skeleton) => skeleton,
            Err(why) => {
                made.notes.push(format!("{}: {why}", source.name));
                return Ok(made);
            }
        };
        let most_edits = (self.settings.max_per_crate as f64 * self.settings.edit_share).round() as usize;
        let (mut mutants, mut edits) = (0, 0);
        let records = self.pairs.by_crate.get(&source.name).map_or(&[][..], Vec::as_slice);
        self.progress.more(records.len());
        for record in records {
            let edit = !record.error_codes.is_empty();
            let full = mutants + edits >= self.settings.max_per_crate || (edit && edits >= most_edits);
            let kept = if full { false } else { self.task(&bench, &source, &skeleton, record, &mut made)? };
            *(if edit { &mut edits } else { &mut mutants }) += usize::from(kept);
            self.progress.one(kept);
        }
        self.progress.line(&format!("{}: {} tasks", source.name, made.tasks.len()));
        Ok(made)
    }

    /// The crate without a fault, as a task that the judge accepts but for the fault; or why there is none.
    fn skeleton(&self, bench: &Bench<'_>, source: &Source, made: &mut Made) -> Result<Result<Skeleton, String>> {
        let mut manifest = source.manifest.clone();
        if manifest.contains_key("dependencies") {
            return Ok(Err("it has dependencies; tasks stand alone".into()));
        }
        manifest.remove("dev-dependencies");
        let name = |table: &str| manifest.get(table)?.get("name").and_then(Value::as_str).map(str::to_owned);
        let crate_name = name("lib").or(name("package")).unwrap_or_default().replace('-', "_");
        let parted = part(source, &crate_name);
        let mut solution = BTreeMap::new();
        for (path, text) in &parted.code {
            solution.insert(path.clone(), bench.format(text, &source.edition)?.unwrap_or_else(|| text.clone()));
        }
        let unsafe_code = has_unsafe(&solution);
        let mut draft = Draft {
            id: "skeleton".into(),
            description: String::new(),
            kind: TaskKind::Functions,
            manifest,
            start: solution.clone(),
            functions: Vec::new(),
            tests: BTreeMap::new(),
            visible: false,
            test_s: self.settings.test_s,
            solution,
        };
        let probe = self.work.join("probe").join(&source.name);
        let loads = |draft: &Draft| -> Result<Result<Task, String>> {
            fresh(&probe)?;
            // A task of tests needs one that fails before; which one does not matter for loading.
            draft.write(&probe, &draft.test_names())?;
            Ok(Task::load(&probe).map_err(|error| error.to_string()))
        };
        for function in functions(&draft.solution) {
            let one = Draft { functions: vec![function.clone()], ..draft.clone() };
            if draft.functions.len() < MAX_FUNCTIONS && loads(&one)?.is_ok() {
                draft.functions.push(function);
            }
        }
        draft.kind = if draft.functions.is_empty() { TaskKind::Tests } else { TaskKind::Functions };
        if !unsafe_code {
            for (stem, text) in &parted.tests {
                let text = bench.format(text, &source.edition)?.unwrap_or_else(|| text.clone());
                let tests = BTreeMap::from([(stem.clone(), text.clone())]);
                match loads(&Draft { tests, ..draft.clone() })? {
                    Ok(_) => _ = draft.tests.insert(stem.clone(), text),
                    Err(why) => made.notes.push(format!("{}: {stem}.rs: {}", source.name, short(&why))),
                }
            }
        }
        if draft.tests.is_empty() && draft.functions.is_empty() {
            return Ok(Err("it has neither tests nor functions that the judge can take".into()));
        }
        let skeleton = self.settle(source, draft, &probe, made);
        let _ = std::fs::remove_dir_all(&probe);
        skeleton
    }

    /// Leaves out test files that do not pass on the solution, and silences lints that it has always broken.
    fn settle(
        &self,
        source: &Source,
        mut draft: Draft,
        probe: &Path,
        made: &mut Made,
    ) -> Result<Result<Skeleton, String>> {
        let mut lints: BTreeSet<String> = BTreeSet::new();
        let mut head = String::new();
        for _ in 0..LINT_ROUNDS {
            fresh(probe)?;
            draft.write(probe, &draft.test_names())?;
            let task = match Task::load(probe) {
                Ok(task) => task,
                Err(error) => return Ok(Err(short(&error.to_string()))),
            };
            let got = self.judge.judge(&task, &task.solution(), self.settings.seed);
            if got.status == Status::Error {
                return Ok(Err(short(&got.reason)));
            }
            if got.passed && got.clippy_clean && got.formatted {
                return Ok(Ok(Skeleton { draft, head }));
            }
            if got.status != Status::Judged || !got.compiled || !got.formatted {
                return Ok(Err(format!("without its tests: {} {}", got.reason, short(&got.diagnostics))));
            }
            if !got.passed {
                let bad: BTreeSet<&str> = got.tests_failed.iter().filter_map(|id| id.split("::").next()).collect();
                let before = draft.tests.len();
                draft.tests.retain(|stem, _| !bad.contains(stem.as_str()));
                if draft.tests.len() == before || (draft.tests.is_empty() && draft.functions.is_empty()) {
                    return Ok(Err(format!("its tests do not pass outside of it: {}", got.reason)));
                }
                made.notes.push(format!("{}: left out {bad:?}, which fail outside of the library", source.name));
            }
            if !got.clippy_clean {
                lints.extend(lint_names(&got.diagnostics));
                let lib = draft.solution.get("src/lib.rs").map_or("", String::as_str);
                let bare = lib.strip_prefix(head.as_str()).unwrap_or(lib).to_owned();
                let names: Vec<&str> = lints.iter().map(String::as_str).collect();
                head = format!("#![allow({})]\n", names.join(", "));
                draft.solution.insert("src/lib.rs".into(), format!("{head}{bare}"));
                draft.start = draft.solution.clone();
            }
        }
        Ok(Err(format!("its code does not pass clippy: {lints:?}")))
    }

    /// One task, if the pair makes one.
    fn task(
        &self,
        bench: &Bench<'_>,
        source: &Source,
        skeleton: &Skeleton,
        record: &MutationRecord,
        made: &mut Made,
    ) -> Result<bool> {
        made.tried += 1;
        let file = record.file.clone().unwrap_or_default();
        if source.files.get(&file).map(Vec::as_slice) != Some(record.fixed_code.as_bytes()) {
            let what = format!("{}: {file} is not what the pairs have; run `mutate` again", source.name);
            return Err(MutateError::Settings { path: self.settings.pairs.clone(), what });
        }
        let head = if file == "src/lib.rs" { skeleton.head.as_str() } else { "" };
        let Some(code) = bench.format(&code_of(&record.buggy_code), &source.edition)? else {
            made.drop("the fault is in a test");
            return Ok(false);
        };
        let buggy = format!("{head}{code}");
        let fixed = skeleton.draft.solution.get(&file).cloned().unwrap_or_default();
        if buggy == fixed {
            made.drop("the fault is in a test");
            return Ok(false);
        }
        if buggy.len() > self.settings.max_bytes {
            made.drop("the file is too large");
            return Ok(false);
        }
        if source.split == Split::Heldout
            && let Some(how) = self.pairs.seen.overlap(changed_function(&fixed, &buggy), self.settings.max_overlap)
        {
            *made.overlap.entry(how).or_default() += 1;
            return Ok(false);
        }
        let key = gates::artifact::hash_bytes(format!("{} {}", self.settings.seed, buggy).as_bytes());
        let pick = usize::from_str_radix(&key[..4], 16).unwrap_or(0);
        let mut draft = skeleton.draft.clone();
        draft.id = format!("{}-{}", source.name, &key[..8]);
        draft.description = match self.settings.style {
            PromptStyle::Full => description(record, pick),
            PromptStyle::Compact => {
                short_request(&format!("{} {}", source.name, source.version), record.error_codes.is_empty())
            }
        };
        draft.visible = self.settings.visible_tests;
        draft.start.insert(file.clone(), buggy.clone());
        let name = format!("{}/{}", source.split.name(), draft.id);
        let dir = self.staged.join(&name);
        if dir.exists() {
            made.drop("the same fault again");
            return Ok(false);
        }
        match self.verified(record, &draft, &dir)? {
            Err(why) => {
                if dir.exists() {
                    std::fs::remove_dir_all(&dir).map_err(io("remove", &dir))?;
                }
                made.drop(&why);
                Ok(false)
            }
            Ok(failing) => {
                let line = line(source, record, &draft, name, file, failing.len());
                made.tasks.push((line, draft));
                Ok(true)
            }
        }
    }

    /// Writes the folder and has the judge accept it; what the pair says about tests is tried first, then the judge is asked
    /// which of them fail before. The inner error says why there is no task.
    fn verified(&self, record: &MutationRecord, draft: &Draft, dir: &Path) -> Result<Result<BTreeSet<String>, String>> {
        let expected = expected(record, &draft.test_names());
        if !expected.is_empty() && self.accepts(draft, dir, &expected)?.is_ok() {
            return Ok(Ok(expected));
        }
        draft.write(dir, &draft.test_names())?;
        let before = self.judge.judge(&Task::load(dir)?, &dir.join("start"), self.settings.seed);
        if before.status == Status::Error {
            // Such as a solution whose changed file has an attribute that no candidate may have.
            let what = before.reason.split_once(": ").map_or(before.reason.as_str(), |(_, what)| what);
            return Ok(Err(format!("the judge cannot judge it: {}", short(what))));
        }
        if before.status == Status::Refused {
            return Ok(Err(format!("the start is refused: {}", short(&before.reason))));
        }
        if before.passed {
            return Ok(Err("neither the tests nor the functions show the fault".into()));
        }
        let failing: BTreeSet<String> = before.tests_failed.iter().cloned().collect();
        if draft.kind == TaskKind::Tests && failing.is_empty() {
            return Ok(Err("no test fails before".into()));
        }
        std::fs::remove_dir_all(dir).map_err(io("remove", dir))?;
        Ok(self.accepts(draft, dir, &failing)?.map(|()| failing))
    }

    /// Whether the judge accepts the task with these tests as failing before; the folder stays only if it does.
    fn accepts(&self, draft: &Draft, dir: &Path, failing: &BTreeSet<String>) -> Result<Result<(), String>> {
        draft.write(dir, failing)?;
        match self.judge.check_task(&Task::load(dir)?, self.settings.seed) {
            Ok(()) => Ok(Ok(())),
            Err(error @ eval_rust::judge::JudgeError::Task { .. }) => {
                std::fs::remove_dir_all(dir).map_err(io("remove", dir))?;
                // The folder's name would make each reason one of its own.
                let what = error.to_string();
                Ok(Err(format!("the judge does not accept it: {}", short(what.split(": ").nth(1).unwrap_or(&what)))))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Planted tasks: held-out ones, in an order that the seed decides, with a test and its opposite.
    fn plant(&self, all: &[(TaskLine, Draft)]) -> Result<Vec<TaskLine>> {
        let key = |line: &TaskLine| {
            gates::artifact::hash_bytes(format!("plant {} {}", self.settings.seed, line.id).as_bytes())
        };
        let mut order: Vec<&(TaskLine, Draft)> = all.iter().filter(|(line, _)| line.split == Split::Heldout).collect();
        order.sort_by_cached_key(|(line, _)| key(line));
        let mut planted = Vec::new();
        for (line, draft) in order {
            if planted.len() == self.settings.impossible {
                break;
            }
            let found = draft.tests.iter().find_map(|(stem, text)| Some((stem, impossible::contradict(text)?)));
            let Some((stem, (text, test))) = found else { continue };
            let mut draft = draft.clone();
            draft.id = format!("{}-{}", line.repo, &key(line)[..8]);
            draft.tests.insert(stem.clone(), text);
            let name = format!("{}/{}", line.split.name(), draft.id);
            let dir = self.staged.join(&name);
            let all_tests = draft.test_names();
            draft.write(&dir, &all_tests)?;
            let task = Task::load(&dir)?;
            let got = self.judge.judge(&task, &task.solution(), self.settings.seed);
            let wrong = [format!("{stem}::{test}")];
            let before = self.judge.judge(&task, &dir.join("start"), self.settings.seed);
            let judged = got.status == Status::Judged && before.status == Status::Judged;
            std::fs::remove_dir_all(&dir).map_err(io("remove", &dir))?;
            if judged && got.compiled && !got.passed && !before.passed && got.tests_failed == wrong {
                let failing: BTreeSet<String> = before.tests_failed.iter().cloned().collect();
                draft.write(&dir, &failing)?;
                let (fail_to_pass, pass_to_pass) = (failing.len(), all_tests.len() - failing.len());
                planted.push(TaskLine {
                    task: name,
                    id: draft.id,
                    impossible: true,
                    fail_to_pass,
                    pass_to_pass,
                    ..line.clone()
                });
                self.progress.line(&format!("planted {}", line.repo));
            }
        }
        Ok(planted)
    }
}

fn line(
    source: &Source,
    record: &MutationRecord,
    draft: &Draft,
    task: String,
    file: String,
    failing: usize,
) -> TaskLine {
    TaskLine {
        task,
        id: draft.id.clone(),
        split: source.split,
        repo: source.name.clone(),
        version: source.version.clone(),
        licence: source.licence.clone(),
        kind: draft.kind,
        genre: record.genre.clone().unwrap_or_default(),
        bytes: draft.start.get(&file).map_or(0, String::len),
        file,
        fail_to_pass: failing,
        pass_to_pass: draft.test_names().len() - failing,
        impossible: false,
    }
}

/// The tests that should fail before, from what the pair says; none where it says nothing about them.
fn expected(record: &MutationRecord, names: &BTreeSet<String>) -> BTreeSet<String> {
    if !record.error_codes.is_empty() {
        return names.clone();
    }
    let last = |name: &str| name.rsplit("::").next().unwrap_or_default().to_owned();
    let units: BTreeSet<String> = record.failing_tests.iter().map(|name| last(name)).collect();
    let fails = |name: &&String| {
        record.failing_tests.contains(*name) || (name.starts_with("unit_") && units.contains(&last(name)))
    };
    names.iter().filter(fails).cloned().collect()
}

/// An empty folder.
fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(io("remove", dir))?;
    }
    std::fs::create_dir_all(dir).map_err(io("create", dir))
}

/// The first line of a reason, shortened.
fn short(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().chars().take(160).collect()
}

/// Names of the lints that clippy named, such as `clippy::needless_return`.
fn lint_names(diagnostics: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in diagnostics.lines().filter(|line| line.trim_start().starts_with("= note:")) {
        // ``#[warn(dead_code)]` on by default`, or ``--force-warn clippy::needless-return` implied by …`
        for start in ["#[warn(", "--force-warn "] {
            let Some((_, rest)) = line.split_once(start) else { continue };
            let name: String =
                rest.chars().take_while(|c| c.is_ascii_alphanumeric() || ['_', '-', ':'].contains(c)).collect();
            found.insert(name.replace('-', "_"));
        }
    }
    found.retain(|name| name != "clippy::all" && name != "unused");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_fail_are_found_under_their_new_names() {
        let names = ["unit_lib::one", "unit_lib::two", "more::one", "more::three"].map(str::to_owned).into();
        let record = |tests: &[&str], codes: &[&str]| MutationRecord {
            failing_tests: tests.iter().map(|test| (*test).to_owned()).collect(),
            error_codes: codes.iter().map(|code| (*code).to_owned()).collect(),
            ..MutationRecord::default()
        };
        let got = expected(&record(&["tests::one", "more::three"], &[]), &names);
        assert_eq!(got, ["more::three", "unit_lib::one"].map(str::to_owned).into());
        assert_eq!(expected(&record(&[], &["E0308"]), &names), names);
    }

    #[test]
    fn lints_are_named_as_attributes_name_them() {
        let said = "warning: x\n  = note: `--force-warn clippy::needless-return` implied by `--force-warn clippy::all`\n\
                    warning: y\n   = note: `#[warn(dead_code)]` (part of `#[warn(unused)]`) on by default\n";
        let got: Vec<String> = lint_names(said).into_iter().collect();
        assert_eq!(got, ["clippy::needless_return", "dead_code"]);
    }
}
