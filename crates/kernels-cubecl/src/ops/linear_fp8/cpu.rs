//! Rounding to FP8 on the CPU, on all threads; the products are those of the plain linear layer.

use crate::cpu::parallel::{TASK, tasks1};
use crate::fp8::{Format, peak};

/// Rounds the numbers in place, by the scale for the peak that the history row knows, or else for their own; gives their own.
pub(crate) fn round(values: &mut [f32], format: Format, history: &[f32]) -> f32 {
    let (own, known) = (peak(values), peak(history));
    let scale = format.scale(if known > 0.0 { known } else { own });
    tasks1((values, TASK), |_, piece| piece.iter_mut().for_each(|x| *x = format.round(*x, scale) / scale));
    own
}
