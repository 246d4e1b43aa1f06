//! The optimizer's state in a safetensors file.
//!
//! Full moments are `m.<leaf>` and `v.<leaf>`; packed ones `m.codes.<leaf>`, `m.scales.<leaf>`, `v.codes.<leaf>` and
//! `v.scales.<leaf>`; the lower halves of bf16 weights are `remainder.<leaf>`. All are stored as they are in memory.

use std::path::Path;

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels_cubecl::{Leaf, LmBackend, Master, Moments, PackedMoments, Piece};
use model_core::hf::tensor_file::Values;
use model_core::hf::{FloatType, TensorFile, write_tensors};
use model_core::{Decoder, NamedLeaf};

use super::{LeafState, Optimizer};
use crate::{TrainConfig, TrainError};

impl<B: LmBackend> LeafState<B> {
    /// Every tensor of the state with its name.
    fn pieces(&self, leaf: &str) -> Vec<(String, Piece<B>)> {
        let mut out = Vec::new();
        let mut add = |kind: &str, piece: Piece<B>| out.push((format!("{kind}.{leaf}"), piece));
        match &self.moments {
            Moments::Full { m, v } => {
                for (kind, moment) in [("m", m), ("v", v)] {
                    add(kind, Piece::Float(moment.clone()));
                }
            }
            Moments::Packed(PackedMoments { m, m_scale, v, v_scale }) => {
                for (kind, codes, scales) in [("m", m, m_scale), ("v", v, v_scale)] {
                    add(&format!("{kind}.codes"), Piece::Int(codes.clone()));
                    add(&format!("{kind}.scales"), Piece::Float(Leaf::Vector(scales.clone())));
                }
            }
        }
        if let Master::Remainder(remainder) = &self.master {
            add("remainder", Piece::Int(remainder.clone()));
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
    /// The tensors of every trainable leaf's state, with their names in the file.
    pub(crate) fn pieces(&self, model: &Decoder<B>) -> Vec<(String, Piece<B>)> {
        let states = model.leaves().into_iter().zip(&self.states);
        states.filter_map(|(leaf, state)| Some(state.as_ref()?.pieces(&leaf.name))).flatten().collect()
    }

    /// Reads what `save_tensors` wrote for the same model and configuration.
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

/// Writes the values of [`Optimizer::pieces`], as they are in memory.
///
/// # Errors
/// As [`write_tensors`].
pub(crate) fn save_tensors(tensors: &[(String, TensorData)], path: &Path) -> Result<(), TrainError> {
    let tensors = tensors.iter().map(|(name, data)| (name.clone(), data.shape.to_vec(), values(data)));
    Ok(write_tensors(path, tensors.collect(), FloatType::F32)?)
}

/// The values of a state's tensor, which are f32 or 32-bit words.
fn values(data: &TensorData) -> Values<'_> {
    match data.dtype {
        DType::F32 => Values::Float(data.as_slice().expect("f32, as just seen")),
        _ => Values::Words(data.as_slice().expect("the optimizer's state is f32 or i32")),
    }
}
