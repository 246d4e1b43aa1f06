//! Makes trajectories: everything that can be tried, several at a time, each on a copy of its crate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use eval_rust::judge::find_toolchain;
use eval_rust::sandbox::{Run, SandboxError};
use gates::artifact;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_core::harmony::{ExampleOptions, Harmony, MessageJson};
use model_core::{ModelError, Tokenizer};
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Made, Outcome};
use super::change::Hunk;
use super::config::Config;
use super::error::{TrajectoryError, io};
use super::fix::Fault;
use super::lints::Site;
use super::random::Dice;
use super::record::{CallsLine, Kind, RecordLine};
use super::source::Function;
use super::state::{State, Tried};
use super::{feature, fix, lints};
use crate::mutate::{Split, source};
use crate::tools::{Executor, ExecutorError, Files, Setup, files_hash, load_crate, opening};
use crate::{MutationRecord, read_mutations};

/// Version of the files.
const VERSION: u32 = 1;
/// Most bytes of a file that functions and places are looked for in.
const MAX_SOURCE: usize = 200 << 10;
/// Most other faults of the same place that are kept for wrong attempts.
const MAX_OTHERS: usize = 3;

/// What was made, and of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of the files.
    pub version: u32,
    /// What was asked for.
    pub config: Config,
    /// BLAKE3 of the mutation pairs; empty without them.
    pub mutations_hash: String,
    /// BLAKE3 of the index of crates; empty without one.
    pub index_hash: String,
    /// The compiler's libraries, which carry a hash of its version.
    pub toolchain: String,
    /// BLAKE3 of the records.
    pub records_hash: String,
    /// BLAKE3 of the calls.
    pub calls_hash: String,
    /// How many things were tried.
    pub tried: usize,
    /// How many trajectories there are of each kind.
    pub made: BTreeMap<Kind, usize>,
    /// How many of them have a wrong attempt.
    pub with_wrong_attempt: usize,
    /// Trajectories for each thing tried.
    pub yield_: f64,
    /// How many were dropped, by reason.
    pub dropped: BTreeMap<String, usize>,
    /// Calls of tools.
    pub calls: usize,
    /// Tokens of the trajectories: least, mean, most.
    pub tokens: (usize, f64, usize),
}

/// One thing to try.
#[derive(Debug, Clone)]
struct Item {
    id: String,
    krate: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Fault(Box<Fault>),
    Lint(Site),
    Feature(String, Box<Function>),
}

/// Makes trajectories as the configuration asks. Returns the manifest, and the seconds that programs took in the sandbox.
///
/// # Errors
/// [`TrajectoryError`]: of the configuration, of the data, or of the sandbox, which says nothing about the trajectories; what is
/// finished then is kept, and the same call goes on from there.
pub fn generate(
    config: &Config,
    runner: &(dyn Run + Sync),
    env: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<(Manifest, f64), TrajectoryError> {
    config.check()?;
    let manifest_path = config.output.join("manifest.json");
    if manifest_path.exists() {
        return Err(TrajectoryError::Exists { path: manifest_path });
    }
    let toolchain = config.toolchain.clone().map_or_else(|| find_toolchain(env), Ok)?;
    let setup = config.setup(toolchain)?;
    let crates = Crates::load(config)?;
    let mutations_hash = config.mutations.as_deref().map(artifact::hash_file).transpose()?.unwrap_or_default();
    let items = items(config, &crates)?;
    let tokenizer = config.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    harmony(tokenizer.as_ref())?;
    std::fs::create_dir_all(&config.output).map_err(io("create", &config.output))?;
    let state_path = config.output.join("state.jsonl");
    let fingerprint = fingerprint(config, &mutations_hash, &crates, &setup);
    let state = Mutex::new(State::open(&state_path, &fingerprint)?);
    let shared = Shared {
        config,
        runner,
        setup: &setup,
        crates: &crates,
        tokenizer: tokenizer.as_ref(),
        state: &state,
        bar: bar(items.len()),
    };
    shared.work(&items)?;
    let state = state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let manifest = commit(config, &setup, mutations_hash, &items, &state)?;
    let wall_ms: u64 = state.done().values().map(|tried| tried.wall_ms).sum();
    std::fs::remove_file(&state_path).map_err(io("remove", &state_path))?;
    Ok((manifest, wall_ms as f64 / 1e3))
}

/// The format over the vocabulary that tokens are counted in.
fn harmony(tokenizer: Option<&Tokenizer>) -> Result<Harmony<'_>, ModelError> {
    match tokenizer {
        Some(tokenizer) => Harmony::new(tokenizer),
        None => Harmony::o200k(),
    }
}

