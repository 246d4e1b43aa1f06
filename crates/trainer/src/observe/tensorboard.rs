//! TensorBoard event files in `tb/`.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tensorboard_rs::summary_writer::SummaryWriter;

use super::{EvalLog, FlopCount, Observe, StepLog};
use crate::TrainError;

/// Steps between flushes.
const FLUSH_EVERY: u64 = 16;

/// Scalars under `train/` and `eval/`.
///
/// The library's writer panics when its file cannot be written, for instance on a full disk, and once more when it is
/// dropped. The curves are a convenience, the run is not: the first panic ends the curves, not the run.
pub struct TensorBoard {
    writer: Option<SummaryWriter>,
    flops: FlopCount,
}

impl TensorBoard {
    /// Starts a new event file in `dir`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(dir: &Path, flops: FlopCount) -> Result<Self, TrainError> {
        std::fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
        Ok(Self { writer: catch_unwind(|| SummaryWriter::new(dir)).ok(), flops })
    }

    /// Whether the curves have ended because they could not be written.
    pub fn is_off(&self) -> bool {
        self.writer.is_none()
    }

    fn scalars(&mut self, step: u64, flush: bool, values: &[(String, f64)]) {
        let Some(mut writer) = self.writer.take() else { return };
        let written = catch_unwind(AssertUnwindSafe(|| {
            for (tag, value) in values {
                writer.add_scalar(tag, *value as f32, step as usize);
            }
            if flush {
                writer.flush();
            }
        }));
        match written {
            Ok(()) => self.writer = Some(writer),
            Err(_) => {
                // Dropping it would wait for its dead thread and panic again.
                std::mem::forget(writer);
                let text = "tb: the curves cannot be written any more; training goes on without them";
                let _ = writeln!(std::io::stderr().lock(), "{text}");
            }
        }
    }
}

impl Drop for TensorBoard {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // An error at the very end costs the last few points of the curves.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(writer)));
        }
    }
}

impl Observe for TensorBoard {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        let speed = self.flops.of(log).tokens_per_s;
        let own = [("loss", log.loss), ("grad_norm", log.grad_norm), ("lr", log.lr), ("tokens_per_s", speed)];
        let metrics = log.metrics.iter().map(|metric| (metric.name, metric.mean()));
        let values: Vec<_> = own.into_iter().chain(metrics).map(|(name, v)| (format!("train/{name}"), v)).collect();
        self.scalars(log.step, log.step.is_multiple_of(FLUSH_EVERY) || log.step == log.last_step, &values);
        Ok(())
    }

    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        let metrics = log.metrics.iter().map(|metric| (metric.name, metric.mean()));
        let bits = log.bits_per_byte.map(|value| ("bits_per_byte", value));
        let values: Vec<_> = metrics.chain(bits).map(|(name, v)| (format!("eval/{name}"), v)).collect();
        self.scalars(log.step, true, &values);
        Ok(())
    }

    fn warn(&mut self, _message: &str) {}
}
