//! The map between leaves in memory and Hugging Face tensors: a bijection, fused leaves are row blocks in order.

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use kernels_cubecl::Leaf;

use crate::config::ModelConfig;

/// One leaf and the Hugging Face tensors that its rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafMap {
    /// Name in memory.
    pub leaf: String,
    /// Shape in memory: one or two dimensions.
    pub dims: Vec<usize>,
    /// The tensors, in row order; a single one except for fused leaves.
    pub parts: Vec<Part>,
}

/// One Hugging Face tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// How many rows of the leaf it is.
    pub rows: usize,
}

impl LeafMap {
    fn whole(name: String, dims: &[usize]) -> Self {
        let parts = vec![Part { name: name.clone(), rows: dims[0] }];
        LeafMap { leaf: name, dims: dims.to_vec(), parts }
    }

    fn fused(prefix: &str, leaf: &str, parts: &[(&str, usize)], columns: usize) -> Self {
        let name = |projection: &str| format!("{prefix}.{projection}.weight");
        LeafMap {
            leaf: name(leaf),
            dims: vec![parts.iter().map(|(_, rows)| rows).sum(), columns],
            parts: parts.iter().map(|(part, rows)| Part { name: name(part), rows: *rows }).collect(),
        }
    }

    /// Shape of one of the parts.
    pub fn part_shape(&self, part: &Part) -> Vec<usize> {
        std::iter::once(part.rows).chain(self.dims[1..].iter().copied()).collect()
    }
}

/// Every leaf of a model without adapters, in the order of [`crate::Decoder::leaves`].
pub fn leaf_map(config: &ModelConfig) -> Vec<LeafMap> {
    let (d_model, heads) = (config.d_model, config.heads());
    let (q_rows, kv_rows) = (heads.q_width(), heads.kv_width());
    let qkv = [("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)];
    let gate_up = [("gate_proj", config.d_ff), ("up_proj", config.d_ff)];
    let mut map = vec![LeafMap::whole("model.embed_tokens.weight".to_owned(), &[config.vocab_size, d_model])];
    for i in 0..config.n_layers {
        let block = format!("model.layers.{i}");
        let (attention, mlp) = (format!("{block}.self_attn"), format!("{block}.mlp"));
        map.push(LeafMap::whole(format!("{block}.input_layernorm.weight"), &[d_model]));
        map.push(LeafMap::fused(&attention, "qkv_proj", &qkv, d_model));
        map.push(LeafMap::whole(format!("{attention}.o_proj.weight"), &[d_model, q_rows]));
        map.push(LeafMap::whole(format!("{block}.post_attention_layernorm.weight"), &[d_model]));
        map.push(LeafMap::fused(&mlp, "gate_up_proj", &gate_up, d_model));
        map.push(LeafMap::whole(format!("{mlp}.down_proj.weight"), &[d_model, config.d_ff]));
    }
    map.push(LeafMap::whole("model.norm.weight".to_owned(), &[d_model]));
    if !config.tied {
        map.push(LeafMap::whole("lm_head.weight".to_owned(), &[config.vocab_size, d_model]));
    }
    map
}

/// Name and shape of every Hugging Face tensor of the model.
pub fn hf_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let parts = |leaf: &LeafMap| -> Vec<_> {
        leaf.parts.iter().map(|part| (part.name.clone(), leaf.part_shape(part))).collect()
    };
    leaf_map(config).iter().flat_map(parts).collect()
}

/// Splits the values of one leaf (a weight or its gradient, row by row) into its Hugging Face tensors.
///
/// # Panics
/// When `values` has another length than the leaf.
pub fn split_leaf<'v>(map: &LeafMap, values: &'v [f32]) -> Vec<(String, Vec<usize>, &'v [f32])> {
    assert_eq!(values.len(), map.dims.iter().product::<usize>(), "values of leaf `{}` {:?}", map.leaf, map.dims);
    let columns: usize = map.dims[1..].iter().product();
    let mut rest = values;
    let mut out = Vec::with_capacity(map.parts.len());
    for part in &map.parts {
        let (rows, left) = rest.split_at(part.rows * columns);
        out.push((part.name.clone(), map.part_shape(part), rows));
        rest = left;
    }
    out
}

/// The leaf whose rows, one after the other, are `values`.
///
/// # Panics
/// When `values` has another length than the leaf.
pub fn leaf_from_values<B: Backend>(map: &LeafMap, values: Vec<f32>, device: &B::Device) -> Leaf<B> {
    Leaf::from_data(TensorData::new(values, map.dims.clone()), device)
}

/// The values of a leaf, row by row, as f32 on the host.
pub fn leaf_values<B: Backend>(leaf: Leaf<B>) -> Vec<f32> {
    leaf.into_data().convert::<f32>().into_vec().expect("data converted to f32 is a vector of f32")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn config(tied: bool) -> ModelConfig {
        ModelConfig { tied, ..ModelConfig::preset("1b").unwrap() }
    }

    #[test]
    fn the_map_is_a_bijection_that_covers_every_parameter() {
        for config in [config(true), config(false), ModelConfig::from_depth(3, 97)] {
            let map = leaf_map(&config);
            let leaves: HashSet<_> = map.iter().map(|l| &l.leaf).collect();
            let shapes = hf_shapes(&config);
            let names: HashSet<_> = shapes.iter().map(|(name, _)| name).collect();
            assert_eq!(leaves.len(), map.len());
            assert_eq!(names.len(), shapes.len());
            let count: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(count as u64, config.n_params());
            for leaf in &map {
                assert_eq!(leaf.parts.iter().map(|p| p.rows).sum::<usize>(), leaf.dims[0], "{}", leaf.leaf);
            }
        }
    }

    #[test]
    fn splitting_gives_the_rows_in_order() {
        let map = LeafMap::fused("p", "ab", &[("a", 1), ("b", 2)], 2);
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let parts = split_leaf(&map, &values);
        assert_eq!(parts[0], ("p.a.weight".to_owned(), vec![1, 2], &values[..2]));
        assert_eq!(parts[1], ("p.b.weight".to_owned(), vec![2, 2], &values[2..]));
    }
}
