//! The folder of a run's checkpoints: save, verify, load, forget.

use std::path::{Path, PathBuf};

use gates::artifact::commit_dir;
use kernels_cubecl::LmBackend;
use model_core::{Decoder, LoraConfig};

use super::manifest::{Identity, MANIFEST, Manifest};
use crate::optim::Optimizer;
use crate::state::TrainState;
use crate::train::{Parts, Save};
use crate::TrainError;

/// A shard of a saved model is at most this large.
const MAX_SHARD_BYTES: u64 = 4 << 30;
/// Free space that a save must find, in percent of what it writes.
const SPACE_PERCENT: u64 = 120;
/// Files that travel with a model besides its weights and configuration.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// `checkpoints/` of one run.
#[derive(Debug)]
pub struct CheckpointStore {
    root: PathBuf,
    identity: Identity,
    keep_last: usize,
}

impl CheckpointStore {
    /// Opens the folder, making it if need be, and clears what an interrupted save left behind.
    ///
    /// The caller holds the run's lock.
    ///
    /// # Errors
    /// When the folder cannot be made, listed or written.
    pub fn open(root: &Path, identity: Identity, keep_last: usize) -> Result<Self, TrainError> {
        std::fs::create_dir_all(root).map_err(TrainError::io("create", root))?;
        let store = Self { root: root.to_path_buf(), identity, keep_last };
        for name in store.names()?.iter().filter(|name| name.starts_with("step-") && name.contains(".tmp-")) {
            let path = root.join(name);
            std::fs::remove_dir_all(&path).map_err(TrainError::io("remove", &path))?;
        }
        Ok(store)
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        let entries = std::fs::read_dir(&self.root).map_err(TrainError::io("list", &self.root))?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(TrainError::io("list", &self.root))
        };
        entries.map(name).collect()
    }

    /// Committed steps, ascending. The order is by step, never by the clock.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let names = self.names()?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Folder of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step}"))
    }

    /// Commits what `fill` writes as the checkpoint of `step`.
    ///
    /// # Errors
    /// Too little space, a failed write or sync. Nothing of this save is left then, and every older one is intact.
    pub fn save(
        &self,
        step: u64,
        n_bytes: u64,
        fill: &mut dyn FnMut(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        self.require_space(n_bytes)?;
        let tmp = self.root.join(format!("step-{step}.tmp-{}", std::process::id()));
        let dest = self.path(step);
        std::fs::create_dir(&tmp).map_err(TrainError::io("create", &tmp))?;
        let written = fill(&tmp).and_then(|()| {
            let manifest = Manifest::of(&tmp, step, self.identity.clone())?;
            let path = tmp.join(MANIFEST);
            let text = serde_json::to_vec_pretty(&manifest).map_err(|e| TrainError::Config {
                origin: path.display().to_string(),
                problem: e.to_string(),
            })?;
            gates::artifact::write_atomic(&path, &text)?;
            Ok(commit_dir(&tmp, &dest)?)
        });
        if let Err(error) = written {
            // The save has failed already; what cannot be removed now is removed when the run starts again.
            let _ = std::fs::remove_dir_all(&tmp);
            return Err(error);
        }
        Ok(dest)
    }

    fn require_space(&self, n_bytes: u64) -> Result<(), TrainError> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|e| TrainError::Io { action: "measure", path: self.root.clone(), source: e.into() })?;
        let (free, needed) = (stat.f_bavail.saturating_mul(stat.f_frsize), n_bytes / 100 * SPACE_PERCENT);
        if free < needed { Err(TrainError::NoSpace { path: self.root.clone(), needed, free }) } else { Ok(()) }
    }

    /// The newest checkpoint that verifies; bad ones on the way are renamed to `*.bad`.
    ///
    /// # Errors
    /// [`TrainError::NoIntactCheckpoint`] when there are some and none verifies; [`TrainError::ResumeMismatch`] or
    /// [`TrainError::CheckpointVersion`] when the newest intact one is of another run or build.
    pub fn load_latest(&self, warn: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, Manifest)>, TrainError> {
        let steps = self.steps()?;
        let mut problem = String::new();
        for &step in steps.iter().rev() {
            let path = self.path(step);
            let read = Manifest::read(&path);
            if let Err(error @ TrainError::CheckpointVersion { .. }) = read {
                return Err(error);
            }
            match read.map_err(|e| e.to_string()).and_then(|m| m.verify(&path).map(|()| m)) {
                Ok(manifest) => {
                    self.identity.require(&manifest.identity, &path)?;
                    return Ok(Some((path, manifest)));
                }
                Err(reason) => {
                    warn(format!("{} is damaged ({reason}); falling back to the one before", path.display()));
                    self.quarantine(&path)?;
                    problem = reason;
                }
            }
        }
        if steps.is_empty() {
            return Ok(None);
        }
        Err(TrainError::NoIntactCheckpoint { path: self.root.clone(), found: steps.len(), problem })
    }

    fn quarantine(&self, path: &Path) -> Result<(), TrainError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let free = (0..).map(|i| self.root.join(format!("{name}.bad-{i}"))).find(|to| !to.exists());
        let to = free.expect("some number is free");
        std::fs::rename(path, &to).map_err(TrainError::io("set aside", path))
    }

    /// Removes all but the newest `keep_last` and the best, once the newest has been read back intact.
    ///
    /// # Errors
    /// When the newest does not verify (nothing is removed then), or a folder cannot be removed.
    pub fn prune(&self, best: Option<u64>) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let n_old = steps.len().saturating_sub(self.keep_last);
        let old: Vec<u64> = steps[..n_old].iter().copied().filter(|&step| Some(step) != best).collect();
        let Some(&newest) = steps.last().filter(|_| !old.is_empty()) else { return Ok(()) };
        let path = self.path(newest);
        Manifest::read(&path)?.verify(&path).map_err(|problem| TrainError::NoIntactCheckpoint {
            path: path.clone(),
            found: 1,
            problem,
        })?;
        for step in old {
            // Renamed first, so that a kill in the middle leaves no half-deleted folder under a good name.
            let (path, gone) = (self.path(step), self.root.join(format!("step-{step}.tmp-old")));
            std::fs::rename(&path, &gone).map_err(TrainError::io("rename", &path))?;
            std::fs::remove_dir_all(&gone).map_err(TrainError::io("remove", &gone))?;
        }
        Ok(())
    }
}

