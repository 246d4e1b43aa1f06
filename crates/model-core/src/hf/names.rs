//! The map between leaves in memory and Hugging Face tensors: a bijection. Fused leaves are row blocks in order, experts'
//! matrices are transposed one by one.

use std::borrow::Cow;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use kernels_cubecl::Leaf;
use rayon::prelude::*;

use crate::config::ModelConfig;

/// One leaf and the Hugging Face tensors that it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafMap {
    /// Name in memory.
    pub leaf: String,
    /// Shape in memory: one or two dimensions.
    pub dims: Vec<usize>,
    /// The tensors, in row order; a single one except for fused leaves.
    pub parts: Vec<Part>,
    /// Set for matrices of experts: the file has `[n, in, out]` where memory has `[n · out, in]`.
    pub n_experts: Option<usize>,
}

/// One Hugging Face tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How many rows of the leaf it is.
    pub rows: usize,
}

impl LeafMap {
    fn whole(name: String, dims: &[usize]) -> Self {
        Self::reshaped(name, dims, dims)
    }

    /// A leaf whose only tensor has the same values in another shape.
    fn reshaped(name: String, dims: &[usize], shape: &[usize]) -> Self {
        let parts = vec![Part { name: name.clone(), shape: shape.to_vec(), rows: dims[0] }];
        LeafMap { leaf: name, dims: dims.to_vec(), parts, n_experts: None }
    }

    /// `name` maps a projection to the name of its tensor; `columns` is empty for a vector.
    fn fused(leaf: &str, parts: &[(&str, usize)], columns: &[usize], name: impl Fn(&str) -> String) -> Self {
        let shape = |rows: usize| std::iter::once(rows).chain(columns.iter().copied()).collect::<Vec<_>>();
        LeafMap {
            leaf: name(leaf),
            dims: shape(parts.iter().map(|(_, rows)| rows).sum()),
            parts: parts
                .iter()
                .map(|(part, rows)| Part { name: name(part), shape: shape(*rows), rows: *rows })
                .collect(),
            n_experts: None,
        }
    }

    /// Matrices `[out, in]` of `n` experts.
    fn experts(name: String, n: usize, [out, columns]: [usize; 2]) -> Self {
        let map = Self::reshaped(name, &[n * out, columns], &[n, columns, out]);
        LeafMap { n_experts: Some(n), ..map }
    }
}

/// Every leaf of a model without adapters and without packed weights, in the order of [`crate::Decoder::leaves`].
pub fn leaf_map(config: &ModelConfig) -> Vec<LeafMap> {
    let d_model = config.d_model;
    let mut map = vec![LeafMap::whole("model.embed_tokens.weight".to_owned(), &[config.vocab_size, d_model])];
    for i in 0..config.n_layers {
        let block = format!("model.layers.{i}");
        map.push(LeafMap::whole(format!("{block}.input_layernorm.weight"), &[d_model]));
        map_attention(config, &format!("{block}.self_attn"), &mut map);
        map.push(LeafMap::whole(format!("{block}.post_attention_layernorm.weight"), &[d_model]));
        map_feed_forward(config, &format!("{block}.mlp"), &mut map);
    }
    map.push(LeafMap::whole("model.norm.weight".to_owned(), &[d_model]));
    if !config.tied {
        map.push(LeafMap::whole("lm_head.weight".to_owned(), &[config.vocab_size, d_model]));
    }
    map
}

