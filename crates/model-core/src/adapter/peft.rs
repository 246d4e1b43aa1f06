//! Adapter folders as the peft library reads and writes them, and which base weights they belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use kernels_cubecl::{Leaf, LmBackend};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ALL_LINEAR, Attached, LoraConfig, PeftTensor, is_expert, short_names};
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::hf::folder::{read_limited, write_new};
use crate::hf::tensor_file::Values;
use crate::hf::{FloatType, TensorFile, json, names, write_tensors};

/// peft's configuration file.
const CONFIG_FILE: &str = "adapter_config.json";
/// peft's weights file.
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Our own file beside them, which peft does not look at.
const LINEAGE_FILE: &str = "firebrick.json";
/// Version of [`Lineage`].
const LINEAGE_VERSION: u32 = 1;
/// Largest JSON file that is read.
const MAX_JSON_BYTES: u64 = 1 << 20;
/// How many names an error lists.
const N_NAMES: usize = 5;

/// Keys of `adapter_config.json` whose values are used.
const USED_KEYS: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "target_parameters",
    "rank_pattern",
    "bias",
    "init_lora_weights",
];
/// Keys of `adapter_config.json` that change nothing in what the adapter computes.
const HARMLESS_KEYS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
];

/// What an adapter folder says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    /// The adapter's settings.
    pub config: LoraConfig,
    /// [`super::weights_hash`] of the base model it was trained on; `None` when another program made it.
    pub base_hash: Option<String>,
}

/// The file that ties an adapter to its base weights.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lineage {
    version: u32,
    base_weights_hash: String,
}

impl PeftAdapter {
    /// Reads the configuration and the lineage of an adapter folder, not its weights.
    ///
    /// # Errors
    /// When a file is missing or broken, or the configuration asks for something that is not computed here.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG_FILE);
        let text = read_limited(&path, MAX_JSON_BYTES)?;
        let value = json::parse(CONFIG_FILE, &text, MAX_JSON_BYTES as usize).map_err(|error| error.in_file(&path))?;
        let config = parse_config(&value, &path)?;
        let path = dir.join(LINEAGE_FILE);
        let base_hash = if path.exists() { Some(read_lineage(&path)?) } else { None };
        Ok(Self { config, base_hash })
    }
}

impl<B: LmBackend> Decoder<B> {
    /// Writes the attached adapter as a PEFT folder into an existing folder and returns the files; the caller commits.
    ///
    /// `base_hash` is [`super::weights_hash`] of the base model; it goes into a file of our own.
    ///
    /// # Errors
    /// When no adapter is attached, `config` is not the one it was attached with, or a file exists or cannot be written.
    pub fn save_peft(&self, dir: &Path, config: &LoraConfig, base_hash: &str) -> Result<Vec<PathBuf>, ModelError> {
        let targets = self.check_attached(config)?;
        let tensors = self.peft_tensors().into_iter();
        let tensors: Vec<_> = tensors.map(|(leaf, at)| (at.to_file(names::leaf_values(leaf.leaf)), at)).collect();
        let tensors =
            tensors.iter().map(|(values, at)| (at.name.clone(), at.shape.clone(), Values::Float(values))).collect();
        let paths = [WEIGHTS_FILE, CONFIG_FILE, LINEAGE_FILE].map(|file| dir.join(file));
        write_tensors(&paths[0], tensors, FloatType::F32)?;
        write_new(&paths[1], text(&config_json(config, targets)).as_bytes())?;
        let lineage = json!({ "version": LINEAGE_VERSION, "base_weights_hash": base_hash });
        write_new(&paths[2], text(&lineage).as_bytes())?;
        Ok(paths.into())
    }

