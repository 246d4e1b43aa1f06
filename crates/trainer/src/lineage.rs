//! `stage.json`: what a stage ran with, what it started from, which gate let it in, what came out.
//!
//! The file is written when the stage starts and again when it ends, each time whole or not at all. Every input and the
//! output carry a content hash, so the files of all stages together are the lineage of the last model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gates::artifact::{self, hash_bytes};
use gates::{GateError, Receipt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::TrainError;

/// File name inside the stage folder.
pub const STAGE_FILE: &str = "stage.json";
/// Lineage files beyond this size are not ours.
const MAX_BYTES: u64 = 16 << 20;

/// Something that a stage read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Where it was, as the configuration says it.
    pub path: PathBuf,
    /// Its content hash: of a model folder, a folder of rows, a file.
    pub hash: String,
}

impl Input {
    /// An input whose hash is known already.
    pub fn new(path: &Path, hash: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), hash: hash.into() }
    }

    /// A model folder, by [`artifact::model_hash`].
    ///
    /// # Errors
    /// When the folder is not a model or cannot be read.
    pub fn model(dir: &Path) -> Result<Self, TrainError> {
        Ok(Self::new(dir, artifact::model_hash(dir)?))
    }

    /// A file, or everything below a folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn tree(path: &Path) -> Result<Self, TrainError> {
        Ok(Self::new(path, artifact::hash_tree(path)?))
    }
}

/// How a stage came past the gate before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision", deny_unknown_fields)]
pub enum GateRecord {
    /// The stage has no gate before it: the first one of a line.
    NotAsked,
    /// A receipt for this transition and this model says yes.
    Passed {
        /// The transition.
        transition: String,
        /// The receipt.
        receipt: PathBuf,
        /// Its own hash.
        receipt_hash: String,
    },
    /// Somebody started the stage although the gate does not say yes.
    Overridden {
        /// The transition.
        transition: String,
        /// Why, in their words.
        reason: String,
        /// What the gate said.
        refusal: String,
    },
}

/// The gate before a stage, as its configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryGate {
    /// The transition, for instance `pretrain-to-sft`.
    pub transition: String,
    /// The receipt that `gates check` wrote.
    pub receipt: PathBuf,
}

impl EntryGate {
    /// Asks the gate about the model in `model_dir`.
    ///
    /// An override is recorded only where the gate refuses; where it agrees, the receipt counts.
    ///
    /// # Errors
    /// [`TrainError::Gate`] when the gate refuses and there is no override, or the override's reason is empty.
    pub fn enter(&self, model_dir: &Path, override_reason: Option<&str>) -> Result<GateRecord, TrainError> {
        let model_hash = artifact::model_hash(model_dir)?;
        let refusal = match Receipt::require(&self.receipt, &self.transition, &model_hash) {
            Ok(receipt) => {
                return Ok(GateRecord::Passed {
                    transition: self.transition.clone(),
                    receipt: self.receipt.clone(),
                    receipt_hash: receipt.receipt_hash,
                });
            }
            Err(error) => error,
        };
        match override_reason.map(str::trim).filter(|reason| !reason.is_empty()) {
            Some(reason) if matches!(refusal, GateError::Refused { .. }) => Ok(GateRecord::Overridden {
                transition: self.transition.clone(),
                reason: reason.to_owned(),
                refusal: refusal.to_string(),
            }),
            _ => Err(refusal.into()),
        }
    }
}

/// How a stage ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", deny_unknown_fields)]
pub enum StageOutcome {
    /// It has not ended, or it died.
    Running,
    /// All steps are done.
    Finished {
        /// Completed steps.
        steps: u64,
        /// The result.
        output: Input,
    },
    /// A signal or `stop_after` ended it; `--resume` continues.
    Stopped {
        /// Completed steps.
        steps: u64,
        /// The last checkpoint.
        output: Input,
        /// Who wanted it.
        cause: String,
    },
    /// An error ended it.
    Failed {
        /// The message.
        error: String,
        /// The exit code that went with it.
        exit_code: u8,
    },
}

/// The content of `stage.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// Version of the format: [`StageRecord::VERSION`].
    pub version: u32,
    /// Name of the stage.
    pub stage: String,
    /// The configuration as it ran, `--set` included.
    pub config: Value,
    /// BLAKE3 (hex) of that configuration.
    pub config_hash: String,
    /// What was read, by role: `model`, `tokenizer`, `data`, ...
    pub inputs: BTreeMap<String, Input>,
    /// The gate before the stage.
    pub gate: GateRecord,
    /// How it ended.
    pub outcome: StageOutcome,
}

impl StageRecord {
    /// The version that this build writes and reads.
    pub const VERSION: u32 = 1;

    /// The record of a stage that is about to start.
    ///
    /// # Errors
    /// When the configuration has no JSON form, which a number that is not finite causes.
    pub fn start<T: Serialize>(
        stage: &str,
        config: &T,
        inputs: BTreeMap<String, Input>,
        gate: GateRecord,
    ) -> Result<Self, TrainError> {
        let config = to_value(config)?;
        let config_hash = hash_bytes(config.to_string().as_bytes());
        let stage = stage.to_owned();
        Ok(Self { version: Self::VERSION, stage, config, config_hash, inputs, gate, outcome: StageOutcome::Running })
    }

    /// Writes the record into the stage folder, atomically.
    ///
    /// # Errors
    /// When the folder is missing or cannot be written.
    pub fn write(&self, stage_dir: &Path) -> Result<(), TrainError> {
        let mut text = serde_json::to_string_pretty(self).map_err(not_json)?;
        text.push('\n');
        Ok(artifact::write_atomic(&stage_dir.join(STAGE_FILE), text.as_bytes())?)
    }

    /// Reads the record of a stage.
    ///
    /// # Errors
    /// A missing file, unknown keys, another version.
    pub fn read(stage_dir: &Path) -> Result<Self, TrainError> {
        let path = stage_dir.join(STAGE_FILE);
        let bytes = artifact::read_bounded(&path, MAX_BYTES)?;
        let wrong = |problem: String| TrainError::broken(&path, problem);
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let version = value.get("version").and_then(Value::as_u64);
        if version != Some(u64::from(Self::VERSION)) {
            let found = version.map_or("none".to_owned(), |v| v.to_string());
            return Err(wrong(format!("expected version {}, found {found}", Self::VERSION)));
        }
        // From the bytes again, because a value has already forgotten keys that were written twice.
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }
}

/// BLAKE3 (hex) of a configuration's canonical JSON form; object keys are sorted, so the order in the file is irrelevant.
///
/// # Errors
/// When the configuration has no JSON form.
pub fn config_hash<T: Serialize>(config: &T) -> Result<String, TrainError> {
    Ok(hash_bytes(to_value(config)?.to_string().as_bytes()))
}

fn to_value<T: Serialize>(config: &T) -> Result<Value, TrainError> {
    serde_json::to_value(config).map_err(not_json)
}

fn not_json(error: serde_json::Error) -> TrainError {
    TrainError::Config { origin: "resolved".into(), problem: format!("has no JSON form: {error}") }
}

#[cfg(test)]
mod tests;
