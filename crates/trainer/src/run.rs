//! One stage from its plan to its record: gate, lock, resume, loop, output.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use gates::artifact::hash_bytes;
use kernels_cubecl::LmBackend;
use model_core::Decoder;
use serde::Serialize;
use serde_json::Value;

use crate::batch::{BatchSource, EvalSet};
use crate::checkpoint::{CheckpointStore, CheckpointWriter, Checkpointer, Identity, ModelFiles, load_parts};
use crate::lineage::{EntryGate, GateRecord, Input};
use crate::objective::Objective;
use crate::observe::{FlopCount, Live, MetricFiles, Observe, Observers, TensorBoard};
use crate::optim::Optimizer;
use crate::signals::StopSignal;
use crate::stage::{Finish, RecordedRun, StageArgs};
use crate::state::TrainState;
use crate::train::{Outcome, Parts, Surroundings, train};
use crate::{TrainConfig, TrainError};

/// Configuration keys that may differ between the runs that a checkpoint connects: they change when work is done, not
/// what is computed.
const FREE_KEYS: [&str; 4] = ["stop_after", "log_every", "keep_last", "peak_tflops"];
/// File that the run holds locked.
const LOCK_FILE: &str = "lock";
/// Link to the folder of the stage's result.
pub const FINAL: &str = "final";

/// What a stage hands over.
pub struct StagePlan<'a, B: LmBackend, C: Serialize> {
    /// Name of the stage.
    pub name: &'static str,
    /// Folder of the stage: `runs/<run>/<stage>`.
    pub dir: PathBuf,
    /// The whole configuration of the stage.
    pub config: &'a C,
    /// Its `[train]` part.
    pub train: &'a TrainConfig,
    /// Folder of the model that the stage starts from.
    pub model_dir: PathBuf,
    /// The gate before the stage; `None` only for the first one.
    pub gate: Option<EntryGate>,
    /// Other inputs by role.
    pub inputs: BTreeMap<String, Input>,
    /// The model, adapter attached where there is one.
    pub model: Decoder<B>,
    /// What of it the checkpoints hold.
    pub files: ModelFiles,
    /// Loss.
    pub objective: &'a dyn Objective<B>,
    /// Training batches.
    pub source: Box<dyn BatchSource + Send>,
    /// Evaluation batches.
    pub eval: EvalSet,
    /// What is made of the last checkpoint when the run is finished: returns the folder of the result.
    pub after: Option<AfterRun<'a>>,
}

/// Turns the last checkpoint into the stage's result.
pub type AfterRun<'a> = Box<dyn FnOnce(&Path) -> Result<PathBuf, TrainError> + 'a>;

