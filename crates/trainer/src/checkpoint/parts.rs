//! What a checkpoint holds of a run: the model's files, the optimizer, the state of the loop; written and read.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use gates::artifact::read_bounded;
use kernels_cubecl::{Cpu, HostCopy, HostReserve, LmBackend, Piece};
use model_core::hf::{FloatType, SaveOptions, generation_config};
use model_core::{Decoder, LoraConfig};

use super::contents::{Arrived, Contents, frame};
use super::store::CheckpointStore;
use crate::memory::{host_available, offloaded_bytes};
use crate::optim::{Optimizer, save_tensors};
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
/// Bytes of the host's memory that copies of the state leave to the rest of the run.
const HOST_MARGIN: u64 = 1 << 30;

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
/// A save begins to copy everything to the host and returns; a thread of its own waits for the copy, writes, hashes, syncs and
/// commits it. On CUDA the copy goes on beside the next step, up to its update, into memory that is pinned before the first save.
/// One save is in flight at most, and it is waited for when this is dropped, however the run ends.
pub struct Checkpointer {
    writer: Arc<CheckpointWriter>,
    in_flight: Option<JoinHandle<Result<Vec<String>, TrainError>>>,
    /// Ends the copies that are begun.
    end_copies: Option<Box<dyn FnOnce() + Send>>,
    /// Memory for copies was asked for, and nothing was said yet about copies that found none.
    expects_memory: bool,
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
        Self { writer: Arc::new(writer), in_flight: None, end_copies: None, expects_memory: false }
    }

    /// Where checkpoints go and what they hold.
    pub fn writer(&self) -> &CheckpointWriter {
        &self.writer
    }

    /// Nobody waits for a copy in vain after this.
    fn end_copies(&mut self) {
        if let Some(end) = self.end_copies.take() {
            end();
        }
    }

    /// A note, the first time that copies have found no memory.
    fn memory_note(&mut self, copies: &Contents<HostCopy>) -> Option<String> {
        let n_waited = copies.all().filter(|copy| copy.is_here()).count();
        if !self.expects_memory || n_waited == 0 {
            return None;
        }
        self.expects_memory = false;
        let n_all = copies.all().count();
        Some(format!(
            "the loop waited for {n_waited} of the checkpoint's {n_all} tensors: they found no pinned memory of the host, or lay \
             with gaps in the device's; should the next save wait too, raise the limit of locked memory or free memory"
        ))
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.end_copies();
        if let Some(save) = self.in_flight.take() {
            // The run has an error of its own to tell; the checkpoint is there, or the one before it is.
            let _ = save.join();
        }
    }
}

impl CheckpointWriter {
    /// Commits a checkpoint and forgets old ones; returns what the user should know.
    fn write(
        &self,
        n_bytes: u64,
        frame: &Decoder<Cpu>,
        copies: Contents<HostCopy>,
        state: &TrainState,
    ) -> Result<Vec<String>, TrainError> {
        let arrived = copies.wait(frame)?;
        self.store.save(state.step, n_bytes, &mut |dir| self.fill(&arrived, state, dir))?;
        // The checkpoint is committed; that an old one is still there is no failure of the save.
        let pruned = self.store.prune(state.best_saved.as_ref().map(|best| best.step));
        Ok(pruned.err().map(|error| format!("old checkpoints were kept: {error}")).into_iter().collect())
    }

    fn fill(&self, arrived: &Arrived, state: &TrainState, dir: &Path) -> Result<(), TrainError> {
        let Arrived { model, optimizer, scaling } = arrived;
        match &self.files {
            ModelFiles::Full => {
                let options =
                    SaveOptions { max_shard_bytes: MAX_SHARD_BYTES, float: self.float, packed_experts: false };
                drop(model.save_with(dir, options)?);
            }
            ModelFiles::Adapter { config, base_hash } => drop(model.save_peft(dir, config, base_hash)?),
        }
        copy_companions(&self.tokenizer_dir, dir)?;
        let generation = dir.join(GENERATION_FILE);
        if matches!(self.files, ModelFiles::Full) && !generation.exists() {
            let text = generation_config(&model.config);
            std::fs::write(&generation, text).map_err(TrainError::io("write", &generation))?;
        }
        let trainer = dir.join(TRAINER);
        std::fs::create_dir(&trainer).map_err(TrainError::io("create", &trainer))?;
        save_tensors(optimizer, &trainer.join(OPTIMIZER_FILE))?;
        if !scaling.histories.is_empty() {
            scaling.save(&trainer.join(SCALING_FILE))?;
        }
        let path = trainer.join(STATE_FILE);
        let text = serde_json::to_vec_pretty(state).map_err(|e| TrainError::broken(&path, e.to_string()))?;
        std::fs::write(&path, text).map_err(TrainError::io("write", &path))
    }
}

impl<B: LmBackend> Save<B> for Checkpointer {
    fn prepare(&mut self, parts: &Parts<B>, config: &TrainConfig) -> Option<String> {
        let contents = Contents::of(parts, &self.writer.files);
        let sizes: Vec<usize> = contents.all().map(Piece::n_bytes).collect();
        let needed: u64 = sizes.iter().map(|bytes| *bytes as u64).sum();
        // The writer has the weights of a file in f32 at a time.
        let others = HOST_MARGIN + 2 * needed.min(MAX_SHARD_BYTES) + offloaded_bytes(&parts.model.config, config);
        let available = host_available().unwrap_or(u64::MAX);
        match B::lm_reserve_host(&parts.device, &sizes, available.saturating_sub(others)) {
            HostReserve::Unneeded => None,
            HostReserve::Begun => {
                self.expects_memory = true;
                None
            }
            HostReserve::TooMuch => Some(format!(
                "every save will hold the loop up: copies beside it need {needed} bytes of pinned memory of the host, and \
                 {others} for the rest of the run, {available} are available"
            )),
        }
    }

    fn save(&mut self, parts: &Parts<B>, state: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        assert!(self.in_flight.is_none(), "step {}: the save before this one was not asked about", state.step);
        let contents = Contents::of(parts, &self.writer.files);
        let n_bytes = contents.all().map(|piece| piece.n_bytes() as u64).sum();
        let (writer, frame, state, device) =
            (self.writer.clone(), frame(&parts.model), state.clone(), parts.device.clone());
        let copies = contents.copy();
        self.end_copies = Some(Box::new(move || B::lm_end_copies(&device)));
        let note = self.memory_note(&copies);
        let work = move || {
            let mut notes = writer.write(n_bytes, &frame, copies, &state)?;
            notes.extend(note);
            Ok(notes)
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(work);
        self.in_flight = Some(thread.map_err(TrainError::io("start a thread that writes", self.writer.store.root()))?);
        Ok(None)
    }

    fn before_update(&mut self) {
        self.end_copies();
    }

    fn finish(&mut self, wait: bool) -> Option<Result<Vec<String>, TrainError>> {
        if wait {
            self.end_copies();
        }
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
