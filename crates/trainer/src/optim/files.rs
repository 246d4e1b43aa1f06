//! The optimizer's state in a safetensors file.
//!
//! Full moments are `m.<leaf>` and `v.<leaf>`; packed ones `m.codes.<leaf>`, `m.scales.<leaf>`, `v.codes.<leaf>` and
//! `v.scales.<leaf>`; the lower halves of bf16 weights are `remainder.<leaf>`. All are stored as they are in memory.

use std::path::Path;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use kernels_cubecl::{Leaf, LmBackend, Master, Moments, PackedMoments};
use model_core::hf::tensor_file::Values;
use model_core::hf::{FloatType, TensorFile, write_tensors};
use model_core::{Decoder, NamedLeaf};

use super::{LeafState, Optimizer};
use crate::{TrainConfig, TrainError};

/// A tensor on its way into the file.
enum Stored {
    Float(Vec<f32>),
    Words(Vec<i32>),
}

impl Stored {
    fn view(&self) -> Values<'_> {
        match self {
            Self::Float(values) => Values::Float(values),
            Self::Words(values) => Values::Words(values),
        }
    }
}

fn floats(data: TensorData) -> Stored {
    Stored::Float(data.convert::<f32>().into_vec().expect("converted to f32 just before"))
}

fn words<B: Backend>(tensor: &Tensor<B, 1, Int>) -> (Vec<usize>, Stored) {
    let data = tensor.clone().into_data().convert::<i32>();
    (data.shape.to_vec(), Stored::Words(data.into_vec().expect("converted to i32 just before")))
}

impl<B: LmBackend> LeafState<B> {
    /// Every tensor of the state with its name.
    fn tensors(&self, leaf: &str) -> Vec<(String, Vec<usize>, Stored)> {
        let mut out = Vec::new();
        let mut add =
            |kind: &str, (dims, values): (Vec<usize>, Stored)| out.push((format!("{kind}.{leaf}"), dims, values));
        match &self.moments {
            Moments::Full { m, v } => {
                for (kind, moment) in [("m", m), ("v", v)] {
                    add(kind, (moment.dims(), floats(moment.clone().into_data())));
                }
            }
            Moments::Packed(PackedMoments { m, m_scale, v, v_scale }) => {
                for (kind, codes, scales) in [("m", m, m_scale), ("v", v, v_scale)] {
                    add(&format!("{kind}.codes"), words(codes));
                    add(&format!("{kind}.scales"), (scales.dims().to_vec(), floats(scales.clone().into_data())));
                }
            }
        }
        if let Master::Remainder(remainder) = &self.master {
            add("remainder", words(remainder));
        }
        out
    }

    /// Fills a fresh state with what the file has.
    fn read(self, file: &TensorFile, leaf: &str, device: &B::Device) -> Result<Self, TrainError> {
        let name = |kind: &str| format!("{kind}.{leaf}");
        let words = |kind: &str, like: &Tensor<B, 1, Int>| -> Result<Tensor<B, 1, Int>, TrainError> {
            let [n] = like.dims();
            let values = file.read_words(&name(kind), n)?;
            Ok(Tensor::from_data(TensorData::new(values, [n]), (device, DType::I32)))
        };
        let scales = |kind: &str, like: &Tensor<B, 1>| -> Result<Tensor<B, 1>, TrainError> {
            let [n] = like.dims();
            let values = file.read_weight(&name(kind), &[n], false)?;
            Ok(Tensor::from_data(TensorData::new(values, [n]), (device, DType::F32)))
        };
        let moment = |kind: &str, like: &Leaf<B>| -> Result<Leaf<B>, TrainError> {
            let values = file.read_weight(&name(kind), &like.dims(), false)?;
            Ok(match like {
                Leaf::Vector(x) => {
                    Leaf::Vector(Tensor::from_data(TensorData::new(values, x.dims()), (device, DType::F32)))
                }
                Leaf::Matrix(x) => {
                    Leaf::Matrix(Tensor::from_data(TensorData::new(values, x.dims()), (device, DType::F32)))
                }
            })
        };
        let moments = match &self.moments {
            Moments::Full { m, v } => Moments::Full { m: moment("m", m)?, v: moment("v", v)? },
            Moments::Packed(packed) => Moments::Packed(PackedMoments {
                m: words("m.codes", &packed.m)?,
                m_scale: scales("m.scales", &packed.m_scale)?,
                v: words("v.codes", &packed.v)?,
                v_scale: scales("v.scales", &packed.v_scale)?,
            }),
        };
        let master = match &self.master {
            Master::Remainder(remainder) => Master::Remainder(words("remainder", remainder)?),
            other => other.clone(),
        };
        Ok(Self { master, moments })
    }
}

impl<B: LmBackend> Optimizer<B> {
    /// Writes the state of every trainable leaf.
    ///
    /// # Errors
    /// As [`write_tensors`].
    pub fn save(&self, model: &Decoder<B>, path: &Path) -> Result<(), TrainError> {
        let states = model.leaves().into_iter().zip(&self.states);
        let tensors: Vec<_> =
            states.filter_map(|(leaf, state)| Some(state.as_ref()?.tensors(&leaf.name))).flatten().collect();
        let tensors = tensors.iter().map(|(name, dims, values)| (name.clone(), dims.clone(), values.view()));
        Ok(write_tensors(path, tensors.collect(), FloatType::F32)?)
    }

    /// Reads what [`Optimizer::save`] wrote for the same model and configuration.
    ///
    /// # Errors
    /// A missing, misshapen or non-finite tensor, by name.
    pub fn load(model: &Decoder<B>, config: &TrainConfig, path: &Path, device: &B::Device) -> Result<Self, TrainError> {
        let file = TensorFile::open(path)?;
        let read = |named: NamedLeaf<B>| -> Result<Option<LeafState<B>>, TrainError> {
            if !named.trainable {
                return Ok(None);
            }
            LeafState::new(&named.leaf, config, device).read(&file, &named.name, device).map(Some)
        };
        Ok(Self { states: model.leaves().into_iter().map(read).collect::<Result<_, _>>()? })
    }
}
