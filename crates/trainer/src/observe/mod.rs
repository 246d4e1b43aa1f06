//! Observers of the loop: they look, they never steer.

mod files;
mod live;
mod tensorboard;

use serde::Serialize;

use crate::TrainError;
use crate::objective::MetricSum;

pub use files::{METRICS, MetricFiles, TIMING};
pub use live::Live;
pub use tensorboard::TensorBoard;

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepLog {
    /// Completed steps, this one included.
    pub step: u64,
    /// Loss per unit.
    pub loss: f64,
    /// Mean over the window of finite losses.
    pub loss_window: Option<f64>,
    /// Gradient norm per unit, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Label weight or pairs.
    pub units: f64,
    /// Tokens, padding included.
    pub tokens: u64,
    /// Row length.
    pub seq_len: usize,
    /// Whether the weights were left alone because something was not finite.
    pub skipped: bool,
    /// Sums of the objective.
    pub metrics: Vec<MetricSum>,
    /// Wall time from the fetch of the batches to the step's numbers, in seconds; on a device that works ahead the optimizer's part
    /// falls into the next step.
    pub seconds: f64,
    /// The run's last step.
    pub last_step: u64,
}

/// What an evaluation found.
#[derive(Clone, Debug)]
pub struct EvalLog {
    /// Completed steps.
    pub step: u64,
    /// Sums over the evaluation set.
    pub metrics: Vec<MetricSum>,
    /// When the bytes of the set are known.
    pub bits_per_byte: Option<f64>,
}

/// Throughput of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Throughput {
    /// Step.
    pub step: u64,
    /// Wall time in milliseconds.
    pub step_ms: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Model arithmetic in TFLOP/s.
    pub tflops: f64,
    /// Share of the configured peak; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
}

/// The figures that throughput is computed from.
#[derive(Clone, Debug)]
pub struct FlopCount {
    /// The model.
    pub config: model_core::ModelConfig,
    /// Peak of the device in TFLOP/s; 0 when unknown.
    pub peak_tflops: f64,
}

impl FlopCount {
    /// Throughput of a step: forward and backward of all matrices (head included, embedding not) and causal attention.
    pub fn of(&self, log: &StepLog) -> Throughput {
        let flops = self.config.flops_per_token(log.seq_len) as f64 * log.tokens as f64;
        // A clock too coarse for the step must not make an infinite speed.
        let seconds = log.seconds.max(1e-9);
        let tflops = flops / seconds / 1e12;
        Throughput {
            step: log.step,
            step_ms: seconds * 1e3,
            tokens_per_s: log.tokens as f64 / seconds,
            tflops,
            mfu: (self.peak_tflops > 0.0).then(|| tflops / self.peak_tflops),
        }
    }
}

/// Looks at the loop.
pub trait Observe {
    /// After a step.
    ///
    /// # Errors
    /// When a log that belongs to the run cannot be written.
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError>;

    /// After an evaluation.
    ///
    /// # Errors
    /// As [`Observe::step`].
    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError>;

    /// Something the user should know.
    fn warn(&mut self, message: &str);

    /// Before a checkpoint: everything logged so far becomes durable.
    ///
    /// # Errors
    /// When the operating system cannot promise it.
    fn sync(&mut self) -> Result<(), TrainError> {
        Ok(())
    }
}

/// Several observers, in order.
#[derive(Default)]
pub struct Observers(pub Vec<Box<dyn Observe>>);

impl Observe for Observers {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|observer| observer.step(log))
    }

    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|observer| observer.eval(log))
    }

    fn warn(&mut self, message: &str) {
        self.0.iter_mut().for_each(|observer| observer.warn(message));
    }

    fn sync(&mut self) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|observer| observer.sync())
    }
}

#[cfg(test)]
mod tests;
