//! Fresh weights: a pure function of architecture and seed, whatever the device and the number of threads.
//!
//! # Source
//! Normal weights with a fixed deviation and residual projections narrowed by the square root of their number, as in
//! GPT-2 (Radford et al. 2019, section 2.3); norms start at one, biases at zero, attention sinks like weights.

use kernels_cubecl::LmBackend;

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::hf::LeafMap;
use crate::hf::names::{leaf_from_values, leaf_map};
use crate::random::Stream;

impl<B: LmBackend> Decoder<B> {
    /// A freshly initialised model.
    ///
    /// Every leaf draws from a stream of its own, keyed by seed and name, so that a leaf's values do not depend on what
    /// else the model has.
    pub fn init(config: &ModelConfig, seed: u64, device: &B::Device) -> Self {
        let leaves = leaf_map(config).into_iter().map(|leaf| {
            let values = initial_values(config, &leaf, seed);
            leaf_from_values(&leaf, values, device)
        });
        Decoder::from_leaves(config, leaves.collect())
    }
}

fn initial_values(config: &ModelConfig, leaf: &LeafMap, seed: u64) -> Vec<f32> {
    let len = leaf.dims.iter().product();
    if leaf.dims.len() == 1 && leaf.leaf.ends_with("norm.weight") {
        return vec![1.0; len];
    }
    if leaf.leaf.ends_with("bias") {
        return vec![0.0; len];
    }
    let adds_to_stream =
        [".o_proj.weight", ".down_proj.weight", ".down_proj"].iter().any(|end| leaf.leaf.ends_with(end));
    let narrowing = if adds_to_stream { 1.0 / ((2 * config.n_layers) as f32).sqrt() } else { 1.0 };
    Stream::new(seed, &leaf.leaf).normals(len, config.init_std * narrowing)
}

#[cfg(test)]
mod tests {
    use kernels_cubecl::Cpu;

    use super::*;
    use crate::hf::names::leaf_values;

    fn model(seed: u64) -> Decoder<Cpu> {
        Decoder::init(&ModelConfig::from_depth(2, 256), seed, &Default::default())
    }

    fn values(model: &Decoder<Cpu>, name: &str) -> Vec<f32> {
        leaf_values(model.leaves().into_iter().find(|l| l.name == name).unwrap().leaf)
    }

    fn deviation(values: &[f32]) -> f64 {
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn residual_projections_are_narrower_and_norms_are_one() {
        let model = model(1);
        let qkv = deviation(&values(&model, "model.layers.0.self_attn.qkv_proj.weight"));
        let down = deviation(&values(&model, "model.layers.1.mlp.down_proj.weight"));
        assert!((qkv - 0.02).abs() < 5e-4, "{qkv}");
        assert!((down - 0.01).abs() < 3e-4, "{down}");
        assert!(values(&model, "model.norm.weight").iter().all(|v| *v == 1.0));
    }

    #[test]
    fn the_seed_decides_everything() {
        let name = "model.layers.0.mlp.gate_up_proj.weight";
        assert_eq!(values(&model(7), name), values(&model(7), name));
        assert_ne!(values(&model(7), name), values(&model(8), name));
    }

    #[test]
    fn leaves_stand_in_the_order_of_the_map() {
        for config in [ModelConfig::from_depth(3, 64), ModelConfig { tied: false, ..ModelConfig::from_depth(2, 64) }] {
            let model = Decoder::<Cpu>::init(&config, 0, &Default::default());
            let leaves: Vec<_> = model.leaves().into_iter().map(|l| (l.name, l.leaf.dims())).collect();
            let map: Vec<_> = leaf_map(&config).into_iter().map(|l| (l.leaf, l.dims)).collect();
            assert_eq!(leaves, map);
        }
    }
}
