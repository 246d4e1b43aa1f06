//! `moe-agent mutate`: pairs of whole files, a fault and its fix, each verified by building and testing the crate.
//!
//! `cargo-mutants` lists mutants and seeded edits add slips that do not compile; every one is rebuilt from its place and
//! replacement, formatted, and tried in the sandbox. What tests or the compiler said becomes the message of the pair.

mod conversation;
mod diff;
mod edits;
mod error;
mod generator;
mod licence;
pub(crate) mod progress;
mod report;
mod said;
pub(crate) mod source;
mod state;
pub(crate) mod verify;
pub(crate) mod workshop;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use eval_rust::sandbox::Run;
use serde::Deserialize;

pub use conversation::{PairConversation, conversation as pair_conversation, is_borrow_checker};
pub use diff::{apply as apply_diff, unified as unified_diff};
pub use error::MutateError;
pub(crate) use error::{Result, io};
pub use report::{MutateReport, SourceReport, Yield};
pub use source::{Refused, Split};

use progress::Progress;
use source::{Source, is_code};
use state::{Done, Fate, Plan, State};
use verify::Verifier;
use workshop::Tools;

/// Changes whenever pairs of the same sources would come out otherwise.
const VERSION: u32 = 1;

/// What `mutate` is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MutateSettings {
    /// The list of sources.
    pub sources: PathBuf,
    /// Folder of the results.
    pub out: PathBuf,
    /// Fetched crates, as `cargo xtask crates` lays them out.
    pub vendor: Option<PathBuf>,
    /// The program `cargo-mutants`, or a folder with what it listed, as `NAME.json`.
    pub mutants: Option<PathBuf>,
    /// Crates worked on at a time.
    pub jobs: usize,
    /// Decides which mutants and edits are tried.
    pub seed: u64,
    /// Most mutants of a crate that are tried.
    pub max_mutants: usize,
    /// Most edits of a crate that are tried.
    pub max_edits: usize,
    /// Most of the mutants, as a share, that replace a whole body.
    pub fn_value_share: f64,
    /// Most bytes of a file that is changed.
    pub max_bytes: usize,
    /// Seconds that one test program may take.
    pub test_s: u64,
    /// Only these crates; all when empty.
    pub only: Vec<String>,
}

impl Default for MutateSettings {
    fn default() -> Self {
        Self {
            sources: "data/crates/sources.toml".into(),
            out: "runs/agent/mutate".into(),
            vendor: None,
            mutants: None,
            jobs: 2,
            seed: 0,
            max_mutants: 40,
            max_edits: 20,
            fn_value_share: 0.2,
            max_bytes: 65_536,
            test_s: 20,
            only: Vec::new(),
        }
    }
}

/// Makes pairs of every source and writes `train.jsonl`, `heldout.jsonl` and `report.json`.
///
/// A run that was killed goes on where it was; what comes out is the same as of one run.
///
/// # Errors
/// Any [`MutateError`]: settings, the sandbox, the file system. A source that cannot be used is a line of the report.
pub fn mutate(
    settings: &MutateSettings,
    runner: &(dyn Run + Sync),
    toolchain: &Path,
) -> std::result::Result<MutateReport, MutateError> {
    check(settings)?;
    let absolute = |path: &Path| path.canonicalize().map_err(io("look for", path));
    let tools = Tools {
        runner,
        toolchain: toolchain.into(),
        vendor: settings.vendor.as_deref().map(absolute).transpose()?,
        mutants: settings.mutants.as_deref().map(absolute).transpose()?,
    };
    for folder in ["state", "work"] {
        let path = settings.out.join(folder);
        std::fs::create_dir_all(&path).map_err(io("create", &path))?;
    }
    let out = absolute(&settings.out)?;
    let (mut sources, mut refused) = source::load(&settings.sources, tools.vendor.as_deref())?;
    if !settings.only.is_empty() {
        sources.retain(|source| settings.only.contains(&source.name));
        refused.retain(|refused| settings.only.contains(&refused.name));
    }
    // The largest first, so that no job waits for it at the end.
    sources.sort_by_key(|source| std::cmp::Reverse(source.files.values().map(Vec::len).sum::<usize>()));
    let identity = tools.identity()?;
    let progress = Progress::new("mutants and edits", 0);
    let shared = Shared { settings, tools: &tools, out: &out, identity: &identity, progress: &progress };
    let mut states = run_all(&sources, settings.jobs, |source| shared.source(source))?;
    let mut done: Vec<(&Source, &State)> = sources.iter().zip(states.iter_mut().map(|state| &*state)).collect();
    done.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    for split in [Split::Train, Split::Heldout] {
        write_pairs(&out.join(format!("{}.jsonl", split.name())), &done, split)?;
    }
    let report = MutateReport::new(&done, refused);
    let text = serde_json::to_string_pretty(&report).map_err(|error| MutateError::Empty(error.to_string()))? + "\n";
    gates::artifact::write_atomic(&out.join("report.json"), text.as_bytes())?;
    Ok(report)
}

