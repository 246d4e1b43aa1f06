//! AdamW over the trainable leaves, gradient accumulation, and the global gradient norm.
//!
//! A parameter's state is its moments and, where the parameter is bf16, what is missing to its exact f32 value. Weight decay
//! applies to matrices (embedding and head included) and never to norm gains.

mod files;

pub(crate) use files::save_tensors;

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use kernels_cubecl::ops::adamw::master::split_all;
use kernels_cubecl::{
    AdamW, Leaf, LmBackend, Master, Moments, PackedMoments, adamw_step_gathered, backward_into, sum_parts,
    sum_squares_into, sum_squares_parts,
};
use model_core::hf::LoadOptions;
use model_core::{Decoder, NamedLeaf};

use crate::config::{Arithmetic, MasterKind, MomentsKind};
use crate::{TrainConfig, TrainError};

/// Mixed into the seed of a leaf's stochastic rounding with the leaf's number.
const SEED_STRIDE: u32 = 0x9e37_79b9;

/// Optimizer state of one leaf.
#[derive(Clone, Debug)]
struct LeafState<B: Backend> {
    master: Master<B>,
    moments: Moments<B>,
}

/// Optimizer state of a model: that of the trainable leaves, in the model's leaf order.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    states: Vec<Option<LeafState<B>>>,
}

/// Summed gradients of the trainable leaves, in the model's leaf order.
#[derive(Debug)]
pub struct GradientSum<B: Backend> {
    leaves: Vec<Option<Leaf<B>>>,
}

impl<B: LmBackend> GradientSum<B> {
    /// Nothing accumulated yet.
    pub fn new(n_leaves: usize) -> Self {
        Self { leaves: vec![None; n_leaves] }
    }

    /// Runs the backward pass of one micro-batch and adds its gradients, in place. Returns the FP8 histories with the peaks of
    /// this pass in front, as many as the model has.
    pub fn add(&mut self, model: &Decoder<Autodiff<B>>, loss: Tensor<Autodiff<B>, 1>) -> Vec<Tensor<B, 2>> {
        let (parameters, histories) = (model.leaves().into_iter().map(|named| named.leaf), model.histories());
        let leaves: Vec<Leaf<Autodiff<B>>> = parameters.chain(histories.iter().cloned().map(Leaf::Matrix)).collect();
        let (n_parameters, mut sums) = (self.leaves.len(), std::mem::take(&mut self.leaves));
        sums.resize(leaves.len(), None);
        backward_into(loss, &leaves, &mut sums);
        let next = sums.split_off(n_parameters);
        self.leaves = sums;
        // A projection that took no part keeps what it knew.
        next.into_iter().zip(histories).map(|(next, now)| next.map_or_else(|| now.inner(), Leaf::matrix)).collect()
    }

    /// The sum of a leaf's gradients, by its place among the model's leaves; `None` where the backward pass reached none.
    pub(crate) fn leaf(&self, at: usize) -> Option<&Leaf<B>> {
        self.leaves[at].as_ref()
    }

    /// Sum of the squares of all summed gradients, `[1]`; a NaN anywhere makes it NaN. Nothing is read.
    pub fn squares(&self, device: &B::Device) -> Tensor<B, 1> {
        let present = self.leaves.iter().flatten();
        let parts = sum_squares_parts(present.clone().count().max(1), device);
        sum_parts(present.enumerate().fold(parts, |parts, (i, leaf)| sum_squares_into(parts, i, leaf.clone())))
    }
}

/// A leaf without values in the place of `leaf`: only the number of rows stays, which is what models check.
///
/// On a backend of the caller's choice: a device has no copies of nothing.
pub(crate) fn hollow<B: LmBackend, C: LmBackend>(leaf: &Leaf<B>, device: &C::Device) -> Leaf<C> {
    match leaf {
        Leaf::Vector(_) => Leaf::Vector(Tensor::empty([0], device)),
        Leaf::Matrix(x) => Leaf::Matrix(Tensor::empty([x.dims()[0], 0], device)),
    }
}

impl<B: LmBackend> LeafState<B> {
    /// The state of a leaf before its first step.
    fn new(leaf: &Leaf<B>, config: &TrainConfig, device: &B::Device) -> Self {
        let n = leaf.n_elements();
        let zeros = || match leaf {
            Leaf::Vector(x) => Leaf::Vector(Tensor::zeros(x.dims(), (device, DType::F32))),
            Leaf::Matrix(x) => Leaf::Matrix(Tensor::zeros(x.dims(), (device, DType::F32))),
        };
        let master = match (leaf.dtype(), config.master) {
            (DType::BF16, MasterKind::Remainder) => Master::zero_remainder(n, device),
            (DType::BF16, MasterKind::Stochastic) => Master::Stochastic,
            _ => Master::Nearest,
        };
        let moments = match config.moments {
            MomentsKind::Full => Moments::Full { m: zeros(), v: zeros() },
            MomentsKind::Packed => Moments::Packed(PackedMoments::zeros(n, device)),
        };
        Self { master, moments }
    }
}

impl<B: LmBackend> Optimizer<B> {
    /// The state before the first step, for the trainable leaves of `model`.
    pub fn new(model: &Decoder<B>, config: &TrainConfig, device: &B::Device) -> Self {
        let state = |named: &NamedLeaf<B>| named.trainable.then(|| LeafState::new(&named.leaf, config, device));
        Self { states: model.leaves().iter().map(state).collect() }
    }

