//! Model folders: `config.json` with one weights file, or with shards and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kernels_cubecl::{Leaf, LmBackend};
use serde_json::{Value, json};

use super::config_json::{FloatType, pretty};
use super::json::{MAX_CONFIG_BYTES, parse};
use super::names::{LeafMap, leaf_from_values, leaf_map, leaf_values, split_leaf};
use super::tensor_file::{MAX_HEADER_BYTES, TensorFile, Values, write_tensors};
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::ModelError;

/// The configuration's file name.
pub const CONFIG_FILE: &str = "config.json";
/// The weights' file name when there is only one.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index's file name when there are shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Buffers that old exports carry and that are computed here.
const IGNORED_SUFFIX: &str = ".rotary_emb.inv_freq";
/// How many names an error lists.
const NAMES_SHOWN: usize = 5;

/// How weights are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Accept NaN and infinities, to look at a broken checkpoint.
    pub allow_non_finite: bool,
}

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// Bytes of tensors per file; a single larger tensor still gets a file of its own.
    pub max_shard_bytes: u64,
    /// Element type on disk.
    pub float: FloatType,
}

impl<B: LmBackend> Decoder<B> {
    /// Reads a model folder.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor.
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, ModelError> {
        Self::load_with(dir, LoadOptions::default(), device)
    }

    /// Reads a model folder with options.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor.
    pub fn load_with(dir: &Path, options: LoadOptions, device: &B::Device) -> Result<Self, ModelError> {
        Self::load_by(dir, options, &mut |leaf, values| leaf_from_values(leaf, values, device))
    }

    /// As [`Decoder::load_with`], each leaf made of its f32 values by `make`, in the order of [`Decoder::leaves`].
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor.
    pub fn load_by(
        dir: &Path,
        options: LoadOptions,
        make: &mut dyn FnMut(&LeafMap, Vec<f32>) -> Leaf<B>,
    ) -> Result<Self, ModelError> {
        let config = read_config(dir)?;
        let map = leaf_map(&config);
        let weights = Weights::open(dir)?;
        weights.expect_exactly(&map)?;
        let leaves: Result<Vec<_>, ModelError> =
            map.iter().map(|leaf| Ok(make(leaf, weights.read_leaf(leaf, options)?))).collect();
        Ok(Decoder::from_leaves(&config, leaves?))
    }

    /// Writes `config.json` and f32 weights into an existing folder and returns the files; the caller commits.
    ///
    /// # Errors
    /// [`ModelError::AdapterAttached`], [`ModelError::OutputExists`], [`ModelError::Io`].
    pub fn save(&self, dir: &Path, max_shard_bytes: u64) -> Result<Vec<PathBuf>, ModelError> {
        self.save_with(dir, SaveOptions { max_shard_bytes, float: FloatType::F32 })
    }

    /// Writes `config.json` and weights into an existing folder and returns the files; the caller commits.
    ///
    /// # Errors
    /// [`ModelError::AdapterAttached`], [`ModelError::OutputExists`], [`ModelError::Io`].
    pub fn save_with(&self, dir: &Path, options: SaveOptions) -> Result<Vec<PathBuf>, ModelError> {
        let n_adapters = self.linears().iter().flat_map(|(_, l)| &l.adapters).filter(|a| a.is_some()).count();
        if n_adapters > 0 {
            return Err(ModelError::AdapterAttached { n_adapters });
        }
        let config_path = dir.join(CONFIG_FILE);
        write_new(&config_path, self.config.to_hf_as(options.float).as_bytes())?;
        let mut written = vec![config_path];
        let map = leaf_map(&self.config);
        let shards = plan_shards(&map, options);
        let mut weight_map = BTreeMap::new();
        for (i, parts) in shards.iter().enumerate() {
            let name = shard_name(i, shards.len());
            weight_map.extend(parts.iter().map(|(_, part)| (part.clone(), name.clone())));
            let path = dir.join(name);
            self.write_shard(&path, &map, parts, options.float)?;
            written.push(path);
        }
        if shards.len() > 1 {
            let total = self.config.n_params() * options.float.bytes() as u64;
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            let path = dir.join(INDEX_FILE);
            write_new(&path, pretty(&index).as_bytes())?;
            written.push(path);
        }
        Ok(written)
    }

