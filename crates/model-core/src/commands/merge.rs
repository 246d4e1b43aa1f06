//! `model-core merge`: an adapter into its base, with the proof on held-out rows and a report of what the rounding cost.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use kernels_cubecl::{DeviceChoice, LmBackend, Precision, on_device};
use model_core::adapter::{Heldout, MergeBounds, MergeInput, MergeSettings, MergedModel, hash_file};
use model_core::commit::write_folder;
use model_core::hf::{FloatType, read_config};

use super::batch::{Batch, shifted};
use super::export::{Dtype, copy_companions};
use super::init::DEFAULT_SHARD_BYTES;

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

fn run_on<B: LmBackend>(arguments: &Arguments, device: &B::Device) -> Result<()> {
    let batch = Batch::read(&arguments.heldout)?;
    let config = read_config(&arguments.model)?;
    ensure!(
        !arguments.packed_experts || config.experts().is_some(),
        "--packed-experts: expected a model with experts, got one without; leave the flag out"
    );
    batch.check(&config)?;
    let labelled = |batch: Batch| {
        let targets = shifted(&batch.all_labels(), batch.rows.seq_len);
        (batch.rows, targets)
    };
    let heldout = Heldout {
        rows: batch.split().into_iter().map(labelled).collect(),
        name: arguments.heldout.display().to_string(),
        blake3: hash_file(&arguments.heldout)?,
    };
    let float = arguments.dtype.float();
    let bounds = match (float, arguments.precision) {
        (FloatType::F32, Precision::F32) => MergeBounds::F32,
        _ => MergeBounds::BF16,
    };
    let max_packed_kl = arguments.packed_experts.then_some(arguments.max_packed_kl);
    let settings = MergeSettings { float, bounds, max_packed_kl, max_shard_bytes: arguments.max_shard_bytes };
    let Arguments { model, adapter, unrecorded_base, .. } = arguments;
    let from = MergeInput { model, adapter, unrecorded_base: *unrecorded_base };
    let merged = MergedModel::<B>::new(from, &heldout, settings, device)?;
    write_folder(&arguments.out, |dir| {
        copy_companions(&arguments.model, dir)?;
        merged.write(dir)
    })?;
    tell(&arguments.out, &merged);
    Ok(())
}

fn tell<B: LmBackend>(out: &Path, merged: &MergedModel<B>) {
    let MergedModel { n_updates, losses, agrees, packed, without, .. } = merged;
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
    if packed.is_some_and(|packed| packed.mean_kl >= without.mean_kl) {
        eprintln!(
            "warning: the base is as near to the adapter (mean KL {:.2e}) as the merged model in MXFP4, whose steps are larger than the update; keep the adapter, or merge without --packed-experts",
            without.mean_kl
        );
    }
}
