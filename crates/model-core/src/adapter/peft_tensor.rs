//! Where an adapter's leaves stand in a peft file, and in which order.
//!
//! peft wraps the matrices of experts one around the other, so that `gate_up_proj` is the `base_layer` of `down_proj`. It
//! keeps A by experts, as memory does, and B by ranks: the column of rank `j` and expert `e` is `j · n + e`.
//!
//! peft from 0.19 on with transformers before 5 takes the inputs of experts for their outputs. Its files have the factors of
//! the transposed update, A as wide as the output and B as high as the input; they are told by their shapes.

use kernels_cubecl::LmBackend;

use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::hf::TensorFile;
use crate::hf::names::transposed;
use crate::leaves::NamedLeaf;

/// What peft puts before a name in the model.
const PREFIX: &str = "base_model.model.";

/// One tensor of a peft file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Sizes of the update, for experts.
    experts: Option<ExpertShape>,
    /// Experts and rank, where the order differs from that in memory.
    by_rank: Option<[usize; 2]>,
}

/// Sizes of the update of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpertShape {
    n: usize,
    r: usize,
    input: usize,
    output: usize,
}

/// Where the values of a leaf stand in a file with the transposed update: the tensor, what stands under the leaf's own name,
/// and the rows of the tensor's matrix of one expert.
struct Swapped {
    name: String,
    shape: Vec<usize>,
    partner_shape: Vec<usize>,
    by_rank: Option<[usize; 2]>,
    n: usize,
    rows: usize,
}

impl PeftTensor {
    /// Values of the leaf in the order of the file.
    ///
    /// # Panics
    /// When there are more or fewer than the shape says.
    pub fn to_file(&self, values: Vec<f32>) -> Vec<f32> {
        self.reordered(values, |file, memory, from, to| to[file] = from[memory])
    }

    /// Values of the file in the order of the leaf.
    ///
    /// # Panics
    /// When there are more or fewer than the shape says.
    pub fn from_file(&self, values: Vec<f32>) -> Vec<f32> {
        self.reordered(values, |file, memory, from, to| to[memory] = from[file])
    }

    /// Whether the file has the factors of the transposed update here; square matrices do not tell.
    pub(super) fn is_swapped_in(&self, file: &TensorFile) -> bool {
        let Some(pair) = self.swapped() else { return false };
        let has = |name: &str, shape: &[usize]| file.shape(name).is_ok_and(|got| got == shape);
        pair.partner_shape != self.shape && has(&self.name, &pair.partner_shape) && has(&pair.name, &pair.shape)
    }

    /// Reads the values of the leaf; with `swapped`, those of experts from the factors of the transposed update.
    ///
    /// # Errors
    /// When the tensor is missing, not finite or of another shape.
    pub(super) fn read(&self, file: &TensorFile, swapped: bool) -> Result<Vec<f32>, ModelError> {
        let Some(pair) = self.swapped().filter(|_| swapped) else {
            return Ok(self.from_file(file.read_weight(&self.name, &self.shape, false)?));
        };
        let values = file.read_weight(&pair.name, &pair.shape, false)?;
        let at = PeftTensor { name: pair.name, shape: pair.shape, experts: None, by_rank: pair.by_rank };
        Ok(transposed(&at.from_file(values), pair.n, pair.rows))
    }

    /// Where the values stand in a file with the transposed update; `None` for what is not of experts.
    fn swapped(&self) -> Option<Swapped> {
        let ExpertShape { n, r, input, output } = self.experts?;
        let (a, b) = (vec![n * r, output], vec![input, n * r]);
        Some(match self.by_rank {
            // A is made of the file's B.
            None => Swapped {
                name: self.name.replace("lora_A", "lora_B"),
                shape: b,
                partner_shape: a,
                by_rank: Some([n, r]),
                n,
                rows: input,
            },
            Some(_) => Swapped {
                name: self.name.replace("lora_B", "lora_A"),
                shape: a,
                partner_shape: b,
                by_rank: None,
                n,
                rows: r,
            },
        })
    }

    /// Calls `put` with the place of every value in the file and in memory.
    fn reordered(&self, values: Vec<f32>, put: impl Fn(usize, usize, &[f32], &mut [f32])) -> Vec<f32> {
        assert_eq!(values.len(), self.shape.iter().product::<usize>(), "values of `{}` {:?}", self.name, self.shape);
        let Some([n, r]) = self.by_rank else { return values };
        let rows = self.shape[0];
        let mut out = vec![0.0; values.len()];
        for row in 0..rows {
            for rank in 0..r {
                for expert in 0..n {
                    let (file, memory) = ((row * r + rank) * n + expert, (expert * rows + row) * r + rank);
                    put(file, memory, &values, &mut out);
                }
            }
        }
        out
    }
}

impl<B: LmBackend> Decoder<B> {
    /// The leaves of the attached adapter with their places in a peft file, in the order of [`Decoder::leaves`].
    pub fn peft_tensors(&self) -> Vec<(NamedLeaf<B>, PeftTensor)> {
        let leaves = self.leaves();
        let wraps = |prefix: &str| leaves.iter().any(|leaf| leaf.name == format!("{prefix}.down_proj.lora_A.weight"));
        let n = self.config.experts().map_or(1, |experts| experts.n);
        let (d_model, d_ff) = (self.config.d_model, self.config.d_ff);
        let tensor = |leaf: &NamedLeaf<B>| {
            let dims = leaf.leaf.dims();
            let plain = PeftTensor {
                name: format!("{PREFIX}{}", leaf.name),
                shape: dims.clone(),
                experts: None,
                by_rank: None,
            };
            let Some((prefix, rest)) = leaf.name.split_once(".experts.") else { return plain };
            let (projection, matrix) = rest.split_once('.').unwrap_or((rest, ""));
            let prefix = format!("{prefix}.experts");
            let within = if projection == "gate_up_proj" && wraps(&prefix) { ".base_layer" } else { "" };
            let name = format!("{PREFIX}{prefix}{within}.{matrix}");
            let [input, output] = if projection == "down_proj" { [d_ff, d_model] } else { [d_model, 2 * d_ff] };
            let is_b = matrix.starts_with("lora_B");
            let r = if is_b { dims[1] } else { dims[0] / n };
            PeftTensor {
                name,
                shape: if is_b { vec![output, n * r] } else { dims },
                experts: Some(ExpertShape { n, r, input, output }),
                by_rank: is_b.then_some([n, r]),
            }
        };
        leaves.iter().filter(|leaf| leaf.is_adapter()).map(|leaf| (leaf.clone(), tensor(leaf))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b_is_by_ranks_in_the_file() {
        let tensor = PeftTensor { name: String::new(), shape: vec![2, 6], experts: None, by_rank: Some([3, 2]) };
        // Row, expert and rank of each value in memory, by experts.
        let memory: Vec<f32> =
            (0..3).flat_map(|e| (0..2).flat_map(move |o| (0..2).map(move |j| (100 * o + 10 * e + j) as f32))).collect();
        let file = tensor.to_file(memory.clone());
        assert_eq!(file[..6], [0.0, 10.0, 20.0, 1.0, 11.0, 21.0]);
        assert_eq!(file[6..], [100.0, 110.0, 120.0, 101.0, 111.0, 121.0]);
        assert_eq!(tensor.from_file(file), memory);
    }
}
