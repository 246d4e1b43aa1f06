//! Model folders: `config.json` with one weights file, or with shards and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kernels_cubecl::{Fp8Rows, Leaf, LmBackend, Mxfp4, Packed, quantise_mxfp4};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config_json::{FloatType, pretty};
use super::json::{MAX_CONFIG_BYTES, parse};
use super::names::{LeafMap, leaf_from_values, leaf_map, leaf_values, split_leaf, transposed};
use super::nf4;
use super::stored::{PackedNames, Stored, decode, encode, packed_shapes, stored};
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
    /// In which form the weights of experts stay; packed ones are no parameters.
    pub packed_experts: PackedExperts,
}

/// In which form the weights of experts stay in memory. In a configuration: `false`, `true` or `"mxfp4"`, `"fp8"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum PackedExperts {
    /// In the backend's float type, as parameters.
    #[default]
    No,
    /// In MXFP4, which the checkpoint must have them in; nothing is rounded.
    Mxfp4,
    /// In FP8 by rows, rounded when they are read; what comes from MXFP4 mostly survives unchanged.
    Fp8,
}

/// [`PackedExperts`] in a file; what could be said before FP8 is still said so.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected false, true, \"mxfp4\" or \"fp8\"")]
enum Written {
    Flag(bool),
    Name(Name),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Mxfp4,
    Fp8,
}

impl From<Written> for PackedExperts {
    fn from(written: Written) -> Self {
        match written {
            Written::Flag(mxfp4) => mxfp4.into(),
            Written::Name(Name::Mxfp4) => Self::Mxfp4,
            Written::Name(Name::Fp8) => Self::Fp8,
        }
    }
}

impl From<bool> for PackedExperts {
    /// Whether they stay in MXFP4.
    fn from(mxfp4: bool) -> Self {
        if mxfp4 { Self::Mxfp4 } else { Self::No }
    }
}

impl From<PackedExperts> for Written {
    fn from(packed: PackedExperts) -> Self {
        match packed {
            PackedExperts::No => Written::Flag(false),
            PackedExperts::Mxfp4 => Written::Flag(true),
            PackedExperts::Fp8 => Written::Name(Name::Fp8),
        }
    }
}

impl std::str::FromStr for PackedExperts {
    type Err = ModelError;

