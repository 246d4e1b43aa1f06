//! What a checkpoint holds of a run: the model's files, the optimizer, the state of the loop; written and read.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use gates::artifact::read_bounded;
use kernels_cubecl::{Cpu, LmBackend, Mxfp4};
use model_core::hf::{FloatType, SaveOptions, generation_config};
use model_core::{Decoder, LoraConfig, NamedLeaf};

use super::store::CheckpointStore;
use crate::optim::{Optimizer, hollow, leaf_to_host};
use crate::scaling::Scaling;
use crate::state::TrainState;
use crate::train::{Parts, Save};
use crate::{TrainConfig, TrainError};

/// A shard of a saved model is at most this large.
const MAX_SHARD_BYTES: u64 = 4 << 30;
/// Files that travel with a model besides its weights and configuration.
const COMPANIONS: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", GENERATION_FILE];
/// Which ids begin and end a text; written where the base model has none.
const GENERATION_FILE: &str = "generation_config.json";
/// Folder of what only training needs.
const TRAINER: &str = "trainer";
/// Moments.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Peaks of earlier FP8 passes, where the run scales by them.
const SCALING_FILE: &str = "scaling.safetensors";
/// The state of the loop.
const STATE_FILE: &str = "state.json";
/// Largest state file.
const MAX_STATE_BYTES: u64 = 1 << 20;

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
///
/// A save copies everything to the host and returns; a thread of its own writes, hashes, syncs and commits the copy. One save
/// is in flight at most, and it is waited for when this is dropped, however the run ends.
#[derive(Debug)]
pub struct Checkpointer {
    writer: Arc<CheckpointWriter>,
    in_flight: Option<JoinHandle<Result<Vec<String>, TrainError>>>,
}

/// Where checkpoints go and what they hold.
#[derive(Debug)]
pub struct CheckpointWriter {
    /// Where.
    pub store: CheckpointStore,
    /// What of the model.
    pub files: ModelFiles,
    /// Element type of a whole model on disk: that of the run, so that nothing is lost.
    pub float: FloatType,
    /// Folder whose tokenizer files travel with every checkpoint.
    pub tokenizer_dir: PathBuf,
}

impl Checkpointer {
    /// Nothing is being saved yet.
    pub fn new(writer: CheckpointWriter) -> Self {
        Self { writer: Arc::new(writer), in_flight: None }
    }

    /// Where checkpoints go and what they hold.
    pub fn writer(&self) -> &CheckpointWriter {
        &self.writer
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        if let Some(save) = self.in_flight.take() {
            // The run has an error of its own to tell; the checkpoint is there, or the one before it is.
            let _ = save.join();
        }
    }
}

/// A copy of what a checkpoint holds on the host; in the place of a frozen base stands nothing.
fn to_host<B: LmBackend>(parts: &Parts<B>, files: &ModelFiles) -> Parts<Cpu> {
    let whole = matches!(files, ModelFiles::Full);
    let mut leaf = |named: &NamedLeaf<B>| match whole || named.trainable {
        true => leaf_to_host(&named.leaf),
        false => hollow(&named.leaf, &Default::default()),
    };
    // Packed weights never train, so that a whole model has none.
    let model = parts.model.map_backend(&mut leaf, &mut |_| Mxfp4::empty(&Default::default()));
    let (optimizer, scaling) = (parts.optimizer.to_host(), parts.scaling.to_host());
    Parts { model, optimizer, scaling, device: Default::default() }
}

impl CheckpointWriter {
    /// Commits a checkpoint and forgets old ones; returns what the user should know.
    fn write<B: LmBackend>(
        &self,
        n_bytes: u64,
        parts: &Parts<B>,
        state: &TrainState,
    ) -> Result<Vec<String>, TrainError> {
        self.store.save(state.step, n_bytes, &mut |dir| self.fill(parts, state, dir))?;
        // The checkpoint is committed; that an old one is still there is no failure of the save.
        let pruned = self.store.prune(state.best_saved.as_ref().map(|best| best.step));
        Ok(pruned.err().map(|error| format!("old checkpoints were kept: {error}")).into_iter().collect())
    }