/// What of a model a checkpoint holds.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// The whole model.
    Full,
    /// Only its adapter, in PEFT's layout; the base stays where it is.
    Adapter {
        /// Settings that the adapter was attached with.
        config: LoraConfig,
        /// [`model_core::adapter::weights_hash`] of the base.
        base_hash: String,
    },
}

/// Saves a run's parts; what the loop calls.
#[derive(Debug)]
pub struct Checkpointer {
    /// Where.
    pub store: CheckpointStore,
    /// What of the model.
    pub files: ModelFiles,
    /// Folder whose tokenizer files travel with every checkpoint.
    pub tokenizer_dir: PathBuf,
}

impl Checkpointer {
    fn fill<B: LmBackend>(&self, parts: &Parts<B>, state: &TrainState, dir: &Path) -> Result<(), TrainError> {
        match &self.files {
            ModelFiles::Full => drop(parts.model.save(dir, MAX_SHARD_BYTES)?),
            ModelFiles::Adapter { config, base_hash } => drop(parts.model.save_peft(dir, config, base_hash)?),
        }
        copy_tokenizer(&self.tokenizer_dir, dir)?;
        let trainer = dir.join("trainer");
        std::fs::create_dir(&trainer).map_err(TrainError::io("create", &trainer))?;
        parts.optimizer.save(&parts.model, &trainer.join("optimizer.safetensors"))?;
        let path = trainer.join("state.json");
        let text = serde_json::to_vec_pretty(state)
            .map_err(|e| TrainError::Config { origin: path.display().to_string(), problem: e.to_string() })?;
        Ok(gates::artifact::write_atomic(&path, &text)?)
    }
}

impl<B: LmBackend> Save<B> for Checkpointer {
    fn save(&mut self, parts: &Parts<B>, state: &TrainState) -> Result<(), TrainError> {
        let leaves = parts.model.leaves();
        let bytes = |trainable_only: bool| {
            let counted = leaves.iter().filter(|leaf| leaf.trainable || !trainable_only);
            4 * counted.map(|leaf| leaf.leaf.n_elements() as u64).sum::<u64>()
        };
        let n_bytes = bytes(!matches!(self.files, ModelFiles::Full)) + 2 * bytes(true);
        self.store.save(state.step, n_bytes, &mut |dir| self.fill(parts, state, dir))?;
        self.store.prune(state.best.as_ref().map(|best| best.step))
    }
}

/// Copies the tokenizer's files, where they are there, without replacing what the model wrote itself.
///
/// # Errors
/// When a file cannot be copied.
pub(crate) fn copy_tokenizer(from: &Path, to: &Path) -> Result<(), TrainError> {
    for name in TOKENIZER_FILES.iter().filter(|name| from.join(name).exists() && !to.join(name).exists()) {
        std::fs::copy(from.join(name), to.join(name)).map_err(TrainError::io("copy", &from.join(name)))?;
    }
    Ok(())
}

/// Reads parts and state from a verified checkpoint; `base` is the model that the stage started from.
///
/// # Errors
/// When a file does not fit the model.
pub fn load_parts<B: LmBackend>(
    dir: &Path,
    files: &ModelFiles,
    base: Decoder<B>,
    device: B::Device,
) -> Result<(Parts<B>, TrainState), TrainError> {
    let model = match files {
        ModelFiles::Full => Decoder::load(dir, &device)?,
        ModelFiles::Adapter { base_hash, .. } => {
            let mut model = base;
            for (_, linear) in model.linears_mut() {
                linear.adapters.fill(None);
            }
            model.load_peft(dir, base_hash)?;
            model
        }
    };
    let optimizer = Optimizer::load(&model, &dir.join("trainer/optimizer.safetensors"), &device)?;
    let path = dir.join("trainer/state.json");
    let bytes = gates::artifact::read_bounded(&path, 1 << 20)?;
    let state = serde_json::from_slice(&bytes)
        .map_err(|e| TrainError::Config { origin: path.display().to_string(), problem: e.to_string() })?;
    Ok((Parts { model, optimizer, device }, state))
}