/// What decides every record.
fn fingerprint(config: &Config, mutations: &str, crates: &Crates, setup: &Setup) -> String {
    let config = serde_json::to_string(config).expect("a configuration becomes JSON");
    let crates: String = crates.0.values().map(|one| one.hash.as_str()).collect();
    artifact::hash_bytes(
        format!("{VERSION} {config} {mutations} {crates} {} {}", setup.index.hash(), libraries(&setup.toolchain))
            .as_bytes(),
    )
}

/// Names of the compiler's libraries.
pub(super) fn libraries(toolchain: &Path) -> String {
    let entries = std::fs::read_dir(toolchain.join("lib")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("librustc_driver"));
    names.sort();
    names.join(" ")
}

fn bar(n: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>24} {bar:32} {human_pos:>7} / {human_len:7} {eta:>4}");
    let bar = ProgressBar::with_draw_target(Some(n as u64), ProgressDrawTarget::stderr());
    bar.with_style(style.expect("a constant template parses")).with_message("trajectories")
}

/// One crate that is laid out.
#[derive(Debug, Clone)]
pub(super) struct Crate {
    pub(super) files: Files,
    hash: String,
    /// Name and version.
    pub(super) shown: String,
    licence: String,
}

/// The crates, by folder.
#[derive(Debug, Clone)]
pub(super) struct Crates(BTreeMap<String, Crate>);

impl Crates {
    /// Reads the crates that a configuration names; what cannot be used as a crate is left out.
    pub(super) fn load(config: &Config) -> Result<Self, TrajectoryError> {
        match (&config.sources, &config.crates) {
            (Some(list), _) => Self::of_list(list, config.vendor.as_deref()),
            (None, Some(folder)) => Self::of_folder(folder),
            (None, None) => Ok(Self(BTreeMap::new())),
        }
    }

    /// The crates for training of a list of sources.
    fn of_list(list: &Path, vendor: Option<&Path>) -> Result<Self, TrajectoryError> {
        let (sources, _) = source::load(list, vendor)?;
        let own = sources.into_iter().filter(|source| source.split == Split::Train);
        let one = |source: source::Source| {
            let mut files = source.files;
            files.insert("Cargo.toml".into(), source.manifest.to_string().into_bytes());
            let shown = format!("{} {}", source.name, source.version);
            let one = Crate { hash: files_hash(&files), files, shown, licence: source.licence };
            (format!("{}-{}", source.name, source.version), one)
        };
        Ok(Self(own.map(one).collect()))
    }