    /// The model of a folder with the state before the first step: a bf16 model keeps what its f32 weights lose.
    ///
    /// Without it every master weight would begin in the middle of the interval that rounds to its bf16 value, and no weight
    /// would move before updates of half a unit have added up.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn start(folder: &Path, config: &TrainConfig, device: &B::Device) -> Result<(Decoder<B>, Self), TrainError> {
        let exact = config.precision != Arithmetic::F32 && config.master == MasterKind::Remainder;
        if !exact {
            let model = Decoder::load(folder, device)?;
            let optimizer = Self::new(&model, config, device);
            return Ok((model, optimizer));
        }
        let mut remainders = Vec::new();
        let model = Decoder::load_by(folder, LoadOptions::default(), device, &mut |leaf, values| {
            let (working, words) = split_all(&values);
            let n = words.len();
            remainders.push(Tensor::from_data(TensorData::new(words, [n]), (device, DType::I32)));
            let data = TensorData::new(working, leaf.dims.clone());
            match leaf.dims.len() {
                1 => Leaf::Vector(Tensor::from_data(data, (device, DType::BF16))),
                _ => Leaf::Matrix(Tensor::from_data(data, (device, DType::BF16))),
            }
        })?;
        let mut optimizer = Self::new(&model, config, device);
        for (state, remainder) in optimizer.states.iter_mut().zip(remainders) {
            if let Some(state) = state {
                state.master = Master::Remainder(remainder);
            }
        }
        Ok((model, optimizer))
    }

    /// What a leaf's exact values have beyond their bf16 ones, by its place among the model's leaves; `None` where nothing.
    pub(crate) fn remainder(&self, at: usize) -> Option<TensorData> {
        match self.states[at].as_ref()?.master {
            Master::Remainder(ref words) => Some(words.clone().into_data()),
            Master::Nearest | Master::Stochastic => None,
        }
    }

    /// One AdamW step on every trainable leaf that has a gradient.
    ///
    /// `scale [1]` multiplies the summed gradients: one over the units of the step, times the clipping factor; where it is 0 or
    /// not finite nothing changes. `update` counts the updates from 1, for the bias correction.
    pub fn step(
        &mut self,
        model: Decoder<B>,
        gradients: GradientSum<B>,
        config: &TrainConfig,
        lr: f64,
        scale: Tensor<B, 1>,
        update: u64,
    ) -> Decoder<B> {
        let (leaves, device) = (model.leaves(), model.embedding.device());
        // The frame keeps the structure and lets go of the values, so that each leaf has one owner and changes in place.
        let frame = model.with_leaves(leaves.iter().map(|named| hollow(&named.leaf, &device)).collect());
        drop(model);
        let mut stepped = Vec::with_capacity(leaves.len());
        let mut weight_peaks = Vec::new();
        for (i, ((named, gradient), slot)) in leaves.into_iter().zip(gradients.leaves).zip(&mut self.states).enumerate()
        {
            let NamedLeaf { leaf, decay, gathers, .. } = named;
            let (Some(gradient), Some(state)) = (gradient, slot.take()) else {
                stepped.push(leaf);
                weight_peaks.extend(gathers.then_some(None));
                continue;
            };
            let hyper = AdamW {
                lr: lr as f32,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                eps: config.eps as f32,
                weight_decay: if decay { config.weight_decay as f32 } else { 0.0 },
                step: update,
                seed: (config.seed as u32).wrapping_add((i as u32).wrapping_mul(SEED_STRIDE)),
            };
            let LeafState { master, moments } = state;
            let (leaf, master, moments, peaks) =
                adamw_step_gathered(leaf, gradient, (master, moments), scale.clone(), &hyper, gathers);
            stepped.push(leaf);
            weight_peaks.extend(gathers.then_some(peaks));
            *slot = Some(LeafState { master, moments });
        }
        let mut model = frame.with_leaves(stepped);
        if !weight_peaks.is_empty() {
            model.set_weight_peaks(weight_peaks);
        }
        model
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;
    use kernels_cubecl::Cpu;
    use kernels_cubecl::ops::adamw::master::join_all;

    use super::*;
    use crate::tests::tiny::{config, model};

    #[test]
    fn a_bf16_run_starts_from_the_exact_f32_weights() {
        let dir = tempfile::tempdir().unwrap();
        let exact = model();
        exact.save(dir.path(), 1 << 30).unwrap();
        let config = TrainConfig { precision: Arithmetic::Bf16, ..config(1) };
        let (started, optimizer) = Optimizer::<Cpu>::start(dir.path(), &config, &Default::default()).unwrap();
        let mut lost = 0;
        for ((named, want), state) in started.leaves().into_iter().zip(exact.leaves()).zip(&optimizer.states) {
            let working: Vec<bf16> = named.leaf.into_data().into_vec().unwrap();
            let want: Vec<f32> = want.leaf.into_data().into_vec().unwrap();
            let Some(LeafState { master: Master::Remainder(remainder), .. }) = state else { panic!("{}", named.name) };
            let remainder: Vec<i32> = remainder.clone().into_data().into_vec().unwrap();
            assert_eq!(join_all(&working, &remainder), want, "{}", named.name);
            lost += working.iter().zip(&want).filter(|(working, want)| working.to_f32() != **want).count();
        }
        assert!(lost > 100, "bf16 alone must lose something, or this shows nothing: {lost}");
    }
}
