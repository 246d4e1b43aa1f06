//! `model-core forward`: one batch in, logits, loss and gradients out, in the form that parity tests compare.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::backend::Autodiff;
use burn::tensor::Tensor;
use kernels_cubecl::{DeviceChoice, Gradients, Leaf, LmBackend, Precision, linear, on_device};
use model_core::adapter::{PeftTensor, loss_sum, weights_hash};
use model_core::hf::names::leaf_values;
use model_core::hf::tensor_file::Values;
use model_core::hf::{FloatType, LeafMap, LoadOptions, PackedExperts, leaf_map, split_leaf, write_tensors};
use model_core::router::RouterLosses;
use model_core::{Decoder, ModelError, NamedLeaf, Replay, Routing, Rows};

use super::batch::{Batch, shifted};

/// Arguments of `forward`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model folder.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Batch: in.input_ids and where present in.attention_mask, in.position_ids, in.labels.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write or replace: out.logits, with labels out.loss, with --grads grad.NAME.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also write the gradient of the loss for every parameter.
    #[arg(long)]
    grads: bool,
    /// Adapter folder to put on the model; gradients are then the adapter's.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Add the router's load balancing loss, weighted as the model's config.json says; only models with experts have one.
    #[arg(long)]
    router_aux_loss: bool,
    /// Keep the weights of experts packed: in MXFP4, as the folder must have them, or with =fp8 rounded to FP8. They are then no parameters.
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_value = "no", default_missing_value = "mxfp4")]
    packed_experts: PackedExperts,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// f32 or bf16; bf16 needs a CUDA device.
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
}

/// Named tensors to be written.
type Outputs = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    on_device!(arguments.device.resolve()?.with(arguments.precision)?, B, device => run_on::<B>(arguments, &device))?
}

fn run_on<B: LmBackend>(arguments: &Arguments, device: &B::Device) -> Result<()> {
    let batch = Batch::read(&arguments.input)?;
    ensure!(
        batch.labels.is_some() || !arguments.grads,
        "--grads: expected in.labels in {}, got none; add labels or leave the flag out",
        arguments.input.display()
    );
    let options = LoadOptions { packed_experts: arguments.packed_experts, ..LoadOptions::default() };
    let mut model = Decoder::<B>::load_with(&arguments.model, options, device)?;
    ensure!(
        !arguments.router_aux_loss || model.config.experts().is_some(),
        "--router-aux-loss: expected a model with experts, got one without a router; leave the flag out"
    );
    if let Some(adapter) = &arguments.adapter {
        model.load_peft(adapter, &weights_hash(&arguments.model)?)?;
    }
    batch.check(&model.config)?;
    let coefficient = model.config.experts().filter(|_| arguments.router_aux_loss).map_or(0.0, |e| e.balance_coef);
    let outputs = match arguments.grads {
        true => with_grads(&model, &batch, coefficient, device),
        false => without_grads(&model, &batch, coefficient, device),
    };
    write_outputs(arguments, &outputs)
}

fn without_grads<B: LmBackend>(model: &Decoder<B>, batch: &Batch, coefficient: f32, device: &B::Device) -> Outputs {
    let (hidden, routed) = model.hidden_routed(&batch.rows.to_input(&model.config, device), &Replay::default());
    let mut outputs = vec![logits(hidden.clone(), model.head())];
    let balance = balance(&routed, &batch.rows, device);
    outputs.extend(balance.clone().map(|balance| ("out.aux_loss".to_owned(), vec![], floats(balance))));
    if let Some(labels) = &batch.labels {
        let loss = mean_loss(hidden, model.head(), &batch.rows, labels, device);
        let loss = with_balance(loss, balance, coefficient);
        outputs.push(("out.loss".to_owned(), vec![], floats(loss)));
    }
    outputs
}