fn check(settings: &MutateSettings) -> Result<()> {
    let bad = |what: &str| Err(MutateError::Settings { path: settings.sources.clone(), what: what.into() });
    if settings.jobs == 0 || settings.test_s == 0 || settings.max_bytes == 0 {
        return bad("jobs, test_s and max_bytes must be above 0");
    }
    if !(0.0..=1.0).contains(&settings.fn_value_share) {
        return bad("fn_value_share is a share, from 0 to 1");
    }
    Ok(())
}

/// Works on every item, some at a time; the first error ends it. Results come in the order of the items.
pub(crate) fn run_all<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    let failed: Mutex<Option<MutateError>> = Mutex::new(None);
    let poisoned = std::sync::PoisonError::into_inner;
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let stop = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some();
                    let Some(item) = items.get(index).filter(|_| !stop) else { return };
                    match work(item) {
                        Ok(result) => {
                            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
                        }
                        Err(error) => {
                            failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(poisoned) {
        return Err(error);
    }
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// What all jobs have in common.
struct Shared<'a> {
    settings: &'a MutateSettings,
    tools: &'a Tools<'a>,
    out: &'a Path,
    identity: &'a str,
    progress: &'a Progress,
}

impl Shared<'_> {
    /// Everything about one source.
    fn source(&self, source: &Source) -> Result<State> {
        let path = self.out.join("state").join(format!("{}-{}.jsonl", source.name, source.version));
        let identity = self.source_identity(source);
        let known = State::open(&path, &identity)?;
        if let Some(state) = known.as_ref().filter(|state| state.open_places().is_empty()) {
            self.progress.more(state.done.len());
            state.done.iter().for_each(|done| self.progress.one(done.fate == Fate::Pair));
            return known.ok_or_else(|| MutateError::Empty("no state".into()));
        }
        let root = self.out.join("work").join(&source.name);
        let verifier = match Verifier::new(self.tools, &root, source.clone(), self.settings.test_s)? {
            Ok(verifier) => verifier,
            Err(why) => {
                self.progress.line(&format!("{}: not used: {why}", source.name));
                let plan = Plan { identity, generated: 0, tests: 0, tries: Vec::new(), refused: Some(why) };
                return State::start(&path, plan);
            }
        };
        let mut state = match known {
            Some(state) => state,
            None => State::start(&path, self.plan(&verifier, identity)?)?,
        };
        self.progress.more(state.plan.tries.len());
        state.done.iter().for_each(|done| self.progress.one(done.fate == Fate::Pair));
        for index in state.open_places() {
            let before = verifier.bench.busy_ms.get();
            let (fate, record) = verifier.attempt(&state.plan.tries[index])?;
            let busy_ms = verifier.bench.busy_ms.get() - before;
            state.add(&path, Done { index, fate, busy_ms, record })?;
            self.progress.one(fate == Fate::Pair);
        }
        let pairs = state.done.iter().filter(|done| done.fate == Fate::Pair).count();
        self.progress.line(&format!("{}: {pairs} pairs of {} tries", source.name, state.plan.tries.len()));
        Ok(state)
    }

    fn source_identity(&self, source: &Source) -> String {
        let s = self.settings;
        let settings = (VERSION, s.seed, s.max_mutants, s.max_edits, s.fn_value_share, s.max_bytes, s.test_s);
        gates::artifact::hash_bytes(format!("{} {} {settings:?}", source.hash(), self.identity).as_bytes())
    }

    /// Chooses what is tried.
    fn plan(&self, verifier: &Verifier<'_>, identity: String) -> Result<Plan> {
        let settings = self.settings;
        let tests = verifier.source.test_modules();
        let small = |name: &str| {
            let code = verifier.source.files.get(name).filter(|_| is_code(name) && !tests.contains(name))?;
            std::str::from_utf8(code).ok().filter(|text| text.len() <= settings.max_bytes)
        };
        let mut tries = Vec::new();
        let mut generated = 0;
        if settings.max_mutants > 0 {
            let listed = verifier.bench.list_mutants(&verifier.source.name)?;
            let mutants = generator::read(&listed, small)?;
            generated = mutants.len();
            tries = generator::select(mutants, settings.seed, settings.max_mutants, settings.fn_value_share);
        }
        let names = verifier.source.code().map(|(name, _)| name);
        let found = names.filter_map(|name| Some(edits::edits(name, small(name)?))).flatten().collect();
        tries.extend(generator::select(found, settings.seed, settings.max_edits, 1.0));
        Ok(Plan { identity, generated, tests: verifier.tests, tries, refused: None })
    }
}

/// Writes the pairs of one side, in the order of crates and plans.
fn write_pairs(path: &Path, done: &[(&Source, &State)], split: Split) -> Result<()> {
    let mut lines = String::new();
    for (_, state) in done.iter().filter(|(source, _)| source.split == split) {
        let mut pairs: Vec<&Done> = state.done.iter().collect();
        pairs.sort_by_key(|done| done.index);
        for record in pairs.into_iter().filter_map(|done| done.record.as_ref()) {
            let line = serde_json::to_string(record);
            lines += &line.map_err(|error| MutateError::Settings { path: path.into(), what: error.to_string() })?;
            lines.push('\n');
        }
    }
    Ok(gates::artifact::write_atomic(path, lines.as_bytes())?)
}
