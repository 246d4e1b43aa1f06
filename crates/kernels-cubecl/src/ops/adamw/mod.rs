//! AdamW: one fused pass over parameter, gradient and both moments.
//!
//! With `g' = grad_scale·g` and the 1-based step `t`:
//! ```text
//! p  ← p·(1 − lr·weight_decay)
//! m  ← beta1·m + (1 − beta1)·g'
//! v  ← beta2·v + (1 − beta2)·g'²
//! p  ← p − lr/(1 − beta1ᵗ) · m / (√v / √(1 − beta2ᵗ) + eps)
//! ```
//! # Numerics
//! The bias corrections are computed in f64 and rounded once; the element update runs in f32.
//! # Source
//! Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, in the operation order of `torch.optim.AdamW`.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;

/// Hyper-parameters of one AdamW step; every field is explicit, nothing is defaulted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Decoupled weight decay; 0 for parameters that are not decayed.
    pub weight_decay: f32,
    /// Factor applied to the gradient first: normalisation by units times the clip factor.
    pub grad_scale: f32,
    /// Number of this step, counted from 1, for the bias corrections.
    pub step: u64,
}

impl AdamW {
    /// `(1 − lr·weight_decay, lr/(1 − beta1ᵗ), √(1 − beta2ᵗ))`, computed in f64.
    pub(crate) fn factors(&self) -> (f64, f64, f64) {
        let t = self.step as f64;
        let (lr, b1, b2) = (f64::from(self.lr), f64::from(self.beta1), f64::from(self.beta2));
        (1.0 - lr * f64::from(self.weight_decay), lr / (1.0 - b1.powf(t)), (1.0 - b2.powf(t)).sqrt())
    }
}
