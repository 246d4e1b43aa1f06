//! AdamW: one fused pass over parameter, gradient and both moments.
//!
//! With `g' = scale·g` and the 1-based step `t`:
//! ```text
//! m  ← beta1·m + (1 − beta1)·g'
//! v  ← beta2·v + (1 − beta2)·g'²
//! p  ← p·(1 − lr·weight_decay) − lr/(1 − beta1ᵗ) · m / (√v / √(1 − beta2ᵗ) + eps)
//! ```
//! `scale` is a tensor of one element, so that clipping needs no answer from the device. Where it is 0, infinite or NaN the
//! step is skipped: every output has the bits of its input.
//!
//! # Variants
//! The moments are full tensors or take 8 bits each ([`packed`]); the parameter is the only copy, or the upper half of an f32
//! number whose lower half is kept beside it ([`master`]), or a bf16 number that is rounded stochastically. A bf16 parameter
//! with its remainder and packed moments takes 6 bytes, and a step moves 14.
//!
//! # Numerics
//! The bias corrections are computed in f64 and rounded once; the element update runs in f32.
//! # Source
//! Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, in the operation order of `torch.optim.AdamW`.
//! Dettmers et al., "8-bit Optimizers via Block-wise Quantization", for moments in blocks with a scale each.

pub mod cases;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod master;
pub mod packed;
pub mod reference;

use burn::tensor::{DType, Int, Tensor, backend::Backend, ops::FloatTensor};

use crate::Leaf;

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
    /// Number of this step, counted from 1, for the bias corrections.
    pub step: u64,
    /// Seed of the stochastic rounding, another one for each parameter; the step is mixed in here.
    pub seed: u32,
}

/// The numbers of a step as the inner loops use them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    pub(crate) keep: f32,
    pub(crate) step: f32,
    pub(crate) inverse_root2: f32,
    pub(crate) eps: f32,
    pub(crate) key: u32,
}

impl AdamW {
    /// What the inner loops use, computed in f64 and rounded once.
    pub(crate) fn factors(&self) -> Factors {
        let t = self.step as f64;
        let (lr, b1, b2) = (f64::from(self.lr), f64::from(self.beta1), f64::from(self.beta2));
        Factors {
            beta1: self.beta1,
            rest1: (1.0 - b1) as f32,
            beta2: self.beta2,
            rest2: (1.0 - b2) as f32,
            keep: (1.0 - lr * f64::from(self.weight_decay)) as f32,
            step: (lr / (1.0 - b1.powf(t))) as f32,
            inverse_root2: (1.0 / (1.0 - b2.powf(t)).sqrt()) as f32,
            eps: self.eps,
            key: self.key(),
        }
    }

    /// Key of the step's random numbers.
    pub(crate) fn key(&self) -> u32 {
        let step = packed::mix(self.step as u32 ^ packed::mix((self.step >> 32) as u32));
        packed::mix(self.seed.wrapping_add(step))
    }
}

/// False where a step with this gradient scale changes nothing.
pub(crate) fn takes_effect(scale: f32) -> bool {
    scale.is_finite() && scale != 0.0
}

/// What is kept of a parameter beside its working value.
#[derive(Clone, Debug)]
pub enum Master<B: Backend> {
    /// Nothing; the new value is rounded to the nearest number of the parameter's type.
    Nearest,
    /// Nothing; the parameter is bf16, and the new value is rounded up or down at random, so that it is right on average.
    Stochastic,
    /// The lower halves of f32 numbers whose upper halves are the bf16 parameter: `[⌈n/2⌉]`, two in an i32. See [`master`].
    Remainder(Tensor<B, 1, Int>),
}

impl<B: Backend> Master<B> {
    /// The remainder of a parameter of `n` elements whose f32 value is the bf16 one.
    pub fn zero_remainder(n: usize, device: &B::Device) -> Self {
        Self::Remainder(Tensor::zeros([n.div_ceil(2)], (device, DType::I32)))
    }
}

/// A parameter and its state after a step.
#[derive(Clone, Debug)]
pub struct Stepped<B: Backend> {
    /// The new values, as their type has them.
    pub param: FloatTensor<B>,
    /// What they lack to the exact ones.
    pub master: Master<B>,
    /// Both moments.
    pub moments: Moments<B>,
    /// `[n]`: abs-max of parts of `param`, the largest entry counts; numbers that are not finite do not count.
    pub peaks: Option<FloatTensor<B>>,
}

/// Both moments of a parameter.
#[derive(Clone, Debug)]
pub enum Moments<B: Backend> {
    /// As numbers in the shape of the parameter.
    Full {
        /// First moment.
        m: Leaf<B>,
        /// Second moment.
        v: Leaf<B>,
    },
    /// In 8 bits each.
    Packed(PackedMoments<B>),
}

/// Both moments in 8 bits; see [`packed`] for the format.
#[derive(Clone, Debug)]
pub struct PackedMoments<B: Backend> {
    /// Codes of the first moment: `[⌈n/256⌉·64]` i32, four codes in each.
    pub m: Tensor<B, 1, Int>,
    /// Scales of the first moment: `[⌈n/256⌉]` f32.
    pub m_scale: Tensor<B, 1>,
    /// Codes of the root of the second moment.
    pub v: Tensor<B, 1, Int>,
    /// Scales of the root of the second moment.
    pub v_scale: Tensor<B, 1>,
}

impl<B: Backend> PackedMoments<B> {
    /// Zero moments of a parameter of `n` elements.
    pub fn zeros(n: usize, device: &B::Device) -> Self {
        let (words, blocks) = packed::lengths(n);
        let codes = || Tensor::zeros([words], (device, DType::I32));
        let scales = || Tensor::zeros([blocks], (device, DType::F32));
        Self { m: codes(), m_scale: scales(), v: codes(), v_scale: scales() }
    }
}