    /// As on a command line: `no`, `mxfp4` or `fp8`.
    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "no" => Ok(Self::No),
            "mxfp4" => Ok(Self::Mxfp4),
            "fp8" => Ok(Self::Fp8),
            _ => Err(ModelError::PackedExperts { got: text.escape_debug().to_string() }),
        }
    }
}

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// Bytes of tensors per file; a single larger tensor still gets a file of its own.
    pub max_shard_bytes: u64,
    /// Element type on disk.
    pub float: FloatType,
    /// Write the weights of experts in MXFP4, rounded where they are not from there; nothing else changes.
    pub packed_experts: bool,
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
        Self::load_by(dir, options, device, &mut |leaf, values| leaf_from_values(leaf, values, device))
    }

    /// As [`Decoder::load_with`], each leaf made of its f32 values by `make`, in the order of [`Decoder::leaves`]; packed
    /// weights go to `device` as they are.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor.
    pub fn load_by(
        dir: &Path,
        options: LoadOptions,
        device: &B::Device,
        make: &mut dyn FnMut(&LeafMap, Vec<f32>) -> Leaf<B>,
    ) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir, options)?;
        let (mut leaves, mut packed) = (Vec::with_capacity(checkpoint.leaves.len()), Vec::new());
        for at in 0..checkpoint.leaves.len() {
            let leaf = &checkpoint.leaves[at].0;
            match checkpoint.read(at)? {
                Numbers::Packed { blocks, scales } => {
                    let matrix = Mxfp4::from_bytes(&blocks, &scales, [leaf.dims[0], leaf.dims[1]], device)?;
                    packed.push(Packed::Mxfp4(matrix));
                }
                Numbers::Floats(values) if leaf.n_experts.is_some() && options.packed_experts == PackedExperts::Fp8 => {
                    let matrix = Fp8Rows::quantise(&values, [leaf.dims[0], leaf.dims[1]], device)?;
                    packed.push(Packed::Fp8(matrix));
                }
                Numbers::Floats(values) => leaves.push(make(leaf, values)),
            }
        }
        Ok(Decoder::from_packed(&checkpoint.config, leaves, packed))
    }

    /// Writes `config.json` and f32 weights into an existing folder and returns the files; the caller commits.
    ///
    /// # Errors
    /// [`ModelError::AdapterAttached`], [`ModelError::OutputExists`], [`ModelError::Io`].
    pub fn save(&self, dir: &Path, max_shard_bytes: u64) -> Result<Vec<PathBuf>, ModelError> {
        self.save_with(dir, SaveOptions { max_shard_bytes, float: FloatType::F32, packed_experts: false })
    }

    /// Writes `config.json` and weights into an existing folder and returns the files; the caller commits.
    ///
    /// # Errors
    /// [`ModelError::AdapterAttached`], [`ModelError::OutputExists`], [`ModelError::Io`].
    pub fn save_with(&self, dir: &Path, options: SaveOptions) -> Result<Vec<PathBuf>, ModelError> {
        let n_adapters = self.leaves().iter().filter(|leaf| leaf.is_adapter()).count() / 2;
        if n_adapters > 0 {
            return Err(ModelError::AdapterAttached { n_adapters });
        }
        let map = leaf_map(&self.config);
        let packs = options.packed_experts && self.config.experts().is_some();
        let shards = plan_shards(&map, options)?;
        let config = if packs { self.config.to_hf_packed(options.float) } else { self.config.to_hf_as(options.float) };
        let config_path = dir.join(CONFIG_FILE);
        write_new(&config_path, config.as_bytes())?;
        let mut written = vec![config_path];
        let mut weight_map = BTreeMap::new();
        for (i, tensors) in shards.iter().enumerate() {
            let name = shard_name(i, shards.len());
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone())));
            let path = dir.join(name);
            self.write_shard(&path, &map, tensors, options)?;
            written.push(path);
        }
        if shards.len() > 1 {
            let total: u64 = shards.iter().flatten().map(|tensor| tensor.bytes).sum();
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
        planned: &[Planned],
        options: SaveOptions,
    ) -> Result<(), ModelError> {
        let leaves: BTreeMap<String, Leaf<B>> =
            self.leaves().into_iter().map(|named| (named.name, named.leaf)).collect();
        let packed: BTreeMap<String, &Packed<B>> = self.packed().into_iter().collect();
        let wanted: BTreeSet<&str> = planned.iter().map(|tensor| tensor.name.as_str()).collect();
        let used: BTreeSet<usize> = planned.iter().map(|tensor| tensor.leaf).collect();
        let mut floats = Vec::new();
        let mut bytes = Vec::new();
        for leaf in used.into_iter().map(|i| &map[i]) {
            let in_mxfp4 = options.packed_experts && leaf.n_experts.is_some();
            match (packed.get(&leaf.leaf), in_mxfp4) {
                (Some(Packed::Mxfp4(weight)), true) => bytes.push((leaf, <[_; 2]>::from(weight.to_bytes()))),
                (Some(weight), true) => {
                    bytes.push((leaf, encode(&leaf_values(Leaf::Matrix(weight.decode())), leaf, quantise_mxfp4)?));
                }
                (None, true) => {
                    bytes.push((leaf, encode(&leaf_values(leaves[&leaf.leaf].clone()), leaf, quantise_mxfp4)?))
                }
                (Some(Packed::Mxfp4(weight)), false) => {
                    let (blocks, scales) = weight.to_bytes();
                    floats.push((leaf, decode(&blocks, &scales, leaf)?));
                }
                (Some(weight), false) => floats.push((leaf, leaf_values(Leaf::Matrix(weight.decode())))),
                (None, false) => floats.push((leaf, leaf_values(leaves[&leaf.leaf].clone()))),
            }
        }
        let floats: Vec<_> = floats.iter().flat_map(|(leaf, values)| split_leaf(leaf, values)).collect();
        let mut tensors: Vec<_> =
            floats.iter().map(|(name, shape, values)| (name.clone(), shape.clone(), Values::Float(values))).collect();
        for (leaf, [blocks, scales]) in &bytes {
            let names = PackedNames::hugging_face(&leaf.leaf);
            let [of_blocks, of_scales] = packed_shapes(leaf)?;
            tensors.push((names.blocks, of_blocks, Values::Bytes(blocks)));
            tensors.push((names.scales, of_scales, Values::Bytes(scales)));
        }
        tensors.retain(|(name, ..)| wanted.contains(name.as_str()));
        write_tensors(path, tensors, options.float)
    }
}