    /// Attaches the adapter of a PEFT folder; `base_hash` is [`super::weights_hash`] of this model.
    ///
    /// An adapter made by another program records no base, so [`PeftAdapter::base_hash`] is `None` and it is the caller
    /// who decides.
    ///
    /// # Errors
    /// [`ModelError::AdapterBase`] when the adapter records another base; otherwise when a file is missing or broken, a
    /// tensor is missing, left over, not finite or of another shape, or an adapter is attached already. The model is then
    /// unchanged.
    pub fn load_peft(&mut self, dir: &Path, base_hash: &str) -> Result<PeftAdapter, ModelError> {
        let adapter = PeftAdapter::read(dir)?;
        if let Some(recorded) = adapter.base_hash.as_ref().filter(|recorded| *recorded != base_hash) {
            let (path, recorded, actual) = (dir.to_path_buf(), recorded.clone(), base_hash.to_owned());
            return Err(ModelError::AdapterBase { path, recorded, actual });
        }
        let mut adapted = self.clone();
        adapted.attach_lora(&self.as_peft_means(&adapter.config), 0)?;
        let file = TensorFile::open(&dir.join(WEIGHTS_FILE))?;
        let places: BTreeMap<String, PeftTensor> =
            adapted.peft_tensors().into_iter().map(|(leaf, at)| (leaf.name, at)).collect();
        expect_exactly(&file, places.values().map(|at| at.name.clone()).collect())?;
        let swapped = places.values().any(|at| at.is_swapped_in(&file));
        let leaves = adapted.leaves();
        let device = self.embedding.device();
        let filled: Result<Vec<Leaf<B>>, ModelError> = leaves
            .into_iter()
            .map(|leaf| match places.get(&leaf.name) {
                None => Ok(leaf.leaf),
                Some(at) => {
                    let dims = leaf.leaf.dims();
                    let values = at.read(&file, swapped)?;
                    Ok(Leaf::from_data(TensorData::new(values, dims), &device))
                }
            })
            .collect();
        *self = adapted.with_leaves(filled?);
        Ok(adapter)
    }

    /// The settings of a file as they are meant here, where "all-linear" includes experts.
    fn as_peft_means(&self, config: &LoraConfig) -> LoraConfig {
        let named = config.targets.iter().filter(|target| *target != ALL_LINEAR);
        if self.config.experts().is_none() || named.clone().count() == config.targets.len() {
            return config.clone();
        }
        let modules: Vec<String> = self.projection_names().into_iter().filter(|name| !is_expert(name)).collect();
        LoraConfig { targets: short_names(&modules).into_iter().chain(named.cloned()).collect(), ..config.clone() }
    }

    /// Checks that `config` describes the attached adapter; returns its targets as a PEFT file lists them.
    fn check_attached(&self, config: &LoraConfig) -> Result<PeftTargets, ModelError> {
        config.check()?;
        let loras = self.loras();
        if loras.is_empty() {
            return Err(ModelError::NoAdapter { action: "saving the adapter" });
        }
        let names = self.projection_names();
        let places = config.choose(&names)?;
        let ranks = config.ranks(&places, &names)?;
        let chosen: Vec<&String> = places.into_iter().map(|at| &names[at]).collect();
        let differs = |key, expected: String, got: String| Err(ModelError::LoraInvalid { key, expected, got });
        if !loras.iter().map(|lora| &lora.name).eq(chosen.iter().copied()) {
            return differs(
                "targets",
                format!("those of the {} attached adapters", loras.len()),
                chosen.len().to_string(),
            );
        }
        for (Attached { name, r, scale }, rank) in std::iter::zip(&loras, ranks) {
            if *r != rank {
                return differs("r", format!("{r}, the rank attached at {name}"), rank.to_string());
            }
            if *scale != config.scale(rank) {
                return differs("alpha", format!("a scale of {scale}, as at {name}"), config.scale(rank).to_string());
            }
        }
        let of_experts = |target: &String| names.iter().any(|name| is_expert(name) && super::matches(target, name));
        let (parameters, modules) = config.expanded_targets(&names).into_iter().partition(of_experts);
        Ok(PeftTargets { modules, parameters })
    }
}

/// Targets as peft tells them apart.
struct PeftTargets {
    modules: Vec<String>,
    parameters: Vec<String>,
}

/// The configuration as peft writes it, less the keys whose absence means the same.
fn config_json(config: &LoraConfig, targets: PeftTargets) -> Value {
    // peft declares the numerator an integer; most of them are.
    let alpha = if config.alpha.fract() == 0.0 { json!(config.alpha as i64) } else { decimal(config.alpha) };
    let mut value = json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": decimal(config.dropout),
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": targets.modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.rslora,
    });
    if !config.rank_pattern.is_empty() {
        value["rank_pattern"] = json!(config.rank_pattern);
    }
    if !targets.parameters.is_empty() {
        value["target_parameters"] = json!(targets.parameters);
    }
    value
}

/// The shortest decimal of the number, not that of its f64 neighbour.
fn decimal(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().expect("a printed number parses"))
}