    fn write_shard(
        &self,
        path: &Path,
        map: &[LeafMap],
        parts: &ShardParts,
        float: FloatType,
    ) -> Result<(), ModelError> {
        let leaves = self.leaves();
        let wanted: BTreeSet<&str> = parts.iter().map(|(_, part)| part.as_str()).collect();
        let used: BTreeSet<usize> = parts.iter().map(|(leaf, _)| *leaf).collect();
        let values: Vec<(usize, Vec<f32>)> = used.iter().map(|i| (*i, leaf_values(leaves[*i].leaf.clone()))).collect();
        let tensors = values
            .iter()
            .flat_map(|(i, values)| split_leaf(&map[*i], values))
            .filter(|(name, _, _)| wanted.contains(name.as_str()))
            .map(|(name, shape, values)| (name, shape, Values::Float(values)))
            .collect();
        write_tensors(path, tensors, float)
    }
}

/// Reads the configuration of a model folder.
///
/// # Errors
/// [`ModelError`] naming the file and the key.
pub fn read_config(dir: &Path) -> Result<ModelConfig, ModelError> {
    let path = dir.join(CONFIG_FILE);
    let text = read_limited(&path, MAX_CONFIG_BYTES as u64)?;
    let text = String::from_utf8(text).map_err(|error| {
        ModelError::Json { what: CONFIG_FILE, reason: format!("not UTF-8: {error}") }.in_file(&path)
    })?;
    ModelConfig::from_hf(&text).map_err(|error| error.in_file(&path))
}

/// Opens the weights files of a model folder, one or all shards of the index, and checks that each tensor has one place.
///
/// # Errors
/// [`ModelError`] naming the file.
pub fn open_weights(dir: &Path) -> Result<Vec<TensorFile>, ModelError> {
    Ok(Weights::open(dir)?.files)
}

/// Leaf number and tensor name of everything in one shard.
type ShardParts = Vec<(usize, String)>;

/// Fills shards in the order of the leaves; a new one begins where the next tensor would not fit.
fn plan_shards(map: &[LeafMap], options: SaveOptions) -> Vec<ShardParts> {
    let mut shards: Vec<ShardParts> = vec![Vec::new()];
    let mut filled = 0;
    for (i, leaf) in map.iter().enumerate() {
        for part in &leaf.parts {
            let elements: usize = leaf.part_shape(part).iter().product();
            let bytes = (elements * options.float.bytes()) as u64;
            if filled > 0 && filled + bytes > options.max_shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            shards.last_mut().expect("there is always a shard").push((i, part.name.clone()));
        }
    }
    shards
}

fn shard_name(i: usize, n: usize) -> String {
    if n == 1 { SINGLE_FILE.to_owned() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) }
}

/// The open weights files of a folder and where each tensor is.
struct Weights {
    dir: PathBuf,
    files: Vec<TensorFile>,
    place: BTreeMap<String, usize>,
}

