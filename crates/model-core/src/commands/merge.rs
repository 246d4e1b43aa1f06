//! `model-core merge`: an adapter into its base, with the proof on held-out rows and a report of what the rounding cost.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use burn::tensor::TensorData;
use half::bf16;
use kernels_cubecl::{DeviceChoice, Leaf, LmBackend, Packed, Precision, on_device};
use model_core::adapter::{MergeBounds, MergeReport, PeftAdapter, Repacked, merge_check, weights_hash};
use model_core::commit::write_folder;
use model_core::hf::folder::write_new;
use model_core::hf::names::leaf_values;
use model_core::hf::{FloatType, LoadOptions, SaveOptions, generation_config, has_packed_experts};
use model_core::{Decoder, ModelError, Rows};
use serde_json::{Value, json};

use super::batch::{Batch, loss_sum};
use super::export::{Dtype, copy_companions};
use super::init::DEFAULT_SHARD_BYTES;

/// The report's file in the model folder.
const REPORT_FILE: &str = "merge.json";
const REPORT_VERSION: u32 = 1;

/// Arguments of `merge`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the base model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter folder; the base it was trained on must be this one.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder to make: the model and merge.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Held-out rows that adapter and merged model must agree on, in the form that `forward` reads; without labels every token is one.
    #[arg(long, value_name = "FILE")]
    heldout: PathBuf,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Round the merged experts to MXFP4; those without an update stay as they are.
    #[arg(long)]
    packed_experts: bool,
    /// Largest mean KL divergence from the adapter, in nats, that rounding to MXFP4 may cost.
    #[arg(long, value_name = "NATS", default_value_t = 0.05)]
    max_packed_kl: f64,
    /// Accept an adapter of another program, which does not say which base it was trained on.
    #[arg(long)]
    unrecorded_base: bool,
    /// Bytes of tensors per weights file.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    max_shard_bytes: u64,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// f32 or bf16; bf16 needs a CUDA device.
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    on_device!(arguments.device.resolve()?.with(arguments.precision)?, B, device => run_on::<B>(arguments, &device))?
}

/// What the held-out rows say of the models, mean loss of a labelled token in nats.
struct Losses {
    base: f64,
    adapter: f64,
    merged: f64,
    packed: Option<f64>,
}