    fn fill<B: LmBackend>(&self, parts: &Parts<B>, state: &TrainState, dir: &Path) -> Result<(), TrainError> {
        match &self.files {
            ModelFiles::Full => {
                let options =
                    SaveOptions { max_shard_bytes: MAX_SHARD_BYTES, float: self.float, packed_experts: false };
                drop(parts.model.save_with(dir, options)?);
            }
            ModelFiles::Adapter { config, base_hash } => drop(parts.model.save_peft(dir, config, base_hash)?),
        }
        copy_companions(&self.tokenizer_dir, dir)?;
        let generation = dir.join(GENERATION_FILE);
        if matches!(self.files, ModelFiles::Full) && !generation.exists() {
            let text = generation_config(&parts.model.config);
            std::fs::write(&generation, text).map_err(TrainError::io("write", &generation))?;
        }
        let trainer = dir.join(TRAINER);
        std::fs::create_dir(&trainer).map_err(TrainError::io("create", &trainer))?;
        parts.optimizer.save(&parts.model, &trainer.join(OPTIMIZER_FILE))?;
        if !parts.scaling.histories.is_empty() {
            parts.scaling.save(&trainer.join(SCALING_FILE))?;
        }
        let path = trainer.join(STATE_FILE);
        let text = serde_json::to_vec_pretty(state).map_err(|e| TrainError::broken(&path, e.to_string()))?;
        std::fs::write(&path, text).map_err(TrainError::io("write", &path))
    }

    /// Bytes that a save writes, small files left out.
    fn n_bytes<B: LmBackend>(&self, parts: &Parts<B>) -> u64 {
        let (mut all, mut trainable) = (0, 0);
        for named in parts.model.leaves() {
            let n = named.leaf.n_elements() as u64;
            all += n;
            trainable += if named.trainable { n } else { 0 };
        }
        let model = if matches!(self.files, ModelFiles::Full) { all } else { trainable };
        model * self.float.bytes() as u64 + parts.optimizer.n_bytes() + parts.scaling.n_bytes()
    }
}

impl<B: LmBackend> Save<B> for Checkpointer {
    fn save(&mut self, parts: &Parts<B>, state: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        assert!(self.in_flight.is_none(), "step {}: the save before this one was not asked about", state.step);
        let n_bytes = self.writer.n_bytes(parts);
        let (writer, copy, state) = (self.writer.clone(), to_host(parts, &self.writer.files), state.clone());
        let work = move || writer.write(n_bytes, &copy, &state);
        let thread = Builder::new().name("checkpoint".into()).spawn(work);
        self.in_flight = Some(thread.map_err(TrainError::io("start a thread that writes", self.writer.store.root()))?);
        Ok(None)
    }

    fn finish(&mut self, wait: bool) -> Option<Result<Vec<String>, TrainError>> {
        let save = self.in_flight.take_if(|save| wait || save.is_finished())?;
        // A panic there is one here.
        Some(save.join().unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

/// Copies the files that travel with a model, where they are there, without replacing what was written already.
///
/// # Errors
/// When a file cannot be copied.
pub(crate) fn copy_companions(from: &Path, to: &Path) -> Result<(), TrainError> {
    for name in COMPANIONS.iter().filter(|name| from.join(name).exists() && !to.join(name).exists()) {
        std::fs::copy(from.join(name), to.join(name)).map_err(TrainError::io("copy", &from.join(name)))?;
    }
    Ok(())
}

/// Reads parts and state from a verified checkpoint; `base` is the model that the stage started from, with the adapter
/// attached where there is one.
///
/// # Errors
/// When a file does not fit the model.
pub fn load_parts<B: LmBackend>(
    dir: &Path,
    files: &ModelFiles,
    base: Decoder<B>,
    config: &TrainConfig,
    device: B::Device,
) -> Result<(Parts<B>, TrainState), TrainError> {
    let model = match files {
        ModelFiles::Full => Decoder::load(dir, &device)?,
        ModelFiles::Adapter { base_hash, .. } => {
            let mut model = base;
            model.detach_lora();
            model.load_peft(dir, base_hash)?;
            model
        }
    };
    let optimizer = Optimizer::load(&model, config, &dir.join(TRAINER).join(OPTIMIZER_FILE), &device)?;
    let scaling = Scaling::load(&model, config, &dir.join(TRAINER).join(SCALING_FILE), &device)?;
    let path = dir.join(TRAINER).join(STATE_FILE);
    let bytes = read_bounded(&path, MAX_STATE_BYTES)?;
    let state = serde_json::from_slice(&bytes).map_err(|e| TrainError::broken(&path, e.to_string()))?;
    Ok((Parts { model, optimizer, scaling, device }, state))
}