/// A model folder whose leaves are read one at a time, each checked against the architecture before anything is read.
pub(crate) struct Checkpoint {
    /// The architecture.
    pub(crate) config: ModelConfig,
    /// Every leaf and how the files have it.
    leaves: Vec<(LeafMap, Stored)>,
    weights: Weights,
    options: LoadOptions,
}

/// The weights of one leaf.
pub(crate) enum Numbers {
    /// Row by row.
    Floats(Vec<f32>),
    /// In MXFP4, as the files have it: codes `[rows, in / 32, 16]`, scales `[rows, in / 32]`.
    Packed {
        /// The codes.
        blocks: Vec<u8>,
        /// The scales.
        scales: Vec<u8>,
    },
}

impl Checkpoint {
    /// Opens a folder. With [`PackedExperts::Mxfp4`] the weights of experts must be in it and come as they are.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor.
    pub(crate) fn open(dir: &Path, options: LoadOptions) -> Result<Self, ModelError> {
        let config = read_config(dir)?;
        if options.packed_experts != PackedExperts::No && config.experts().is_none() {
            let (expected, got) =
                ("a model with experts, which are to stay packed".to_owned(), "one without".to_owned());
            return Err(ModelError::ConfigUnsupported { key: "model_type".to_owned(), expected, got }.in_file(dir));
        }
        let weights = Weights::open(dir)?;
        let has = |name: &str| weights.place.contains_key(name);
        let leaves: Vec<(LeafMap, Stored)> = leaf_map(&config)
            .into_iter()
            .map(|leaf| {
                let form = stored(&leaf, options.packed_experts == PackedExperts::Mxfp4, &has);
                (leaf, form)
            })
            .collect();
        weights.expect_exactly(&leaves)?;
        Ok(Checkpoint { config, leaves, weights, options })
    }

    /// Every leaf, in the order of [`Decoder::leaves`].
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &LeafMap> {
        self.leaves.iter().map(|(leaf, _)| leaf)
    }

    /// From now on leaves that the files have in MXFP4 come as they are, and the others as floats.
    pub(crate) fn keep_packed(&mut self) {
        self.options.packed_experts = PackedExperts::Mxfp4;
    }

