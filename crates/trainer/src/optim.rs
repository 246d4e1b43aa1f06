//! AdamW over the trainable leaves, gradient accumulation, and the global gradient norm.
//!
//! Parameters and moments are f32 on the CPU: there is no low-precision master copy to lose updates in. Weight decay
//! applies to matrices (embedding and head included) and never to norm gains.

use std::path::Path;

use kernels_cubecl::{AdamW, Gradients, Leaf, LmBackend, Master, adamw_step, add_assign, sum_squares};
use model_core::hf::tensor_file::Values;
use model_core::hf::{FloatType, TensorFile, write_tensors};
use model_core::{Decoder, NamedLeaf};

use crate::{TrainConfig, TrainError};
use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

/// First and second moments of one leaf.
type Moments<B> = (Leaf<B>, Leaf<B>);

/// Optimizer state of a model: moments of the trainable leaves, in the model's leaf order.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    moments: Vec<Option<Moments<B>>>,
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

    /// Adds the gradients of one micro-batch, in place.
    pub fn add(&mut self, model: &Decoder<Autodiff<B>>, gradients: &mut Gradients) {
        for (sum, named) in self.leaves.iter_mut().zip(model.leaves()) {
            let Some(gradient) = named.leaf.take_grad(gradients) else { continue };
            *sum = Some(match (sum.take(), gradient) {
                (Some(Leaf::Vector(sum)), Leaf::Vector(g)) => Leaf::Vector(add_assign(sum, g)),
                (Some(Leaf::Matrix(sum)), Leaf::Matrix(g)) => Leaf::Matrix(add_assign(sum, g)),
                (_, first) => first,
            });
        }
    }

    /// Global L2 norm of the summed gradients (not divided by anything); a NaN anywhere makes it NaN.
    pub fn norm(&self) -> f64 {
        let squares = self.leaves.iter().flatten().map(|leaf| {
            let sum = match leaf.clone() {
                Leaf::Vector(g) => sum_squares(g),
                Leaf::Matrix(g) => sum_squares(g),
            };
            f64::from(sum.into_data().convert::<f32>().to_vec::<f32>().expect("converted to f32 just before")[0])
        });
        squares.sum::<f64>().sqrt()
    }

    /// The summed gradient of each leaf; `None` where nothing arrived.
    pub fn leaves(&self) -> &[Option<Leaf<B>>] {
        &self.leaves
    }
}

/// Zeros in the shape of `leaf`.
fn zeros_like<B: LmBackend>(leaf: &Leaf<B>) -> Leaf<B> {
    match leaf {
        Leaf::Vector(x) => Leaf::Vector(x.zeros_like()),
        Leaf::Matrix(x) => Leaf::Matrix(x.zeros_like()),
    }
}

/// A leaf without values in the place of `leaf`: only the number of rows stays, which is what models check.
fn hollow<B: LmBackend>(leaf: &Leaf<B>) -> Leaf<B> {
    match leaf {
        Leaf::Vector(x) => Leaf::Vector(Tensor::empty([0], &x.device())),
        Leaf::Matrix(x) => Leaf::Matrix(Tensor::empty([x.dims()[0], 0], &x.device())),
    }
}

/// One leaf's step; the three tensors are the caller's alone, so that they change in place.
fn step_leaf<B: LmBackend>(
    param: Leaf<B>,
    grad: Leaf<B>,
    (m, v): Moments<B>,
    scale: Tensor<B, 1>,
    hyper: &AdamW,
) -> (Leaf<B>, Moments<B>) {
    let full = kernels_cubecl::Moments::Full { m, v };
    match adamw_step(param, grad, Master::Nearest, full, scale, hyper) {
        (param, _, kernels_cubecl::Moments::Full { m, v }) => (param, (m, v)),
        (_, _, other) => panic!("adamw: full moments became {other:?}"),
    }
}

impl<B: LmBackend> Optimizer<B> {
    /// Zero moments for the trainable leaves of `model`.
    pub fn new(model: &Decoder<B>) -> Self {
        let moments =
            |named: &NamedLeaf<B>| named.trainable.then(|| (zeros_like(&named.leaf), zeros_like(&named.leaf)));
        Self { moments: model.leaves().iter().map(moments).collect() }
    }

    /// One AdamW step on every trainable leaf that has a gradient.
    ///
    /// `grad_scale` multiplies the summed gradients: one over the units of the step, times the clipping factor.
    /// `update` counts the updates from 1, for the bias correction.
    pub fn step(
        &mut self,
        model: Decoder<B>,
        gradients: GradientSum<B>,
        config: &TrainConfig,
        lr: f64,
        grad_scale: f64,
        update: u64,
    ) -> Decoder<B> {
        let leaves = model.leaves();
        let Some(device) = leaves.first().map(|named| named.leaf.device()) else { return model };
        let scale = Tensor::from_data(TensorData::from([grad_scale as f32]), (&device, DType::F32));
        // The frame keeps the structure and lets go of the values, so that each leaf has one owner and changes in place.
        let frame = model.with_leaves(leaves.iter().map(|named| hollow(&named.leaf)).collect());
        drop(model);
        let mut stepped = Vec::with_capacity(leaves.len());
        for ((named, gradient), moments) in leaves.into_iter().zip(gradients.leaves).zip(&mut self.moments) {
            let NamedLeaf { leaf, decay, .. } = named;
            let (Some(gradient), Some(state)) = (gradient, moments.take()) else {
                stepped.push(leaf);
                continue;
            };
            let hyper = AdamW {
                lr: lr as f32,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                eps: config.eps as f32,
                weight_decay: if decay { config.weight_decay as f32 } else { 0.0 },
                step: update,
                seed: 0,
            };
            let (leaf, state) = step_leaf(leaf, gradient, state, scale.clone(), &hyper);
            stepped.push(leaf);
            *moments = Some(state);
        }
        frame.with_leaves(stepped)
    }

    /// Writes the moments as `m.<leaf>` and `v.<leaf>`.
    ///
    /// # Errors
    /// As [`write_tensors`].
    pub fn save(&self, model: &Decoder<B>, path: &Path) -> Result<(), TrainError> {
        let mut named = Vec::new();
        for (leaf, moments) in model.leaves().iter().zip(&self.moments) {
            let Some((m, v)) = moments else { continue };
            for (kind, moment) in [("m", m), ("v", v)] {
                let values = moment.clone().into_data().convert::<f32>().to_vec::<f32>();
                let values = values.expect("converted to f32 just before");
                named.push((format!("{kind}.{}", leaf.name), moment.dims(), values));
            }
        }
        let tensors = named.iter().map(|(name, dims, values)| (name.clone(), dims.clone(), Values::Float(values)));
        Ok(write_tensors(path, tensors.collect(), FloatType::F32)?)
    }

    /// Reads what [`Optimizer::save`] wrote for the same model.
    ///
    /// # Errors
    /// A missing, misshapen or non-finite tensor, by name.
    pub fn load(model: &Decoder<B>, path: &Path, device: &B::Device) -> Result<Self, TrainError> {
        let file = TensorFile::open(path)?;
        let mut moments = Vec::new();
        for named in model.leaves() {
            let read = |kind: &str| -> Result<Leaf<B>, TrainError> {
                let dims = named.leaf.dims();
                let values = file.read_weight(&format!("{kind}.{}", named.name), &dims, false)?;
                Ok(Leaf::from_data(TensorData::new(values, dims), device))
            };
            moments.push(if named.trainable { Some((read("m")?, read("v")?)) } else { None });
        }
        Ok(Self { moments })
    }
}
