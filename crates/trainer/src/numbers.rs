//! The numbers of a step: losses, metrics and gradient norm, which stay on the device until one read brings them all.

use burn::tensor::Tensor;
use kernels_cubecl::{LmBackend, Reading, clip_scale};

use crate::objective::{MakeMetrics, MetricSum};

/// What a micro-batch leaves on the device.
pub(crate) struct MicroLoss<B: LmBackend> {
    /// `[1]`: summed loss.
    pub(crate) sum: Tensor<B, 1>,
    /// `[k]`: what its metrics are made of.
    pub(crate) values: Tensor<B, 1>,
    /// Makes them.
    pub(crate) metrics: MakeMetrics,
}

/// The numbers of a step on the device.
pub(crate) struct Numbers<B: LmBackend> {
    losses: Vec<MicroLoss<B>>,
    /// `[1]`: sum of the squares of all summed gradients.
    squares: Tensor<B, 1>,
}

/// The same on their way.
pub(crate) struct NumbersReading {
    reading: Reading,
    metrics: Vec<(usize, MakeMetrics)>,
}

/// The same on the host.
pub(crate) struct StepNumbers {
    /// Mean loss over the units of the step.
    pub(crate) loss: f64,
    /// Norm of the mean gradient.
    pub(crate) grad_norm: f64,
    /// Metrics, summed over the micro-batches.
    pub(crate) metrics: Vec<MetricSum>,
}

impl<B: LmBackend> Numbers<B> {
    pub(crate) fn new(losses: Vec<MicroLoss<B>>, squares: Tensor<B, 1>) -> Self {
        Self { losses, squares }
    }

    /// Factor of the summed gradients, clipping included; 0 where the loss or the norm is not finite, so that the optimizer
    /// leaves the step out.
    pub(crate) fn gradient_scale(&self, units: f64, max_norm: f64) -> Tensor<B, 1> {
        // Zero times a loss that is not finite is NaN.
        let guard = |squares: Tensor<B, 1>, loss: &MicroLoss<B>| squares + loss.sum.clone().mul_scalar(0.0);
        clip_scale(self.losses.iter().fold(self.squares.clone(), guard), units, max_norm)
    }

    /// Enqueues the one read of the step.
    pub(crate) fn start_reading(self) -> NumbersReading {
        let (mut tensors, mut metrics) = (vec![self.squares], Vec::with_capacity(self.losses.len()));
        for MicroLoss { sum, values, metrics: make } in self.losses {
            metrics.push((values.dims()[0], make));
            tensors.extend([sum, values]);
        }
        NumbersReading { reading: Reading::start(Tensor::cat(tensors, 0)), metrics }
    }
}

impl NumbersReading {
    /// Waits for the numbers; without units they are all 0.
    pub(crate) fn finish(self, units: f64) -> StepNumbers {
        let values = self.reading.finish();
        let (squares, mut rest) = (f64::from(values[0]), &values[1..]);
        let (mut loss, mut metrics) = (0.0, Vec::new());
        for (n, make) in self.metrics {
            let (sum, values) = (rest[0], &rest[1..=n]);
            loss += f64::from(sum);
            MetricSum::merge(&mut metrics, make(values));
            rest = &rest[1 + n..];
        }
        let mean = |sum: f64| if units > 0.0 { sum / units } else { 0.0 };
        StepNumbers { loss: mean(loss), grad_norm: mean(squares.sqrt()), metrics }
    }
}
