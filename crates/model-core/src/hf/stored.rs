//! The forms in which a leaf's weights can stand in a checkpoint: Hugging Face tensors, OpenAI's original ones, and experts
//! in MXFP4 under either name.

use kernels_cubecl::{Cpu, KernelError, MXFP4_BLOCK, MXFP4_BYTES, Mxfp4};
use rayon::prelude::*;

use super::names::{LeafMap, Part};
use crate::error::ModelError;

/// Tensor that tells OpenAI's original names.
const ORIGINAL_MARK: &str = "embedding.weight";

/// How the weights of one leaf stand in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Float tensors: the rows of the leaf one after the other; with experts each matrix is transposed.
    Parts(Vec<Part>),
    /// One float tensor with the values of the leaf in their order.
    Whole {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Experts in MXFP4: codes `[n, out, in / 32, 16]` and scales `[n, out, in / 32]`.
    Packed(PackedNames),
}

/// The two tensors of packed experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedNames {
    /// The codes.
    pub blocks: String,
    /// The scales.
    pub scales: String,
}

impl PackedNames {
    /// As transformers names them.
    pub(super) fn hugging_face(leaf: &str) -> Self {
        PackedNames { blocks: format!("{leaf}_blocks"), scales: format!("{leaf}_scales") }
    }

    fn original(name: &str) -> Self {
        PackedNames { blocks: format!("{name}.blocks"), scales: format!("{name}.scales") }
    }
}

/// Where a leaf is to be looked for; with `packed`, experts must be in MXFP4.
pub(super) fn stored(map: &LeafMap, packed: bool, has: &dyn Fn(&str) -> bool) -> Stored {
    let original = if has(ORIGINAL_MARK) { original_name(&map.leaf) } else { None };
    let names = match &original {
        Some(name) => PackedNames::original(name),
        None => PackedNames::hugging_face(&map.leaf),
    };
    if map.n_experts.is_some() && (packed || has(&names.blocks) || has(&names.scales)) {
        return Stored::Packed(names);
    }
    match (original, map.n_experts) {
        (Some(name), Some(n)) => Stored::Whole { name, shape: vec![n, map.dims[0] / n, map.dims[1]] },
        (Some(name), None) if map.parts.len() == 1 => Stored::Whole { name, shape: map.parts[0].shape.clone() },
        (Some(name), None) => Stored::Whole { name, shape: map.dims.clone() },
        (None, _) => Stored::Parts(map.parts.clone()),
    }
}

impl Stored {
    /// The names of all tensors.
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Stored::Parts(parts) => parts.iter().map(|part| part.name.as_str()).collect(),
            Stored::Whole { name, .. } => vec![name],
            Stored::Packed(names) => vec![&names.blocks, &names.scales],
        }
    }
}

/// Shapes of the codes and scales of a leaf of experts.
///
/// # Errors
/// [`ModelError::ConfigInvalid`] when the rows are no whole blocks.
pub(super) fn packed_shapes(map: &LeafMap) -> Result<[Vec<usize>; 2], ModelError> {
    let (n, columns) = (map.n_experts.unwrap_or(1), map.dims[1]);
    if !columns.is_multiple_of(MXFP4_BLOCK) {
        let expected = format!("multiples of {MXFP4_BLOCK} for experts in MXFP4");
        return Err(ModelError::ConfigInvalid {
            key: "hidden_size, intermediate_size".to_owned(),
            expected,
            got: format!("rows of {columns} in {}", map.leaf),
        });
    }
    let scales = vec![n, map.dims[0] / n, columns / MXFP4_BLOCK];
    Ok([[scales.as_slice(), &[MXFP4_BYTES]].concat(), scales])
}

/// The numbers of a leaf of packed experts on the host.
pub(crate) fn decode(blocks: &[u8], scales: &[u8], map: &LeafMap) -> Result<Vec<f32>, ModelError> {
    let n = map.n_experts.unwrap_or(1);
    let dims = [map.dims[0] / n, map.dims[1]];
    let (n_blocks, n_scales) = (blocks.len() / n, scales.len() / n);
    let one = |(blocks, scales): (&[u8], &[u8])| -> Result<Vec<f32>, ModelError> {
        let matrix = Mxfp4::<Cpu>::from_bytes(blocks, scales, dims, &Default::default())?;
        Ok(matrix.decode().into_data().into_vec().expect("the CPU's floats are f32"))
    };
    let experts: Result<Vec<_>, _> = blocks.par_chunks(n_blocks).zip(scales.par_chunks(n_scales)).map(one).collect();
    Ok(experts?.concat())
}

/// How numbers become codes and scales.
type Rounding = fn(&[f32]) -> Result<(Vec<u8>, Vec<u8>), KernelError>;

/// Codes and scales of a leaf of experts.
pub(crate) fn encode(values: &[f32], map: &LeafMap, round: Rounding) -> Result<[Vec<u8>; 2], ModelError> {
    packed_shapes(map)?;
    let pieces: Result<Vec<_>, _> = values.par_chunks(map.dims[1]).map(round).collect();
    let (blocks, scales): (Vec<_>, Vec<_>) = pieces?.into_iter().unzip();
    Ok([blocks.concat(), scales.concat()])
}

/// OpenAI's name of a leaf of GPT-OSS; their query, key and value projection is fused like ours.
fn original_name(leaf: &str) -> Option<String> {
    match leaf {
        "model.embed_tokens.weight" => return Some(ORIGINAL_MARK.to_owned()),
        "model.norm.weight" => return Some("norm.scale".to_owned()),
        "lm_head.weight" => return Some("unembedding.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = leaf.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part {
        "input_layernorm.weight" => "attn.norm.scale",
        "self_attn.qkv_proj.weight" => "attn.qkv.weight",
        "self_attn.qkv_proj.bias" => "attn.qkv.bias",
        "self_attn.o_proj.weight" => "attn.out.weight",
        "self_attn.o_proj.bias" => "attn.out.bias",
        "self_attn.sinks" => "attn.sinks",
        "post_attention_layernorm.weight" => "mlp.norm.scale",
        "mlp.router.weight" => "mlp.gate.weight",
        "mlp.router.bias" => "mlp.gate.bias",
        "mlp.experts.gate_up_proj" => "mlp.mlp1_weight",
        "mlp.experts.gate_up_proj_bias" => "mlp.mlp1_bias",
        "mlp.experts.down_proj" => "mlp.mlp2_weight",
        "mlp.experts.down_proj_bias" => "mlp.mlp2_bias",
        _ => return None,
    };
    Some(format!("block.{layer}.{part}"))
}

#[cfg(test)]
mod tests;