fn run_on<B: LmBackend>(arguments: &Arguments, device: &B::Device) -> Result<()> {
    let heldout = Batch::read(&arguments.heldout)?;
    let options =
        LoadOptions { packed_experts: has_packed_experts(&arguments.model)?.into(), ..LoadOptions::default() };
    let base = Decoder::<B>::load_with(&arguments.model, options, device)?;
    ensure!(
        !arguments.packed_experts || base.config.experts().is_some(),
        "--packed-experts: expected a model with experts, got one without; leave the flag out"
    );
    heldout.check(&base.config)?;
    let base_loss = loss(&base, &heldout, device);
    ensure!(
        base_loss.is_finite(),
        "{}: expected rows with labelled tokens for a held-out loss, got {} for the base; give rows that the model can read",
        arguments.heldout.display(),
        base_loss
    );
    let base_hash = weights_hash(&arguments.model)?;
    let mut adapted = base.clone();
    let adapter = adapted.load_peft(&arguments.adapter, &base_hash)?;
    ensure!(
        adapter.base_hash.is_some() || arguments.unrecorded_base,
        "{}: expected a record of the base model's hash, got none; give --unrecorded-base if you know that it is {}",
        arguments.adapter.display(),
        arguments.model.display()
    );
    let n_attached = adapted.leaves().iter().filter(|leaf| leaf.is_adapter()).count() / 2;
    let mut merged = adapted.clone();
    let n_updates = merged.merge()?;
    ensure!(n_updates == n_attached, "merge: expected {n_attached} updates, got {n_updates}; do not use the adapter");
    let float = arguments.dtype.float();
    if float == FloatType::Bf16 {
        merged = rounded(&merged, device);
    }
    let rows: Vec<Rows> = heldout.split().into_iter().map(|batch| batch.rows).collect();
    let bounds = match (float, arguments.precision) {
        (FloatType::F32, Precision::F32) => MergeBounds::F32,
        _ => MergeBounds::BF16,
    };
    let agrees = merge_check(&adapted, &merged, &rows, &bounds)?;
    let without = merge_check(&adapted, &base, &rows, &MergeBounds::packed(f64::MAX))?;
    let mut losses = Losses {
        base: base_loss,
        adapter: loss(&adapted, &heldout, device),
        merged: loss(&merged, &heldout, device),
        packed: None,
    };
    let mut packs = None;
    if arguments.packed_experts {
        let told = merged.pack_experts(&base)?;
        let bounds = MergeBounds::packed(arguments.max_packed_kl);
        packs = Some((told, merge_check(&adapted, &merged, &rows, &bounds)?, bounds));
        losses.packed = Some(loss(&merged, &heldout, device));
    }
    let mut report = json!({
        "version": REPORT_VERSION,
        "base_weights_hash": base_hash,
        "base_recorded_by_adapter": adapter.base_hash.is_some(),
        "adapter": adapter_json(&adapter, adapted.n_adapter_params()),
        "n_updates": n_updates,
        "dtype": float.name(),
        "heldout": {"blake3": hash(&arguments.heldout)?, "rows": heldout.rows.rows, "tokens": agrees.n_tokens},
        "loss": {"base": losses.base, "adapter": losses.adapter, "merged": losses.merged, "merged_mxfp4": losses.packed},
        "base": agreement(&without, &MergeBounds::packed(f64::MAX)),
        "merged": agreement(&agrees, &bounds),
        "merged_mxfp4": packs.as_ref().map(|(_, agrees, bounds)| agreement(agrees, bounds)),
        "repacked": packs.iter().flat_map(|(told, ..)| told).map(repacked).collect::<Value>(),
    });
    let save =
        SaveOptions { max_shard_bytes: arguments.max_shard_bytes, float, packed_experts: arguments.packed_experts };
    write_folder(&arguments.out, |dir| {
        merged.save_with(dir, save)?;
        copy_companions(&arguments.model, dir)?;
        write_new(&dir.join("generation_config.json"), generation_config(&merged.config).as_bytes())?;
        report["weights_hash"] = weights_hash(dir)?.into();
        write_new(&dir.join(REPORT_FILE), format!("{report:#}\n").as_bytes())
    })?;
    tell(&arguments.out, n_updates, &losses, &agrees, packs.as_ref().map(|(_, agrees, _)| agrees));
    if packs.is_some_and(|(_, packed, _)| packed.mean_kl >= without.mean_kl) {
        eprintln!(
            "warning: the base is as near to the adapter (mean KL {:.2e}) as the merged model in MXFP4, whose steps are larger than the update; keep the adapter, or merge without --packed-experts",
            without.mean_kl
        );
    }
    Ok(())
}

fn tell(out: &Path, n_updates: usize, losses: &Losses, agrees: &MergeReport, packed: Option<&MergeReport>) {
    println!(
        "{}: {n_updates} updates merged; loss {:.4} base, {:.4} adapter, {:.4} merged (mean KL {:.2e} over {} tokens)",
        out.display(),
        losses.base,
        losses.adapter,
        losses.merged,
        agrees.mean_kl,
        agrees.n_tokens
    );
    if let (Some(loss), Some(packed)) = (losses.packed, packed) {
        println!("experts in MXFP4: loss {loss:.4}, mean KL {:.2e}", packed.mean_kl);
    }
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

/// Mean over the labelled tokens, row by row.
fn loss<B: LmBackend>(model: &Decoder<B>, heldout: &Batch, device: &B::Device) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    for batch in heldout.split() {
        let hidden = model.hidden(&batch.rows.to_input(&model.config, device), false);
        let (loss, n_labelled) = loss_sum(hidden, model.head(), &batch.rows, &batch.all_labels(), device);
        sum += loss.into_data().convert::<f64>().iter::<f64>().sum::<f64>();
        n += n_labelled;
    }
    sum / n as f64
}

fn hash(path: &Path) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    let hashed = std::fs::File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    hashed.map_err(|source| ModelError::Io { action: "read", path: path.to_path_buf(), source })?;
    Ok(hasher.finalize().to_hex().to_string())
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
