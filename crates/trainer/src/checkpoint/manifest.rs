//! `manifest.json`: what a checkpoint holds and which run it belongs to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gates::artifact::hash_file;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::TrainError;

/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Largest manifest that is read.
const MAX_BYTES: u64 = 16 << 20;

/// What a run must have in common with a checkpoint to resume from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The stage's resolved configuration, without the keys that may change between runs.
    pub config: Value,
    /// Hash of the data and its order.
    pub data: String,
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// Hash of the model that the stage started from.
    pub base_model: String,
}

impl Identity {
    /// Compares with the identity of a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::ResumeMismatch`] naming the first field that differs, with both values.
    pub fn require(&self, found: &Identity, path: &Path) -> Result<(), TrainError> {
        let same = |field, was: &str, now: &str| {
            if was == now {
                return Ok(());
            }
            let (was, now) = (was.to_owned(), now.to_owned());
            Err(TrainError::ResumeMismatch { path: path.to_path_buf(), field, was, now })
        };
        same("the tokenizer", &found.tokenizer, &self.tokenizer)?;
        same("the data", &found.data, &self.data)?;
        same("the initial model", &found.base_model, &self.base_model)?;
        match first_difference("", &found.config, &self.config) {
            None => Ok(()),
            Some((was, now)) => same("the configuration", &was, &now),
        }
    }
}

/// The first key whose values differ, as `key = value` of both sides.
fn first_difference(key: &str, was: &Value, now: &Value) -> Option<(String, String)> {
    match (was, now) {
        (Value::Object(was), Value::Object(now)) => {
            let keys: std::collections::BTreeSet<&String> = was.keys().chain(now.keys()).collect();
            keys.into_iter().find_map(|k| {
                let path = if key.is_empty() { k.clone() } else { format!("{key}.{k}") };
                first_difference(&path, was.get(k).unwrap_or(&Value::Null), now.get(k).unwrap_or(&Value::Null))
            })
        }
        _ if was == now => None,
        _ => Some((format!("{key} = {was}"), format!("{key} = {now}"))),
    }
}

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Bytes.
    pub size: u64,
    /// BLAKE3, hexadecimal.
    pub hash: String,
}

/// The manifest of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format: [`Manifest::VERSION`].
    pub version: u32,
    /// Completed steps.
    pub step: u64,
    /// The run.
    pub identity: Identity,
    /// Every other file, by path inside the checkpoint.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// The version that this build writes and reads.
    pub const VERSION: u32 = 1;

    /// Hashes every file below `dir`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(dir: &Path, step: u64, identity: Identity) -> Result<Self, TrainError> {
        let mut files = BTreeMap::new();
        for (name, path) in files_below(dir)? {
            let size = std::fs::metadata(&path).map_err(TrainError::io("read", &path))?.len();
            files.insert(name, FileEntry { size, hash: hash_file(&path)? });
        }
        Ok(Self { version: Self::VERSION, step, identity, files })
    }

    /// Reads the manifest of a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::CheckpointVersion`] for another version, otherwise a description of what is wrong.
    pub fn read(dir: &Path) -> Result<Self, TrainError> {
        let path = dir.join(MANIFEST);
        let bytes = gates::artifact::read_bounded(&path, MAX_BYTES)?;
        let bad = |e: serde_json::Error| TrainError::broken(&path, e.to_string());
        let value: Value = serde_json::from_slice(&bytes).map_err(bad)?;
        if let Some(found) = value.get("version").and_then(Value::as_u64).filter(|&v| v != u64::from(Self::VERSION)) {
            return Err(TrainError::CheckpointVersion { path, found, expected: Self::VERSION });
        }
        // From the bytes again, because a value has already forgotten keys that were written twice.
        serde_json::from_slice(&bytes).map_err(bad)
    }

    /// The folders of the listed files, relative to the checkpoint and without it, deepest first.
    pub fn folders(&self) -> Vec<String> {
        let parents = self.files.keys().flat_map(|name| name.match_indices('/').map(|(at, _)| name[..at].to_owned()));
        let unique: std::collections::BTreeSet<String> = parents.collect();
        unique.into_iter().rev().collect()
    }

    /// Checks that this is the checkpoint of `step` and that exactly the listed files are there, with their sizes and
    /// hashes.
    ///
    /// # Errors
    /// A sentence naming the first file that is missing, left over or different.
    pub fn verify(&self, dir: &Path, step: u64) -> Result<(), String> {
        if self.step != step {
            return Err(format!("the manifest is of step {}", self.step));
        }
        let found = files_below(dir).map_err(|e| e.to_string())?;
        for name in found.keys().filter(|name| *name != MANIFEST) {
            if !self.files.contains_key(name) {
                return Err(format!("{name} is not in the manifest"));
            }
        }
        for (name, entry) in &self.files {
            let Some(path) = found.get(name) else { return Err(format!("{name} is missing")) };
            let size = std::fs::metadata(path).map_err(|e| format!("{name}: {e}"))?.len();
            if size != entry.size {
                return Err(format!("{name} has {size} bytes, expected {}", entry.size));
            }
            let hash = hash_file(path).map_err(|e| e.to_string())?;
            if hash != entry.hash {
                return Err(format!("{name} has hash {hash}, expected {}", entry.hash));
            }
        }
        Ok(())
    }
}

/// Regular files below `dir` by their path inside it; links are refused.
fn files_below(dir: &Path) -> Result<BTreeMap<String, PathBuf>, TrainError> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(String::new(), dir.to_path_buf())];
    while let Some((prefix, folder)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(TrainError::io("list", &folder))? {
            let entry = entry.map_err(TrainError::io("list", &folder))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(TrainError::io("read", &entry.path()))?;
            if kind.is_dir() {
                folders.push((format!("{name}/"), entry.path()));
            } else if kind.is_file() {
                found.insert(name, entry.path());
            } else {
                let source = std::io::Error::other("not a regular file");
                return Err(TrainError::Io { action: "read", path: entry.path(), source });
            }
        }
    }
    Ok(found)
}
