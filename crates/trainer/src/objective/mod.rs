//! What a stage supplies to the loop: a loss over a micro-batch, as a sum with its units. Never a mean.

mod next_token;
mod policy;
mod preference;
mod router;

use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use kernels_cubecl::LmBackend;
use model_core::{Decoder, Replay, Routing};

use crate::{MicroBatch, TrainError};

pub use next_token::NextToken;
pub use policy::{
    AdvantageScale, Aggregation, Policy, PolicyTokens, RATIO_BEYOND, RATIO_DEVIATION, RatioLevel, SAMPLER_BEYOND,
    SAMPLER_DEVIATION, advantages, deviation, has_spread, sample_logprobs, token_losses,
};
pub use preference::{Preference, PreferenceLoss, pair_losses, reference_logprobs};
pub use router::RouterWeights;

/// A named sum over units; the value that is shown is `sum / units`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSum {
    /// Name in the logs.
    pub name: &'static str,
    /// Sum over the units.
    pub sum: f64,
    /// What it was summed over: tokens, pairs.
    pub units: f64,
}

impl MetricSum {
    /// A sum.
    pub fn new(name: &'static str, sum: f64, units: f64) -> Self {
        Self { name, sum, units }
    }

    /// Adds `more` to `sums` by name.
    pub fn merge(sums: &mut Vec<Self>, more: Vec<Self>) {
        for metric in more {
            match sums.iter_mut().find(|m| m.name == metric.name) {
                Some(known) => {
                    known.sum += metric.sum;
                    known.units += metric.units;
                }
                None => sums.push(metric),
            }
        }
    }

    /// The mean; 0 over nothing, so that a fully masked batch is 0 and not 0/0.
    pub fn mean(&self) -> f64 {
        if self.units > 0.0 { self.sum / self.units } else { 0.0 }
    }
}

/// Makes metrics of the numbers that a micro-batch left on the device.
pub type MakeMetrics = Box<dyn FnOnce(&[f32]) -> Vec<MetricSum>>;

/// Summed loss of a micro-batch. Nothing of it has been read: the loop reads everything of a step at once.
pub struct LossSum<B: LmBackend> {
    /// `[1]`, differentiable: the sum over the units, not divided by anything.
    pub sum: Tensor<Autodiff<B>, 1>,
    /// `[k]`, without a graph: what the metrics are made of.
    pub values: Tensor<B, 1>,
    /// Makes the metrics of `values`.
    pub metrics: MakeMetrics,
}

/// A step's batches, and what their making says about them.
#[derive(Debug, Default)]
pub struct Sampled {
    /// The micro-batches.
    pub batches: Vec<MicroBatch>,
    /// Metrics of the step besides those of the loss.
    pub metrics: Vec<MetricSum>,
}

/// A stage's loss. The loop owns everything else.
pub trait Objective<B: LmBackend> {
    /// The batches of the step that follows `step` completed ones, made of what the source gave and of the model as it is
    /// before the step: for data that the model itself samples. It must be a function of these alone, or a resumed run would
    /// be another one.
    ///
    /// # Errors
    /// Whatever keeps the batches from being made.
    fn sample(
        &self,
        model: &Decoder<B>,
        step: u64,
        given: Vec<MicroBatch>,
        device: &B::Device,
    ) -> Result<Sampled, TrainError> {
        let _ = (model, step, device);
        Ok(Sampled { batches: given, metrics: Vec::new() })
    }

    /// Looks at the numbers of step `step`, counted from 1, once they are logged; returns what the user should know.
    ///
    /// # Errors
    /// When the run must end here.
    fn review(&self, step: u64, metrics: &[MetricSum]) -> Result<Option<String>, TrainError> {
        let _ = (step, metrics);
        Ok(None)
    }

    /// What the loss is a sum over, known before the forward pass: label weight, pairs.
    fn units(&self, batch: &MicroBatch) -> f64;

    /// The summed loss; `replay` says which blocks run again in the backward pass.
    ///
    /// # Errors
    /// A batch that lacks what the objective needs.
    fn loss(
        &self,
        model: &Decoder<Autodiff<B>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &B::Device,
    ) -> Result<LossSum<B>, TrainError>;

    /// Sums over one evaluation batch; the first one is what "better" is decided by (lower is better).
    ///
    /// # Errors
    /// As [`Objective::loss`].
    fn evaluate(
        &self,
        model: &Decoder<B>,
        batch: &MicroBatch,
        device: &B::Device,
    ) -> Result<Vec<MetricSum>, TrainError>;
}

/// Hidden states of all rows as a matrix `[m, d]`.
pub(crate) fn hidden_md<B: LmBackend>(
    model: &Decoder<B>,
    batch: &MicroBatch,
    replay: &Replay,
    device: &B::Device,
) -> Tensor<B, 2> {
    hidden_routed(model, batch, replay, device).0
}

/// Hidden states of all rows as a matrix `[m, d]`, and where each mixture of experts sent the tokens.
fn hidden_routed<B: LmBackend>(
    model: &Decoder<B>,
    batch: &MicroBatch,
    replay: &Replay,
    device: &B::Device,
) -> (Tensor<B, 2>, Vec<Routing<B>>) {
    let input = batch.rows.to_input::<B>(&model.config, device);
    let (hidden, routed) = model.hidden_routed(&input, replay);
    let [b, t, d] = hidden.dims();
    (hidden.reshape([b * t, d]), routed)
}

/// Labels as a device tensor `[m]`.
fn int_tensor<B: Backend>(values: &[i32], device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// Values as a device tensor `[m]`; f32 also where the model is bf16, because they are weights and targets of the loss.
fn float_tensor<B: Backend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::F32))
}

/// Reads a tensor of f32 back.
fn to_host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec::<f32>().expect("converted to f32 just before")
}