    /// Every crate of a folder; folders without a manifest are left out.
    fn of_folder(folder: &Path) -> Result<Self, TrajectoryError> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(io("list", folder))? {
            let path: PathBuf = entry.map_err(io("list", folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if !path.join("Cargo.toml").is_file() {
                continue;
            }
            let files = load_crate(&path)?;
            let manifest = files.get("Cargo.toml").and_then(|bytes| std::str::from_utf8(bytes).ok());
            let manifest: toml::Table = manifest.and_then(|text| text.parse().ok()).unwrap_or_default();
            let package = |key: &str| {
                let value = manifest.get("package").and_then(|package| package.get(key));
                value.and_then(toml::Value::as_str).unwrap_or("unknown").to_owned()
            };
            let shown = format!("{} {}", package("name"), package("version"));
            all.insert(name, Crate { hash: files_hash(&files), licence: package("license"), files, shown });
        }
        Ok(Self(all))
    }

    pub(super) fn get(&self, folder: &str) -> Option<&Crate> {
        self.0.get(folder)
    }

    /// The crate of a mutation pair. Its file may be formatted in another way than in the pair.
    fn of(&self, record: &MutationRecord) -> Option<&str> {
        let (repo, path) = (record.repo.as_deref()?, record.file.as_deref()?);
        let whole = record.version.as_ref().map(|version| format!("{repo}-{version}"));
        let named = |folder: &str| {
            let any = folder.strip_prefix(repo).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
            whole.as_ref().map_or(any, |whole| folder == whole)
        };
        let found = self.0.iter().find(|(folder, one)| named(folder) && one.files.contains_key(path));
        found.map(|(folder, _)| folder.as_str())
    }
}

/// Everything to try, crate by crate.
fn items(config: &Config, crates: &Crates) -> Result<Vec<Item>, TrajectoryError> {
    let mut items = faults(config, crates)?;
    for (folder, one) in &crates.0 {
        let mut sites: Vec<What> = Vec::new();
        let mut written: Vec<What> = Vec::new();
        let sources = one.files.iter().filter(|(path, _)| path.ends_with(".rs") && !path.starts_with("tests/"));
        let own = sources.filter(|(path, bytes)| bytes.len() <= MAX_SOURCE && !path.contains("example"));
        for (path, bytes) in own {
            let Ok(text) = std::str::from_utf8(bytes) else { continue };
            sites.extend(lints::sites(path, text).into_iter().map(What::Lint));
            let functions = feature::sites(text, config.read_lines);
            written.extend(functions.into_iter().map(|function| What::Feature(path.clone(), Box::new(function))));
        }
        let limits = [
            (sites, config.clippy_per_crate, Kind::FixClippyWarnings),
            (written, config.features_per_crate, Kind::AddFeatureWithTdd),
        ];
        for (mut all, most, kind) in limits {
            if !config.kinds.contains(&kind) {
                continue;
            }
            Dice::new(config.seed, &format!("{} {folder}", kind.name())).shuffle(&mut all);
            for (i, what) in all.into_iter().take(most).enumerate() {
                items.push(Item { id: format!("{}-{folder}-{i}", kind.name()), krate: folder.clone(), what });
            }
        }
    }
    items.sort_by(|a, b| (&a.krate, &a.id).cmp(&(&b.krate, &b.id)));
    Ok(items)
}

/// The mutation pairs, of which a seeded part is tried where there are more than wanted.
fn faults(config: &Config, crates: &Crates) -> Result<Vec<Item>, TrajectoryError> {
    let repairs = [Kind::FixFailingTests, Kind::FixCompilationErrors, Kind::FixPanics];
    let Some(path) = config.mutations.as_deref().filter(|_| repairs.iter().any(|kind| config.kinds.contains(kind)))
    else {
        return Ok(Vec::new());
    };
    let records = read_mutations(path)?;
    let mut order: Vec<usize> = (0..records.len()).collect();
    Dice::new(config.seed, "mutations").shuffle(&mut order);
    let most = if config.max_mutations == 0 { order.len() } else { config.max_mutations };
    let mut items = Vec::new();
    for i in order.into_iter().take(most) {
        let record = &records[i];
        let file = record.file.as_deref().unwrap_or_default();
        let krate = crates.of(record).or(record.repo.as_deref()).unwrap_or_default().to_owned();
        let hunk = Hunk::between(&record.buggy_code, &record.fixed_code);
        let same = records.iter().filter(|other| {
            let file =
                (&other.repo, &other.file, &other.fixed_code) == (&record.repo, &record.file, &record.fixed_code);
            file && other.buggy_code != record.buggy_code
                && Hunk::between(&other.buggy_code, &other.fixed_code).meets(&hunk)
        });
        let fault = Fault {
            krate: krate.clone(),
            path: file.into(),
            buggy: record.buggy_code.clone(),
            fixed: record.fixed_code.clone(),
            others: same.take(MAX_OTHERS).map(|other| other.buggy_code.clone()).collect(),
        };
        items.push(Item { id: format!("fix-{i:06}"), krate, what: What::Fault(Box::new(fault)) });
    }
    Ok(items)
}

/// What the workers share.
struct Shared<'s> {
    config: &'s Config,
    runner: &'s (dyn Run + Sync),
    setup: &'s Arc<Setup>,
    crates: &'s Crates,
    tokenizer: Option<&'s Tokenizer>,
    state: &'s Mutex<State>,
    bar: ProgressBar,
}

