//! An adapter folder into its base's folder: the merge, its proof on held-out rows, and `merge.json`, which says what was
//! merged into what, by hashes.

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use half::bf16;
use kernels_cubecl::{Leaf, LmBackend, Packed, linear_cross_entropy};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MergeBounds, MergeReport, PeftAdapter, Repacked, merge_check, weights_hash};
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::hf::folder::{read_limited, write_new};
use crate::hf::names::leaf_values;
use crate::hf::{FloatType, LoadOptions, SaveOptions, generation_config, has_packed_experts, json};
use crate::rows::Rows;

/// The report's file in the model folder.
pub const MERGE_FILE: &str = "merge.json";
const REPORT_VERSION: u32 = 1;
/// Largest report that is read.
const MAX_REPORT_BYTES: u64 = 16 << 20;
/// Label of a position that predicts nothing.
const IGNORED: i32 = -100;

/// The folders of a merge.
#[derive(Clone, Copy, Debug)]
pub struct MergeInput<'a> {
    /// Base model.
    pub model: &'a Path,
    /// Adapter in PEFT's layout.
    pub adapter: &'a Path,
    /// Whether an adapter may be one that does not say which base it was trained on.
    pub unrecorded_base: bool,
}

/// Rows that base, adapter and merged model are compared on.
#[derive(Clone, Debug, PartialEq)]
pub struct Heldout {
    /// Rows with the label that each position predicts, -100 for none.
    pub rows: Vec<(Rows, Vec<i32>)>,
    /// What messages call them.
    pub name: String,
    /// Hash over them.
    pub blake3: String,
}

/// How a merged model is kept and how near it must be to its adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeSettings {
    /// Element type of the weights.
    pub float: FloatType,
    /// Bounds before experts are rounded.
    pub bounds: MergeBounds,
    /// Rounds merged experts to MXFP4, within this mean KL divergence from the adapter.
    pub max_packed_kl: Option<f64>,
    /// Bytes of tensors per weights file.
    pub max_shard_bytes: u64,
}

/// What the held-out rows say of the models, mean loss of a labelled token in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeLosses {
    /// The base.
    pub base: f64,
    /// The base with the adapter.
    pub adapter: f64,
    /// The merged model.
    pub merged: f64,
    /// The merged model with experts in MXFP4.
    pub packed: Option<f64>,
}

/// A merged model that was proven, and what there is to say of it.
pub struct MergedModel<B: LmBackend> {
    model: Decoder<B>,
    settings: MergeSettings,
    /// `merge.json` without the hash of the weights that are not written yet.
    report: Value,
    /// Weights that got an update.
    pub n_updates: usize,
    /// Losses.
    pub losses: MergeLosses,
    /// Merged model against adapter.
    pub agrees: MergeReport,
    /// Merged model with experts in MXFP4 against adapter.
    pub packed: Option<MergeReport>,
    /// Base against adapter: what the adapter does at all.
    pub without: MergeReport,
}