    /// Reads leaf number `at`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the tensor.
    pub(crate) fn read(&self, at: usize) -> Result<Numbers, ModelError> {
        let (leaf, form) = &self.leaves[at];
        match form {
            Stored::Packed(names) if self.options.packed_experts == PackedExperts::Mxfp4 => {
                let [blocks, scales] = self.weights.read_packed(leaf, names)?;
                Ok(Numbers::Packed { blocks, scales })
            }
            form => Ok(Numbers::Floats(self.weights.read_leaf(leaf, form, self.options)?)),
        }
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

/// Whether a model folder has weights of experts in MXFP4.
///
/// # Errors
/// [`ModelError`] naming the file and the key or tensor.
pub fn has_packed_experts(dir: &Path) -> Result<bool, ModelError> {
    let checkpoint = Checkpoint::open(dir, LoadOptions::default())?;
    Ok(checkpoint.leaves.iter().any(|(_, form)| matches!(form, Stored::Packed(_))))
}

/// A tensor to be written.
struct Planned {
    /// Number of its leaf.
    leaf: usize,
    name: String,
    bytes: u64,
}

/// Fills shards in the order of the leaves; a new one begins where the next tensor would not fit.
fn plan_shards(map: &[LeafMap], options: SaveOptions) -> Result<Vec<Vec<Planned>>, ModelError> {
    let mut shards: Vec<Vec<Planned>> = vec![Vec::new()];
    let mut filled = 0;
    for (leaf, of) in map.iter().enumerate() {
        for (name, bytes) in planned(of, options)? {
            if filled > 0 && filled + bytes > options.max_shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            shards.last_mut().expect("there is always a shard").push(Planned { leaf, name, bytes });
        }
    }
    Ok(shards)
}

/// Names and sizes of the tensors of a leaf.
fn planned(leaf: &LeafMap, options: SaveOptions) -> Result<Vec<(String, u64)>, ModelError> {
    let n = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    if options.packed_experts && leaf.n_experts.is_some() {
        let names = PackedNames::hugging_face(&leaf.leaf);
        let [blocks, scales] = packed_shapes(leaf)?;
        return Ok(vec![(names.blocks, n(&blocks)), (names.scales, n(&scales))]);
    }
    let part = |part: &super::names::Part| (part.name.clone(), n(&part.shape) * options.float.bytes() as u64);
    Ok(leaf.parts.iter().map(part).collect())
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
    fn expect_exactly(&self, map: &[(LeafMap, Stored)]) -> Result<(), ModelError> {
        let mut expected: BTreeSet<&str> = map.iter().flat_map(|(_, form)| form.names()).collect();
        let has = |name: &str| self.place.contains_key(name);
        let beside: Vec<String> = expected.iter().flat_map(|name| nf4::companions(name, &has)).collect();
        expected.extend(beside.iter().map(String::as_str));
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

    fn read_leaf(&self, leaf: &LeafMap, form: &Stored, options: LoadOptions) -> Result<Vec<f32>, ModelError> {
        match form {
            Stored::Parts(parts) => {
                let mut values = Vec::new();
                for part in parts {
                    let rows = self.read_floats(&part.name, &part.shape, options)?;
                    if parts.len() == 1 {
                        values = rows;
                    } else {
                        values.extend_from_slice(&rows);
                    }
                }
                Ok(match leaf.n_experts {
                    Some(n) => transposed(&values, n, leaf.dims[1]),
                    None => values,
                })
            }
            Stored::Whole { name, shape } => self.read_floats(name, shape, options),
            Stored::Packed(names) => {
                let [blocks, scales] = self.read_packed(leaf, names)?;
                let values = decode(&blocks, &scales, leaf)?;
                self.file(&names.scales).expect_finite(&names.scales, &values, options.allow_non_finite)?;
                Ok(values)
            }
        }
    }

    fn file(&self, name: &str) -> &TensorFile {
        &self.files[self.place[name]]
    }

    fn read_floats(&self, name: &str, shape: &[usize], options: LoadOptions) -> Result<Vec<f32>, ModelError> {
        let file = self.file(name);
        let has = |name: &str| file.contains(name);
        if nf4::companions(name, &has).is_empty() {
            return file.read_weight(name, shape, options.allow_non_finite);
        }
        let values = nf4::read(file, name, shape)?;
        file.expect_finite(name, &values, options.allow_non_finite)?;
        Ok(values)
    }

    /// Codes and scales of packed experts.
    fn read_packed(&self, leaf: &LeafMap, names: &PackedNames) -> Result<[Vec<u8>; 2], ModelError> {
        let [of_blocks, of_scales] = packed_shapes(leaf)?;
        let blocks = self.file(&names.blocks).read_packed(&names.blocks, &of_blocks)?;
        Ok([blocks, self.file(&names.scales).read_packed(&names.scales, &of_scales)?])
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
