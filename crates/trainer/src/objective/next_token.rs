//! Next-token prediction: pretraining, supervised fine-tuning and adapters differ only in their label weights.
//!
//! Per micro-batch the loss is `Σ w·(nll + z_loss·lse²)` over the labels; its units are `Σ w`. A model with experts adds the
//! weighted losses of its routers, which are means over tokens, times the units.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use kernels_cubecl::{LmBackend, linear_cross_entropy, token_stats};
use model_core::{Decoder, Replay};

use super::router::{self, RouterWeights};
use super::{LossSum, MetricSum, Objective, float_tensor, hidden_md, hidden_routed, int_tensor, to_host};
use crate::config::require;
use crate::{MicroBatch, TrainError};

/// The objective of pretraining, SFT and LoRA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NextToken {
    /// Weight of the squared log-sum-exp.
    pub z_loss: f32,
    /// Weights of the routers' losses.
    pub router: RouterWeights,
}

impl NextToken {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        require(self.z_loss.is_finite() && self.z_loss >= 0.0, || {
            format!("key `z_loss`: expected a finite number of at least 0, got {}", self.z_loss)
        })?;
        self.router.check()
    }
}

impl<B: LmBackend> Objective<B> for NextToken {
    fn units(&self, batch: &MicroBatch) -> f64 {
        batch.weight_sum()
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<B>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &B::Device,
    ) -> Result<LossSum<B>, TrainError> {
        let (targets, weights) = batch.targets();
        let (x_md, routed) = hidden_routed(model, batch, replay, device);
        let out = linear_cross_entropy(
            x_md,
            model.head(),
            int_tensor(&targets, device),
            float_tensor(&weights, device),
            self.z_loss,
        );
        let (mut sum, mut values) = (out.loss, out.nll.inner());
        let units = batch.weight_sum();
        if let Some(router) = self.router.sum(&routed, batch, units, device)? {
            sum = router.sum.into_iter().fold(sum, |sum, more| sum + more);
            values = Tensor::cat(vec![values, router.values], 0);
        }
        let metrics = move |numbers: &[f32]| {
            let nll = MetricSum::new("nll", f64::from(numbers[0]), units);
            [vec![nll], router::metrics(&numbers[1..])].concat()
        };
        Ok(LossSum { sum, values, metrics: Box::new(metrics) })
    }

    fn evaluate(
        &self,
        model: &Decoder<B>,
        batch: &MicroBatch,
        device: &B::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        let (targets, weights) = batch.targets();
        let stats = token_stats(
            hidden_md(model, batch, &Replay::default(), device),
            model.head(),
            int_tensor(&targets, device),
        );
        let logprobs = to_host(stats.logprob);
        let argmax = stats.argmax.into_data().convert::<i32>().to_vec::<i32>().expect("converted to i32 just before");
        let (mut nll, mut hits, mut units) = (0.0, 0.0, 0.0);
        for (i, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            nll -= f64::from(weight) * f64::from(logprobs[i]);
            hits += f64::from(weight) * f64::from(u8::from(argmax[i] == targets[i]));
            units += f64::from(weight);
        }
        Ok(vec![MetricSum::new("nll", nll, units), MetricSum::new("token_accuracy", hits, units)])
    }
}
