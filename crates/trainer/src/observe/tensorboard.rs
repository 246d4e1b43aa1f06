//! TensorBoard event files in `tb/`.

use std::path::Path;

use tensorboard_rs::summary_writer::SummaryWriter;

use super::{EvalLog, FlopCount, Observe, StepLog};
use crate::TrainError;

/// Scalars under `train/` and `eval/`.
pub struct TensorBoard {
    writer: SummaryWriter,
    flops: FlopCount,
}

impl TensorBoard {
    /// Starts a new event file in `dir`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(dir: &Path, flops: FlopCount) -> Result<Self, TrainError> {
        std::fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
        Ok(Self { writer: SummaryWriter::new(dir), flops })
    }

    fn scalar(&mut self, tag: &str, value: f64, step: u64) {
        self.writer.add_scalar(tag, value as f32, step as usize);
    }
}

impl Observe for TensorBoard {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.scalar("train/loss", log.loss, log.step);
        self.scalar("train/grad_norm", log.grad_norm, log.step);
        self.scalar("train/lr", log.lr, log.step);
        self.scalar("train/tokens_per_s", self.flops.of(log).tokens_per_s, log.step);
        for metric in &log.metrics {
            self.scalar(&format!("train/{}", metric.name), metric.mean(), log.step);
        }
        if log.step.is_multiple_of(16) || log.step == log.last_step {
            self.writer.flush();
        }
        Ok(())
    }

    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        for metric in &log.metrics {
            self.scalar(&format!("eval/{}", metric.name), metric.mean(), log.step);
        }
        if let Some(value) = log.bits_per_byte {
            self.scalar("eval/bits_per_byte", value, log.step);
        }
        self.writer.flush();
        Ok(())
    }

    fn warn(&mut self, _message: &str) {}
}
