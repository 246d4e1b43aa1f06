//! Where an adapter's leaves stand in a peft file, and in which order.
//!
//! peft wraps the matrices of experts one around the other, so that `gate_up_proj` is the `base_layer` of `down_proj`. It
//! keeps A by experts, as memory does, and B by ranks: the column of rank `j` and expert `e` is `j · n + e`.

use kernels_cubecl::LmBackend;

use crate::decoder::Decoder;
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
    /// Experts and rank, where the order differs from that in memory.
    by_rank: Option<[usize; 2]>,
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
        let n_experts = self.config.experts().map_or(1, |experts| experts.n);
        let tensor = |leaf: &NamedLeaf<B>| {
            let dims = leaf.leaf.dims();
            let plain = PeftTensor { name: format!("{PREFIX}{}", leaf.name), shape: dims.clone(), by_rank: None };
            let Some((prefix, rest)) = leaf.name.split_once(".experts.") else { return plain };
            let (projection, matrix) = rest.split_once('.').unwrap_or((rest, ""));
            let prefix = format!("{prefix}.experts");
            let within = if projection == "gate_up_proj" && wraps(&prefix) { ".base_layer" } else { "" };
            let name = format!("{PREFIX}{prefix}{within}.{matrix}");
            match matrix.starts_with("lora_B") {
                false => PeftTensor { name, shape: dims, by_rank: None },
                true => {
                    let [rows, r] = [dims[0] / n_experts, dims[1]];
                    PeftTensor { name, shape: vec![rows, n_experts * r], by_rank: Some([n_experts, r]) }
                }
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
        let tensor = PeftTensor { name: String::new(), shape: vec![2, 6], by_rank: Some([3, 2]) };
        // Row, expert and rank of each value in memory, by experts.
        let memory: Vec<f32> =
            (0..3).flat_map(|e| (0..2).flat_map(move |o| (0..2).map(move |j| (100 * o + 10 * e + j) as f32))).collect();
        let file = tensor.to_file(memory.clone());
        assert_eq!(file[..6], [0.0, 10.0, 20.0, 1.0, 11.0, 21.0]);
        assert_eq!(file[6..], [100.0, 110.0, 120.0, 101.0, 111.0, 121.0]);
        assert_eq!(tensor.from_file(file), memory);
    }
}