fn parse_config(value: &Value, path: &Path) -> Result<LoraConfig, ModelError> {
    let wrong = |expected: &str, key: &str, got: Option<&Value>| {
        let got = got.map_or("none".to_owned(), Value::to_string);
        ModelError::AdapterFile { path: path.to_path_buf(), expected: format!("`{key}` to be {expected}"), got }
    };
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let get = |key: &str| object.get(key).filter(|value| !value.is_null());
    if get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(wrong("\"LORA\"", "peft_type", get("peft_type")));
    }
    if get("bias").is_some_and(|bias| bias != "none") {
        return Err(wrong("\"none\"", "bias", get("bias")));
    }
    // Other ways to begin change the base weights too, so the saved A and B are not the whole update.
    if get("init_lora_weights").is_some_and(|init| !init.is_boolean() && init != "gaussian") {
        return Err(wrong("true, false or \"gaussian\"", "init_lora_weights", get("init_lora_weights")));
    }
    let ignored = |key: &str| USED_KEYS.contains(&key) || HARMLESS_KEYS.contains(&key);
    if let Some((key, value)) = object.iter().find(|(key, value)| !ignored(key) && !is_inert(value)) {
        return Err(wrong("absent, since it is not implemented here", key, Some(value)));
    }
    let number = |key: &str, default: f64| match get(key) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| wrong("a number", key, Some(value))),
    };
    let r = get("r").and_then(Value::as_u64).filter(|r| *r > 0 && *r <= 1 << 20);
    let config = LoraConfig {
        r: r.ok_or_else(|| wrong("a rank of at least 1", "r", get("r")))? as usize,
        alpha: number("lora_alpha", f64::NAN)? as f32,
        dropout: number("lora_dropout", 0.0)? as f32,
        rslora: get("use_rslora") == Some(&Value::Bool(true)),
        targets: [
            targets(get("target_modules"), get("target_parameters").is_some())
                .ok_or_else(|| wrong("a list of names or \"all-linear\"", "target_modules", get("target_modules")))?,
            targets(get("target_parameters"), true)
                .ok_or_else(|| wrong("a list of names", "target_parameters", get("target_parameters")))?,
        ]
        .concat(),
        rank_pattern: rank_pattern(get("rank_pattern")).ok_or_else(|| {
            wrong("an object of names and ranks, no regular expressions", "rank_pattern", get("rank_pattern"))
        })?,
    };
    config.check().map_err(|error| error.in_file(path))?;
    Ok(config)
}

/// A single string is a regular expression to peft, except for this one.
fn targets(value: Option<&Value>, optional: bool) -> Option<Vec<String>> {
    let Some(value) = value else { return optional.then(Vec::new) };
    match value {
        Value::String(text) if text == ALL_LINEAR => Some(vec![text.clone()]),
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// peft takes the names for regular expressions over the end of the full name; plain names mean the same here.
fn rank_pattern(value: Option<&Value>) -> Option<BTreeMap<String, usize>> {
    let Some(value) = value else { return Some(BTreeMap::new()) };
    let plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
    let rank = |r: &Value| r.as_u64().filter(|r| (1..=1 << 20).contains(r)).map(|r| r as usize);
    let entry = |(name, r): (&String, &Value)| Some((name.clone(), rank(r).filter(|_| plain(name))?));
    value.as_object()?.iter().map(entry).collect()
}

/// Whether a value switches nothing on.
fn is_inert(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

fn read_lineage(path: &Path) -> Result<String, ModelError> {
    let text = read_limited(path, MAX_JSON_BYTES)?;
    let lineage: Lineage = serde_json::from_slice(&text)
        .map_err(|error| ModelError::Json { what: LINEAGE_FILE, reason: error.to_string() }.in_file(path))?;
    if lineage.version != LINEAGE_VERSION {
        let (expected, got) = (format!("version {LINEAGE_VERSION}"), format!("version {}", lineage.version));
        return Err(ModelError::AdapterFile { path: path.to_path_buf(), expected, got });
    }
    Ok(lineage.base_weights_hash)
}

/// The file has these tensors and no others.
fn expect_exactly(file: &TensorFile, expected: BTreeSet<String>) -> Result<(), ModelError> {
    let path = file.path().to_path_buf();
    let missing: Vec<&str> = expected.iter().map(String::as_str).filter(|name| !file.contains(name)).collect();
    if !missing.is_empty() {
        let (n_missing, names) = (missing.len(), missing[..missing.len().min(N_NAMES)].join(", "));
        return Err(ModelError::TensorMissing { path, expected: expected.len(), n_missing, names });
    }
    let extra: Vec<&str> = file.names().filter(|name| !expected.contains(*name)).collect();
    if !extra.is_empty() {
        let (n_unexpected, names) = (extra.len(), extra[..extra.len().min(N_NAMES)].join(", "));
        return Err(ModelError::TensorUnexpected { path, n_unexpected, names });
    }
    Ok(())
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