impl<B: LmBackend> MergedModel<B> {
    /// Loads base and adapter, merges, and compares on the held-out rows.
    ///
    /// # Errors
    /// An adapter of another base, or of none where that is not allowed; held-out rows without a label or beyond the
    /// vocabulary; an update that was not merged; [`ModelError::MergeDrift`].
    pub fn new(
        from: MergeInput<'_>,
        heldout: &Heldout,
        settings: MergeSettings,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let options = LoadOptions { packed_experts: has_packed_experts(from.model)?.into(), ..LoadOptions::default() };
        let base = Decoder::<B>::load_with(from.model, options, device)?;
        for (rows, _) in &heldout.rows {
            rows.check_vocab(&base.config)?;
        }
        let base_loss = loss(&base, heldout, device);
        if !base_loss.is_finite() {
            let expected = "rows with labelled tokens that the model can read".to_owned();
            let got = format!("a loss of {base_loss} for the base on {}", heldout.name);
            return Err(ModelError::Rows { what: "held-out rows of a merge", expected, got });
        }
        let base_hash = weights_hash(from.model)?;
        let mut adapted = base.clone();
        let adapter = adapted.load_peft(from.adapter, &base_hash)?;
        if adapter.base_hash.is_none() && !from.unrecorded_base {
            let (path, model) = (from.adapter.to_path_buf(), from.model.to_path_buf());
            return Err(ModelError::AdapterUnrecorded { path, model });
        }
        let n_attached = adapted.leaves().iter().filter(|leaf| leaf.is_adapter()).count() / 2;
        let mut merged = adapted.clone();
        let n_updates = merged.merge()?;
        if n_updates != n_attached {
            let (expected, got) = (format!("{n_attached} updates merged"), n_updates.to_string());
            return Err(ModelError::LoraInvalid { key: "targets", expected, got });
        }
        if settings.float == FloatType::Bf16 {
            merged = rounded(&merged, device);
        }
        let rows: Vec<Rows> = heldout.rows.iter().map(|(rows, _)| rows.clone()).collect();
        let agrees = merge_check(&adapted, &merged, &rows, &settings.bounds)?;
        let without = merge_check(&adapted, &base, &rows, &MergeBounds::packed(f64::MAX))?;
        let mut losses = MergeLosses {
            base: base_loss,
            adapter: loss(&adapted, heldout, device),
            merged: loss(&merged, heldout, device),
            packed: None,
        };
        let mut packs = None;
        if let Some(max_kl) = settings.max_packed_kl {
            let told = merged.pack_experts(&base)?;
            let bounds = MergeBounds::packed(max_kl);
            packs = Some((told, merge_check(&adapted, &merged, &rows, &bounds)?, bounds));
            losses.packed = Some(loss(&merged, heldout, device));
        }
        let n_rows: usize = rows.iter().map(|rows| rows.rows).sum();
        let mut told = adapter_json(&adapter, adapted.n_adapter_params());
        told["blake3"] = adapter_hash(from.adapter)?.into();
        let report = json!({
            "version": REPORT_VERSION,
            "base_weights_hash": base_hash,
            "base_recorded_by_adapter": adapter.base_hash.is_some(),
            "adapter": told,
            "n_updates": n_updates,
            "dtype": settings.float.name(),
            "heldout": {"blake3": heldout.blake3, "rows": n_rows, "tokens": agrees.n_tokens},
            "loss": {"base": losses.base, "adapter": losses.adapter, "merged": losses.merged, "merged_mxfp4": losses.packed},
            "base": agreement(&without, &MergeBounds::packed(f64::MAX)),
            "merged": agreement(&agrees, &settings.bounds),
            "merged_mxfp4": packs.as_ref().map(|(_, agrees, bounds)| agreement(agrees, bounds)),
            "repacked": packs.iter().flat_map(|(told, ..)| told).map(repacked).collect::<Value>(),
        });
        let packed = packs.map(|(_, agrees, _)| agrees);
        Ok(Self { model: merged, settings, report, n_updates, losses, agrees, packed, without })
    }

    /// Writes the model and `merge.json` into an existing folder, which the caller commits.
    ///
    /// # Errors
    /// When a file exists or cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), ModelError> {
        let MergeSettings { max_shard_bytes, float, max_packed_kl, .. } = self.settings;
        self.model.save_with(dir, SaveOptions { max_shard_bytes, float, packed_experts: max_packed_kl.is_some() })?;
        write_new(&dir.join("generation_config.json"), generation_config(&self.model.config).as_bytes())?;
        let mut report = self.report.clone();
        report["weights_hash"] = weights_hash(dir)?.into();
        write_new(&dir.join(MERGE_FILE), format!("{report:#}\n").as_bytes())
    }
}

/// What `merge.json` says of where a merged model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeLineage {
    /// [`weights_hash`] of the base.
    pub base_weights_hash: String,
    /// [`adapter_hash`] of the adapter.
    pub adapter_hash: String,
    /// [`weights_hash`] of the merged model.
    pub weights_hash: String,
}

/// The keys of `merge.json` that are read again.
#[derive(Deserialize)]
struct LineageFile {
    version: u32,
    base_weights_hash: String,
    adapter: AdapterFile,
    weights_hash: String,
}

#[derive(Deserialize)]
struct AdapterFile {
    blake3: String,
}

