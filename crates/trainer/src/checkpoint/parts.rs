//! What a checkpoint holds of a run: the model's files, the optimizer, the state of the loop; written and read.

use std::path::{Path, PathBuf};

use gates::artifact::read_bounded;
use kernels_cubecl::LmBackend;
use model_core::hf::{FloatType, SaveOptions, generation_config};
use model_core::{Decoder, LoraConfig};

use super::store::CheckpointStore;
use crate::optim::Optimizer;
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
#[derive(Debug)]
pub struct Checkpointer {
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
    fn fill<B: LmBackend>(&self, parts: &Parts<B>, state: &TrainState, dir: &Path) -> Result<(), TrainError> {
        match &self.files {
            ModelFiles::Full => {
                let options = SaveOptions { max_shard_bytes: MAX_SHARD_BYTES, float: self.float };
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
        model * self.float.bytes() as u64 + parts.optimizer.n_bytes()
    }
}

impl<B: LmBackend> Save<B> for Checkpointer {
    fn save(&mut self, parts: &Parts<B>, state: &TrainState) -> Result<Vec<String>, TrainError> {
        let n_bytes = self.n_bytes(parts);
        self.store.save(state.step, n_bytes, &mut |dir| self.fill(parts, state, dir))?;
        // The checkpoint is committed; that an old one is still there is no failure of the save.
        let pruned = self.store.prune(state.best_saved.as_ref().map(|best| best.step));
        Ok(pruned.err().map(|error| format!("old checkpoints were kept: {error}")).into_iter().collect())
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
            for (_, linear) in model.linears_mut() {
                linear.adapters.fill(None);
            }
            model.load_peft(dir, base_hash)?;
            model
        }
    };
    let optimizer = Optimizer::load(&model, config, &dir.join(TRAINER).join(OPTIMIZER_FILE), &device)?;
    let path = dir.join(TRAINER).join(STATE_FILE);
    let bytes = read_bounded(&path, MAX_STATE_BYTES)?;
    let state = serde_json::from_slice(&bytes).map_err(|e| TrainError::broken(&path, e.to_string()))?;
    Ok((Parts { model, optimizer, device }, state))
}
