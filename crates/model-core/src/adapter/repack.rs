//! Experts back in MXFP4 after a merge, and what the rounding costs.
//!
//! A weight from an MXFP4 checkpoint lies on a grid of four bits. An update that is small beside the grid's steps mostly falls
//! back onto the number it came from, so the error is also measured against the update.

use kernels_cubecl::{Leaf, LmBackend, Mxfp4, Packed, quantise_mxfp4_closest};

use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::hf::names::leaf_values;
use crate::hf::{LeafMap, decode_experts, encode_experts, leaf_map};
use crate::layers::ExpertWeight;

/// What rounding to MXFP4 did to one weight of experts. Norms are those of all numbers of the weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Repacked {
    /// The weight's name in memory.
    pub name: String,
    /// Norm of the rounding error over that of the weight.
    pub relative_error: f64,
    /// Norm of the merged update over that of the weight.
    pub relative_update: f64,
    /// Norm of the rounding error over that of the update, infinite where there is none.
    pub error_over_update: f64,
    /// The part of the update that is left: what changed in the direction of the update, over the update; NaN where there is none.
    pub update_kept: f64,
}

impl<B: LmBackend> Decoder<B> {
    /// Rounds the weights of experts to MXFP4; those that are packed stay as they are. `base` is the same model before the merge.
    ///
    /// # Errors
    /// When the model has no experts, an adapter is attached, or rows are no whole blocks.
    ///
    /// # Numerics
    /// The rounding of [`quantise_mxfp4_closest`], errors in f64.
    pub fn pack_experts(&mut self, base: &Self) -> Result<Vec<Repacked>, ModelError> {
        self.refuse_adapter("pack")?;
        let maps: Vec<LeafMap> = leaf_map(&self.config).into_iter().filter(|map| map.n_experts.is_some()).collect();
        if maps.is_empty() {
            let (expected, got) = ("a model with experts, to pack them".to_owned(), "one without".to_owned());
            return Err(ModelError::ConfigUnsupported { key: "model_type".to_owned(), expected, got });
        }
        let device = self.embedding.device();
        let before: Vec<&ExpertWeight<B>> = base.expert_weights();
        let mut packed = Vec::with_capacity(maps.len());
        let mut told = Vec::new();
        for ((map, weight), before) in maps.iter().zip(self.expert_weights()).zip(before) {
            let ExpertWeight::Dense(weight) = weight else {
                packed.push(None);
                continue;
            };
            let values = leaf_values(Leaf::Matrix(weight.clone()));
            let [blocks, scales] = encode_experts(&values, map, quantise_mxfp4_closest)?;
            let before = match before {
                ExpertWeight::Dense(weight) => leaf_values(Leaf::Matrix(weight.clone())),
                ExpertWeight::Packed(weight) => leaf_values(Leaf::Matrix(weight.decode())),
            };
            told.push(compare(map.leaf.clone(), &before, &values, &decode_experts(&blocks, &scales, map)?));
            let matrix = Mxfp4::from_bytes(&blocks, &scales, [map.dims[0], map.dims[1]], &device)?;
            packed.push(Some(Packed::Mxfp4(matrix)));
        }
        let layers = self.mixtures_mut().into_iter().flat_map(|(_, moe)| [&mut moe.gate_up, &mut moe.down]);
        for (layer, packed) in layers.zip(packed) {
            if let Some(packed) = packed {
                layer.weight = ExpertWeight::Packed(packed);
            }
        }
        Ok(told)
    }

    /// In the order of the leaves.
    fn expert_weights(&self) -> Vec<&ExpertWeight<B>> {
        let layers = self.mixtures().into_iter().flat_map(|(_, moe)| [&moe.gate_up, &moe.down]);
        layers.map(|layer| &layer.weight).collect()
    }
}

fn compare(name: String, before: &[f32], merged: &[f32], rounded: &[f32]) -> Repacked {
    let (mut weight, mut update, mut error, mut kept) = (0.0, 0.0, 0.0, 0.0);
    for ((before, merged), rounded) in before.iter().zip(merged).zip(rounded) {
        let [before, merged, rounded] = [before, merged, rounded].map(|x| f64::from(*x));
        weight += merged * merged;
        update += (merged - before).powi(2);
        error += (rounded - merged).powi(2);
        kept += (rounded - before) * (merged - before);
    }
    Repacked {
        name,
        relative_error: (error / weight).sqrt(),
        relative_update: (update / weight).sqrt(),
        error_over_update: (error / update).sqrt(),
        update_kept: kept / update,
    }
}