/// A crate that a worker has open; without an executor when it cannot be worked on.
struct Open<'s> {
    krate: String,
    executor: Option<(Executor<'s>, Files, String)>,
}

impl<'s> Shared<'s> {
    fn work(&self, items: &[Item]) -> Result<(), TrajectoryError> {
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..self.config.jobs.min(items.len()) {
                scope.spawn(|| {
                    let mut open = None;
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.one(item, &mut open) {
                            next.store(items.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                            return;
                        }
                        self.bar.inc(1);
                    }
                });
            }
        });
        self.bar.finish_and_clear();
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn one(&self, item: &Item, open: &mut Option<Open<'s>>) -> Result<(), TrajectoryError> {
        let lock = || self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lock().done().contains_key(&item.id) {
            return Ok(());
        }
        let mut tried = Tried { item: item.id.clone(), dropped: None, made: None, runs: 0, wall_ms: 0 };
        match self.attempt(item, open, &mut tried) {
            Ok(Ok(made)) => tried.made = Some(made),
            Ok(Err(reason)) => tried.dropped = Some(reason.into()),
            // The sandbox lost this one; the next has a fresh executor.
            Err(TrajectoryError::Executor(ExecutorError::Sandbox(
                SandboxError::Host { .. } | SandboxError::Lost(_) | SandboxError::Left(_),
            ))) => {
                *open = None;
                tried.dropped = Some("sandbox_failed".into());
            }
            Err(error) => return Err(error),
        }
        lock().add(tried)
    }

    /// Tries an item; the reason where it comes to nothing.
    fn attempt(
        &self,
        item: &Item,
        open: &mut Option<Open<'s>>,
        tried: &mut Tried,
    ) -> Result<Result<(String, CallsLine), &'static str>, TrajectoryError> {
        let Some(krate) = self.crates.get(&item.krate) else { return Ok(Err("crate_not_there")) };
        if open.as_ref().is_none_or(|open| open.krate != item.krate) {
            *open = Some(Open { krate: item.krate.clone(), executor: self.open(krate)? });
        }
        let Some((executor, base, base_hash)) = open.as_mut().and_then(|open| open.executor.as_mut()) else {
            return Ok(Err("crate_does_not_pass"));
        };
        let before = executor.spent();
        let mut dice = Dice::new(self.config.seed, &item.id);
        let outcome = {
            let mut bench = Bench { executor, base, krate: &krate.shown, config: self.config };
            match &item.what {
                What::Fault(fault) => fix::make(&mut bench, fault, &mut dice),
                What::Lint(site) => lints::make(&mut bench, site, &mut dice),
                What::Feature(path, function) => feature::make(&mut bench, path, function, &mut dice),
            }
        };
        let spent = executor.spent();
        tried.runs = spent.runs - before.runs;
        tried.wall_ms = (spent.wall - before.wall).as_millis() as u64;
        match outcome? {
            Outcome::Made(made) => self.finish(item, krate, base_hash, *made),
            Outcome::Dropped(reason) => Ok(Err(reason)),
        }
    }

    /// An executor over a crate whose tests pass; `None` where they do not.
    fn open(&self, krate: &Crate) -> Result<Option<(Executor<'s>, Files, String)>, TrajectoryError> {
        let mut executor = match Executor::new(self.runner, self.setup, krate.files.clone()) {
            Ok(executor) => executor,
            Err(ExecutorError::Crate { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let call = crate::tools::Arguments::RunTests(crate::tools::RunTests::default()).call();
        let passes =
            executor.call(&call)?.status().is_success() && executor.tests().is_some_and(|tests| tests.passed > 0);
        let (base, hash) = (executor.files().clone(), executor.workspace_hash().to_owned());
        Ok(passes.then_some((executor, base, hash)))
    }

    /// The lines of a trajectory that fits.
    fn finish(
        &self,
        item: &Item,
        krate: &Crate,
        base_hash: &str,
        made: Made,
    ) -> Result<Result<(String, CallsLine), &'static str>, TrajectoryError> {
        let Made { kind, request, trajectory, answer, start, wrong_attempts } = made;
        let begin = opening(self.config.style, &self.config.tools, &request);
        let finished = trajectory.finish(begin, answer)?;
        let examples = match harmony(self.tokenizer)?.examples(finished.conversation(), ExampleOptions::default()) {
            Ok(examples) => examples,
            Err(ModelError::HarmonyControlText { .. }) => return Ok(Err("text_spells_a_control_token")),
            Err(ModelError::HarmonyBlanks { .. }) => return Ok(Err("too_many_blanks")),
            Err(error) => return Err(error.into()),
        };
        let n_tokens: usize = examples.iter().map(|example| example.ids.len()).sum();
        if self.config.max_tokens > 0 && n_tokens > self.config.max_tokens {
            return Ok(Err("too_long"));
        }
        let record = RecordLine {
            id: item.id.clone(),
            task: kind,
            source: krate.shown.clone(),
            licence: krate.licence.clone(),
            messages: finished.conversation().messages.iter().map(MessageJson::from).collect(),
            untrained: finished.untrained().to_vec(),
        };
        let line = serde_json::to_string(&record).expect("a record becomes JSON");
        let calls = CallsLine {
            id: item.id.clone(),
            krate: item.krate.clone(),
            crate_hash: base_hash.into(),
            start,
            calls: finished.calls().to_vec(),
            record_hash: artifact::hash_bytes(line.as_bytes()),
            n_tokens,
            wrong_attempts,
        };
        Ok(Ok((line, calls)))
    }
}

/// Writes everything that was made, in the order of the items.
fn commit(
    config: &Config,
    setup: &Setup,
    mutations_hash: String,
    items: &[Item],
    state: &State,
) -> Result<Manifest, TrajectoryError> {
    let (mut records, mut calls) = (String::new(), String::new());
    let (mut made, mut dropped) = (BTreeMap::new(), BTreeMap::new());
    let (mut tokens, mut n_calls, mut with_wrong_attempt) = (Vec::new(), 0, 0);
    for tried in items.iter().filter_map(|item| state.done().get(&item.id)) {
        if let Some((line, one)) = &tried.made {
            let record: RecordLine = serde_json::from_str(line).map_err(|error| TrajectoryError::Damaged {
                path: config.output.join("state.jsonl"),
                reason: error.to_string(),
            })?;
            *made.entry(record.task).or_insert(0) += 1;
            records += &format!("{line}\n");
            calls += &(serde_json::to_string(one).expect("calls become JSON") + "\n");
            tokens.push(one.n_tokens);
            n_calls += one.calls.len();
            with_wrong_attempt += usize::from(one.wrong_attempts > 0);
        } else if let Some(reason) = &tried.dropped {
            *dropped.entry(reason.clone()).or_insert(0) += 1;
        }
    }
    let n = tokens.len();
    let mean = if n > 0 { tokens.iter().sum::<usize>() as f64 / n as f64 } else { 0.0 };
    let manifest = Manifest {
        version: VERSION,
        config: config.clone(),
        mutations_hash,
        index_hash: setup.index.hash().into(),
        toolchain: libraries(&setup.toolchain),
        records_hash: artifact::hash_bytes(records.as_bytes()),
        calls_hash: artifact::hash_bytes(calls.as_bytes()),
        tried: items.len(),
        made,
        with_wrong_attempt,
        yield_: if items.is_empty() { 0.0 } else { n as f64 / items.len() as f64 },
        dropped,
        calls: n_calls,
        tokens: (tokens.iter().copied().min().unwrap_or(0), mean, tokens.iter().copied().max().unwrap_or(0)),
    };
    let folder = config.output.join("records");
    std::fs::create_dir_all(&folder).map_err(io("create", &folder))?;
    artifact::write_atomic(&folder.join("records.jsonl"), records.as_bytes())?;
    artifact::write_atomic(&config.output.join("calls.jsonl"), calls.as_bytes())?;
    let text = serde_json::to_string_pretty(&manifest).expect("a manifest becomes JSON") + "\n";
    artifact::write_atomic(&config.output.join("manifest.json"), text.as_bytes())?;
    Ok(manifest)
}