fn map_attention(config: &ModelConfig, prefix: &str, map: &mut Vec<LeafMap>) {
    let (d_model, heads, biased) = (config.d_model, config.heads(), config.as_gpt_oss().is_some());
    let (q_rows, kv_rows) = (heads.q_width(), heads.kv_width());
    let qkv = [("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)];
    map.push(LeafMap::fused("qkv_proj", &qkv, &[d_model], |part| format!("{prefix}.{part}.weight")));
    if biased {
        map.push(LeafMap::fused("qkv_proj", &qkv, &[], |part| format!("{prefix}.{part}.bias")));
    }
    map.push(LeafMap::whole(format!("{prefix}.o_proj.weight"), &[d_model, q_rows]));
    if biased {
        map.push(LeafMap::whole(format!("{prefix}.o_proj.bias"), &[d_model]));
        map.push(LeafMap::whole(format!("{prefix}.sinks"), &[config.n_heads]));
    }
}

fn map_feed_forward(config: &ModelConfig, prefix: &str, map: &mut Vec<LeafMap>) {
    let (d_model, d_ff) = (config.d_model, config.d_ff);
    let Some(experts) = config.experts() else {
        let gate_up = [("gate_proj", d_ff), ("up_proj", d_ff)];
        map.push(LeafMap::fused("gate_up_proj", &gate_up, &[d_model], |part| format!("{prefix}.{part}.weight")));
        map.push(LeafMap::whole(format!("{prefix}.down_proj.weight"), &[d_model, d_ff]));
        return;
    };
    let n = experts.n;
    map.push(LeafMap::whole(format!("{prefix}.router.weight"), &[n, d_model]));
    map.push(LeafMap::whole(format!("{prefix}.router.bias"), &[n]));
    for (name, [out, columns]) in [("gate_up_proj", [2 * d_ff, d_model]), ("down_proj", [d_model, d_ff])] {
        let name = format!("{prefix}.experts.{name}");
        map.push(LeafMap::experts(name.clone(), n, [out, columns]));
        map.push(LeafMap::reshaped(format!("{name}_bias"), &[n * out], &[n, out]));
    }
}

/// Name and shape of every Hugging Face tensor of the model.
pub fn hf_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let parts =
        |leaf: &LeafMap| -> Vec<_> { leaf.parts.iter().map(|part| (part.name.clone(), part.shape.clone())).collect() };
    leaf_map(config).iter().flat_map(parts).collect()
}

/// Splits the values of one leaf (a weight or its gradient, row by row) into its Hugging Face tensors.
///
/// # Panics
/// When `values` has another length than the leaf.
pub fn split_leaf<'v>(map: &LeafMap, values: &'v [f32]) -> Vec<(String, Vec<usize>, Cow<'v, [f32]>)> {
    assert_eq!(values.len(), map.dims.iter().product::<usize>(), "values of leaf `{}` {:?}", map.leaf, map.dims);
    if let Some(n) = map.n_experts {
        let part = &map.parts[0];
        let values = transposed(values, n, map.dims[0] / n);
        return vec![(part.name.clone(), part.shape.clone(), Cow::Owned(values))];
    }
    let columns: usize = map.dims[1..].iter().product();
    let mut rest = values;
    let mut out = Vec::with_capacity(map.parts.len());
    for part in &map.parts {
        let (rows, left) = rest.split_at(part.rows * columns);
        out.push((part.name.clone(), part.shape.clone(), Cow::Borrowed(rows)));
        rest = left;
    }
    out
}

/// The values of `n` matrices of `rows` rows, each of them transposed.
pub(crate) fn transposed(values: &[f32], n: usize, rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    let size = values.len() / n.max(1);
    if size == 0 {
        return out;
    }
    let columns = size / rows;
    out.par_chunks_mut(size).zip(values.par_chunks(size)).for_each(|(out, matrix)| {
        for (column, out) in out.chunks_mut(rows).enumerate() {
            for (row, out) in out.iter_mut().enumerate() {
                *out = matrix[row * columns + column];
            }
        }
    });
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
        let gpt_oss = ModelConfig::preset("gpt-oss-20b").unwrap();
        for config in [config(true), config(false), ModelConfig::from_depth(3, 97), gpt_oss] {
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
        let map = LeafMap::fused("ab", &[("a", 1), ("b", 2)], &[2], |part| format!("p.{part}.weight"));
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let parts = split_leaf(&map, &values);
        assert_eq!(parts[0], ("p.a.weight".to_owned(), vec![1, 2], Cow::Borrowed(&values[..2])));
        assert_eq!(parts[1], ("p.b.weight".to_owned(), vec![2, 2], Cow::Borrowed(&values[2..])));
    }

    #[test]
    fn experts_are_transposed_one_by_one() {
        let map = LeafMap::experts("e".to_owned(), 2, [3, 2]);
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let parts = split_leaf(&map, &values);
        assert_eq!(parts[0].1, [2, 2, 3]);
        assert_eq!(parts[0].2.as_ref(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 8.0, 10.0, 7.0, 9.0, 11.0]);
        assert_eq!(transposed(&parts[0].2, 2, 2), values);
    }
}