fn with_grads<B: LmBackend>(model: &Decoder<B>, batch: &Batch, coefficient: f32, device: &B::Device) -> Outputs {
    let tracked: Decoder<Autodiff<B>> = model.to_autodiff();
    let (hidden, routed) = tracked.hidden_routed(&batch.rows.to_input(&model.config, device), &Replay::default());
    let mut outputs = vec![logits(hidden.clone().inner(), model.head())];
    let labels = batch.labels.as_deref().unwrap_or_default();
    let loss = mean_loss(hidden, tracked.head(), &batch.rows, labels, device);
    let balance = balance(&routed, &batch.rows, device);
    outputs.extend(balance.clone().map(|balance| ("out.aux_loss".to_owned(), vec![], floats(balance.inner()))));
    let loss = with_balance(loss, balance, coefficient);
    outputs.push(("out.loss".to_owned(), vec![], floats(loss.clone().inner())));
    let grads = loss.backward();
    let gradients =
        if tracked.has_adapter() { adapter_gradients(&tracked, &grads) } else { gradients(&tracked, &grads) };
    outputs.extend(gradients.into_iter().map(|(name, shape, values)| (format!("grad.{name}"), shape, values)));
    outputs
}

/// The load balancing loss; `None` without experts.
fn balance<B: LmBackend>(routed: &[Routing<B>], rows: &Rows, device: &B::Device) -> Option<Tensor<B, 1>> {
    RouterLosses::new(routed, rows.real_tokens(device)).map(|losses| losses.balance)
}

fn with_balance<B: LmBackend>(loss: Tensor<B, 1>, balance: Option<Tensor<B, 1>>, coefficient: f32) -> Tensor<B, 1> {
    match balance.filter(|_| coefficient > 0.0) {
        Some(balance) => loss + balance * coefficient,
        None => loss,
    }
}

/// Gradients of the model's own parameters under their Hugging Face names; packed weights have none.
fn gradients<B: LmBackend>(model: &Decoder<Autodiff<B>>, grads: &Gradients) -> Outputs {
    let map: BTreeMap<String, LeafMap> =
        leaf_map(&model.config).into_iter().map(|map| (map.leaf.clone(), map)).collect();
    let mut outputs = Vec::new();
    for named in model.leaves() {
        let values = gradient(&named.leaf, grads);
        let parts = split_leaf(&map[&named.name], &values).into_iter();
        outputs.extend(parts.map(|(name, shape, values)| (name, shape, values.into_owned())));
    }
    outputs
}

/// Gradients of the adapter's parameters under their names in a PEFT file and in its layout.
fn adapter_gradients<B: LmBackend>(model: &Decoder<Autodiff<B>>, grads: &Gradients) -> Outputs {
    let tensors = model.peft_tensors();
    let one = |(leaf, tensor): (NamedLeaf<_>, PeftTensor)| {
        let values = tensor.to_file(gradient(&leaf.leaf, grads));
        (tensor.name, tensor.shape, values)
    };
    tensors.into_iter().map(one).collect()
}

/// Gradient of one leaf; zero when the loss does not depend on it.
fn gradient<B: LmBackend>(leaf: &Leaf<Autodiff<B>>, grads: &Gradients) -> Vec<f32> {
    leaf.grad(grads).map_or_else(|| vec![0.0; leaf.n_elements()], leaf_values)
}

fn logits<B: LmBackend>(hidden: Tensor<B, 3>, head: Tensor<B, 2>) -> (String, Vec<usize>, Vec<f32>) {
    let logits = linear(hidden, head);
    ("out.logits".to_owned(), logits.dims().to_vec(), floats(logits))
}

/// Mean over the labelled tokens; zero when nothing is labelled.
fn mean_loss<B: LmBackend>(
    hidden: Tensor<B, 3>,
    head: Tensor<B, 2>,
    rows: &Rows,
    labels: &[i64],
    device: &B::Device,
) -> Tensor<B, 1> {
    let (sum, n_labelled) = loss_sum(hidden, head, &shifted(labels, rows.seq_len), device);
    sum / n_labelled.max(1) as f32
}

/// Writes beside the output's place and renames, so that a reader never sees half a file.
fn write_outputs(arguments: &Arguments, outputs: &Outputs) -> Result<()> {
    let tensors = outputs.iter().map(|(name, shape, values)| (name.clone(), shape.clone(), Values::Float(values)));
    let beside = arguments.output.with_extension(format!("tmp-{}", std::process::id()));
    let written = write_tensors(&beside, tensors.collect(), FloatType::F32)
        .and_then(|()| std::fs::rename(&beside, &arguments.output).map_err(|source| rename_error(arguments, source)));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    }
    Ok(written?)
}

fn rename_error(arguments: &Arguments, source: std::io::Error) -> ModelError {
    ModelError::Io { action: "write", path: arguments.output.clone(), source }
}

fn floats<B: LmBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("data converted to f32 is a vector of f32")
}