impl MergeLineage {
    /// Reads the lineage of a merged model; `None` when the folder has no `merge.json`.
    ///
    /// # Errors
    /// When the file is broken or of another version.
    pub fn read(dir: &Path) -> Result<Option<Self>, ModelError> {
        let path = dir.join(MERGE_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_REPORT_BYTES)?;
        let wrong = |got: String| ModelError::MergeFile { path: path.clone(), got };
        let value = json::parse(MERGE_FILE, &bytes, MAX_REPORT_BYTES as usize).map_err(|error| error.in_file(&path))?;
        let file: LineageFile = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        if file.version != REPORT_VERSION {
            return Err(wrong(format!("version {}", file.version)));
        }
        let LineageFile { base_weights_hash, adapter, weights_hash, .. } = file;
        Ok(Some(Self { base_weights_hash, adapter_hash: adapter.blake3, weights_hash }))
    }
}

/// BLAKE3 (hex) over configuration and weights of an adapter folder.
///
/// # Errors
/// When a file is missing or cannot be read.
pub fn adapter_hash(dir: &Path) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        hasher.update(hash_file(&dir.join(name))?.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// BLAKE3 (hex) of a file.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    let hashed = std::fs::File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    hashed.map_err(|source| ModelError::Io { action: "read", path: PathBuf::from(path), source })?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Every weight as it is in bf16.
fn rounded<B: LmBackend>(model: &Decoder<B>, device: &B::Device) -> Decoder<B> {
    let round = |x: f32| bf16::from_f32(x).to_f32();
    model.map_backend(
        &mut |named| {
            let values: Vec<f32> = leaf_values(named.leaf.clone()).into_iter().map(round).collect();
            Leaf::from_data(TensorData::new(values, named.leaf.dims()), device)
        },
        &mut Packed::clone,
    )
}

/// Mean over the labelled tokens.
fn loss<B: LmBackend>(model: &Decoder<B>, heldout: &Heldout, device: &B::Device) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    for (rows, targets) in &heldout.rows {
        let hidden = model.hidden(&rows.to_input(&model.config, device), false);
        let (loss, n_labelled) = loss_sum(hidden, model.head(), targets, device);
        sum += loss.into_data().convert::<f64>().iter::<f64>().sum::<f64>();
        n += n_labelled;
    }
    sum / n as f64
}

/// Loss summed over the positions that predict a label, and how many those are.
///
/// # Shapes
/// `hidden` is `[b, t, d]`, `head` `[v, d]`, `targets` has `b · t` labels, -100 where there is none.
pub fn loss_sum<B: LmBackend>(
    hidden: Tensor<B, 3>,
    head: Tensor<B, 2>,
    targets: &[i32],
    device: &B::Device,
) -> (Tensor<B, 1>, usize) {
    let n_labelled = targets.iter().filter(|target| **target != IGNORED).count();
    let [b, t, d] = hidden.dims();
    let m = b * t;
    let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(targets.to_vec(), [m]), device);
    let weights = Tensor::<B, 1>::ones([m], device);
    let sum = linear_cross_entropy(hidden.reshape([m, d]), head, targets, weights, 0.0).loss;
    (sum, n_labelled)
}

fn adapter_json(adapter: &PeftAdapter, n_params: u64) -> Value {
    let config = &adapter.config;
    json!({"r": config.r, "alpha": config.alpha, "rslora": config.rslora, "targets": config.targets, "parameters": n_params})
}

fn agreement(found: &MergeReport, bounds: &MergeBounds) -> Value {
    // A bound that binds nothing is none.
    let bound = |x: f64| if x < f64::MAX { json!(x) } else { Value::Null };
    json!({
        "max_abs_logit": found.max_abs_logit, "mean_kl": found.mean_kl, "top1_agreement": found.top1_agreement,
        "bounds": {"max_abs_logit": bound(bounds.max_abs_logit), "mean_kl": bound(bounds.mean_kl), "top1_agreement": bounds.top1_agreement},
    })
}

fn repacked(told: &Repacked) -> Value {
    json!({
        "name": told.name, "relative_error": told.relative_error, "relative_update": told.relative_update,
        "error_over_update": told.error_over_update, "update_kept": told.update_kept,
    })
}