/// Locks the stage folder for this process; the lock goes with the returned file.
///
/// # Errors
/// [`TrainError::Locked`] when another run holds it; an I/O error for a folder that cannot be written.
pub fn lock(dir: &Path) -> Result<File, TrainError> {
    std::fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    let path = dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(TrainError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(TrainError::Locked { path: dir.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(TrainError::Io { action: "lock", path, source }),
    }
}

/// The configuration as far as it decides results.
fn identity_config<C: Serialize>(config: &C) -> Result<Value, TrainError> {
    let mut value = serde_json::to_value(config)
        .map_err(|e| TrainError::Config { origin: "resolved".into(), problem: e.to_string() })?;
    if let Some(train) = value.get_mut("train").and_then(Value::as_object_mut) {
        FREE_KEYS.iter().for_each(|key| drop(train.remove(*key)));
    }
    Ok(value)
}

/// The gate before a stage, or the record that there is none.
///
/// # Errors
/// When the gate refuses and no override is given.
pub fn enter_gate(gate: Option<&EntryGate>, model_dir: &Path, args: &StageArgs) -> Result<GateRecord, TrainError> {
    match gate {
        Some(gate) => gate.enter(model_dir, args.override_gate.as_deref()),
        None => Ok(GateRecord::NotAsked),
    }
}

/// Runs a stage: asks the gate, locks the folder, resumes or starts, trains, links the result as `final`, and keeps
/// `stage.json` true throughout.
///
/// # Errors
/// Whatever ends the stage; see [`TrainError::exit_code`].
pub fn run_stage<B: LmBackend, C: Serialize>(
    plan: StagePlan<'_, B, C>,
    args: &StageArgs,
    device: &B::Device,
) -> Result<Outcome, TrainError> {
    plan.train.check()?;
    let gate = enter_gate(plan.gate.as_ref(), &plan.model_dir, args)?;
    let _lock = lock(&plan.dir)?;
    let mut inputs = plan.inputs.clone();
    let base = Input::model(&plan.model_dir)?;
    inputs.insert("model".into(), base.clone());
    let identity = Identity {
        config: identity_config(plan.config)?,
        data: hash_bytes(format!("{} {}", plan.source.fingerprint(), plan.eval.fingerprint()).as_bytes()),
        tokenizer: tokenizer_hash(&plan.model_dir)?,
        base_model: base.hash,
    };
    let store = CheckpointStore::open(&plan.dir.join("checkpoints"), identity, plan.train.keep_last)?;
    if !args.resume && !store.steps()?.is_empty() {
        return Err(TrainError::RunExists { path: plan.dir });
    }
    let mut notes = Vec::new();
    let latest = store.load_latest(&mut |note| notes.push(note))?;
    let record = RecordedRun::begin(&plan.dir, plan.name, plan.config, inputs, gate)?;
    let (dir, name) = (plan.dir.clone(), plan.name);
    record.finish(move || {
        let (parts, state) = match &latest {
            Some((path, _)) => load_parts(path, &plan.files, plan.model, plan.train, device.clone())?,
            None => {
                let (model, optimizer) = match plan.files {
                    ModelFiles::Full => Optimizer::start(&plan.model_dir, plan.train, device)?,
                    ModelFiles::Adapter { .. } => {
                        let optimizer = Optimizer::new(&plan.model, plan.train, device);
                        (plan.model, optimizer)
                    }
                };
                (Parts::new(model, optimizer, plan.train, device.clone()), TrainState::default())
            }
        };
        let stop = StopSignal::install().map_err(TrainError::io("listen for signals in", &dir))?;
        let live = (!args.plain).then_some(&stop);
        let mut observers = observers(name, &dir, plan.train, &parts, state.step, live)?;
        notes.iter().for_each(|note| observers.warn(note));
        let checkpointer = Checkpointer::new(CheckpointWriter {
            store,
            files: plan.files,
            float: plan.train.precision.float_type(),
            tokenizer_dir: plan.model_dir,
        });
        let loop_parts =
            LoopParts { objective: plan.objective, source: plan.source, eval: plan.eval, after: plan.after, stop };
        finish(loop_parts, parts, state, plan.train, checkpointer, &mut observers, &dir)
    })
}

/// What the loop needs besides parts and state.
struct LoopParts<'a, B: LmBackend> {
    objective: &'a dyn Objective<B>,
    source: Box<dyn BatchSource + Send>,
    eval: EvalSet,
    after: Option<AfterRun<'a>>,
    stop: StopSignal,
}

/// Trains and links the result.
fn finish<B: LmBackend>(
    with: LoopParts<'_, B>,
    parts: Parts<B>,
    mut state: TrainState,
    config: &TrainConfig,
    mut checkpointer: Checkpointer,
    observe: &mut dyn Observe,
    dir: &Path,
) -> Result<Finish, TrainError> {
    let mut around = Surroundings { eval: &with.eval, save: &mut checkpointer, observe, interrupted: with.stop.flag() };
    let (outcome, _) = train(with.objective, with.source, parts, &mut state, config, &mut around)?;
    let mut model = checkpointer.writer().store.path(state.step);
    if let Some(after) = with.after.filter(|_| outcome == Outcome::Finished) {
        model = after(&model)?;
    }
    link_final(dir, model.strip_prefix(dir).unwrap_or(&model))?;
    Ok(Finish { outcome, steps: state.step, model })
}

/// Points `final` at `target`, a path inside `dir`, in one step.
///
/// # Errors
/// When the link cannot be made.
pub fn link_final(dir: &Path, target: &Path) -> Result<(), TrainError> {
    let (tmp, link) = (dir.join(format!("{FINAL}.tmp-{}", std::process::id())), dir.join(FINAL));
    let _ = std::fs::remove_file(&tmp);
    std::os::unix::fs::symlink(target, &tmp).map_err(TrainError::io("link", &tmp))?;
    std::fs::rename(&tmp, &link).map_err(TrainError::io("rename", &tmp))
}

/// Writes a model folder with `fill`, adds the tokenizer of `tokenizer_dir`, and puts it at `dest` whole; a folder that is
/// there already, from a run that was stopped just after it, is replaced.
///
/// # Errors
/// Whatever `fill` returns, or that the folder cannot be committed; nothing half-written stays at `dest`.
pub fn publish_folder(
    dest: &Path,
    tokenizer_dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let name = dest.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let tmp = dest.with_file_name(format!("{name}.tmp"));
    for old in [&tmp, &dest.to_path_buf()] {
        match std::fs::remove_dir_all(old) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(TrainError::Io { action: "remove", path: old.clone(), source });
            }
            _ => {}
        }
    }
    std::fs::create_dir(&tmp).map_err(TrainError::io("create", &tmp))?;
    fill(&tmp)?;
    crate::checkpoint::copy_companions(tokenizer_dir, &tmp)?;
    Ok(gates::artifact::commit_dir(&tmp, dest)?)
}

fn observers<B: LmBackend>(
    name: &str,
    dir: &Path,
    config: &TrainConfig,
    parts: &Parts<B>,
    step: u64,
    live: Option<&StopSignal>,
) -> Result<Observers, TrainError> {
    let flops = FlopCount { config: parts.model.config.clone(), peak_tflops: config.peak_tflops };
    Ok(Observers(vec![
        Box::new(MetricFiles::open(dir, step, flops.clone())?),
        Box::new(TensorBoard::new(&dir.join("tb"), flops.clone())?),
        Box::new(Live::new(name, config.log_every, flops, live)),
    ]))
}

/// Hash of the model's tokenizer file.
///
/// # Errors
/// When there is none.
pub fn tokenizer_hash(model_dir: &Path) -> Result<String, TrainError> {
    Ok(gates::artifact::hash_file(&model_dir.join("tokenizer.json"))?)
}