impl Weights {
    fn open(dir: &Path) -> Result<Self, ModelError> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        match (single.exists(), index.exists()) {
            (true, false) => Self::from_files(dir, vec![TensorFile::open(&single)?]),
            (false, true) => Self::from_index(dir, &index),
            (true, true) => {
                let (expected, got) = (format!("no {SINGLE_FILE} beside it"), "both".to_owned());
                Err(ModelError::Index { path: index, expected, got })
            }
            (false, false) => Err(ModelError::NoWeights { path: dir.to_path_buf(), got: other_weights(dir) }),
        }
    }

    fn from_files(dir: &Path, files: Vec<TensorFile>) -> Result<Self, ModelError> {
        let mut place = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names().filter(|name| !name.ends_with(IGNORED_SUFFIX)) {
                if place.insert(name.to_owned(), i).is_some() {
                    let expected = "each tensor in one file".to_owned();
                    let got = format!("`{name}` in several");
                    return Err(ModelError::Index { path: file.path().to_path_buf(), expected, got });
                }
            }
        }
        Ok(Weights { dir: dir.to_path_buf(), files, place })
    }

    fn from_index(dir: &Path, index: &Path) -> Result<Self, ModelError> {
        let text = read_limited(index, MAX_HEADER_BYTES)?;
        let value = parse(INDEX_FILE, &text, MAX_HEADER_BYTES as usize).map_err(|error| error.in_file(index))?;
        let wrong = |expected: &str, got: String| {
            let (path, expected) = (index.to_path_buf(), expected.to_owned());
            ModelError::Index { path, expected, got }
        };
        let Some(Value::Object(listed)) = value.get("weight_map") else {
            return Err(wrong("an object `weight_map`", "none".to_owned()));
        };
        let mut names = BTreeSet::new();
        for file in listed.values() {
            let plain = file.as_str().filter(|name| is_file_name(name));
            names.insert(plain.ok_or_else(|| wrong("file names ending in .safetensors", file.to_string()))?);
        }
        let files: Result<Vec<_>, _> = names.iter().map(|name| TensorFile::open(&dir.join(name))).collect();
        let weights = Self::from_files(dir, files?)?;
        let shards: Vec<&str> = names.into_iter().collect();
        for (tensor, file) in listed {
            let found = weights.place.get(tensor).map(|i| shards[*i]);
            if found != file.as_str() && !tensor.ends_with(IGNORED_SUFFIX) {
                let got = format!("`{}` in {}", tensor.escape_debug(), found.unwrap_or("no shard"));
                return Err(wrong(&format!("the shard that has the tensor, not {file}"), got));
            }
        }
        if let Some(extra) = weights.place.keys().find(|name| !listed.contains_key(*name)) {
            return Err(wrong("every tensor of the shards", format!("no entry for `{extra}`")));
        }
        Ok(weights)
    }

    /// Checks that the files hold the tensors of the architecture and no others.
    fn expect_exactly(&self, map: &[LeafMap]) -> Result<(), ModelError> {
        let expected: BTreeSet<&str> = map.iter().flat_map(|leaf| &leaf.parts).map(|part| part.name.as_str()).collect();
        let missing: Vec<&str> = expected.iter().copied().filter(|name| !self.place.contains_key(*name)).collect();
        if !missing.is_empty() {
            let (path, n_missing, names) = (self.dir.clone(), missing.len(), shown(&missing));
            return Err(ModelError::TensorMissing { path, expected: expected.len(), n_missing, names });
        }
        let extra: Vec<&str> = self.place.keys().map(String::as_str).filter(|name| !expected.contains(name)).collect();
        if !extra.is_empty() {
            let (path, n_unexpected, names) = (self.dir.clone(), extra.len(), shown(&extra));
            return Err(ModelError::TensorUnexpected { path, n_unexpected, names });
        }
        Ok(())
    }

    fn read_leaf(&self, leaf: &LeafMap, options: LoadOptions) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        for part in &leaf.parts {
            let file = &self.files[self.place[&part.name]];
            let rows = file.read_weight(&part.name, &leaf.part_shape(part), options.allow_non_finite)?;
            if leaf.parts.len() == 1 {
                return Ok(rows);
            }
            values.extend_from_slice(&rows);
        }
        Ok(values)
    }
}

fn shown(names: &[&str]) -> String {
    let list: Vec<String> = names.iter().take(NAMES_SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(NAMES_SHOWN);
    if more == 0 { list.join(", ") } else { format!("{} and {more} more", list.join(", ")) }
}

/// What weights a folder has in formats that are not read.
fn other_weights(dir: &Path) -> String {
    let is_other =
        |name: &String| [".bin", ".pt", ".pth", ".gguf", ".safetensors"].iter().any(|end| name.ends_with(end));
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(is_other).collect();
    names.sort();
    if names.is_empty() {
        "neither".to_owned()
    } else {
        format!("only {}", shown(&names.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

/// A plain file name: no separators, nothing that leaves the folder.
fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    name.len() <= 255 && name.ends_with(".safetensors") && name.bytes().all(plain) && !name.starts_with('.')
}

/// Reads a small file whole; a larger one than `max_bytes` is refused before it is read.
///
/// # Errors
/// [`ModelError::Io`], or [`ModelError::InFile`] for a file that is too large or not a regular one.
pub fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::Io { action: "read", path: path.to_path_buf(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() || metadata.len() > max_bytes {
        let reason = format!("expected a file of at most {max_bytes} bytes, got {}", metadata.len());
        return Err(ModelError::Json { what: "the file", reason }.in_file(path));
    }
    std::fs::read(path).map_err(io)
}

/// Writes a file that must not exist yet.
///
/// # Errors
/// [`ModelError::OutputExists`] or [`ModelError::Io`].
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    use std::io::Write;
    let io = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => ModelError::OutputExists { path: path.to_path_buf() },
        _ => ModelError::Io { action: "write", path: path.to_path_buf(), source },
    };
    std::fs::File::options().write(true).create_new(true).open(path).and_then(|mut f| f.write_all(bytes)).map_err(io)
}

#[cfg(test)]
mod tests;
