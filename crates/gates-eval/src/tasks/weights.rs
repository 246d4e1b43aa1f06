//! Weights: the share of parameters that are finite.

use gates::interval::Estimate;
use gates::{Direction, Metric};
use kernels_cubecl::{Leaf, LmBackend};
use model_core::Decoder;

/// Measures `<name>.finite_weights`; n counts parameters. It is a count, not a sample, and has no interval.
pub fn run<B: LmBackend>(name: &str, model: &Decoder<B>, model_hash: &str) -> Metric {
    let (mut finite, mut n) = (0_u64, 0_u64);
    for leaf in model.leaves() {
        let data = match leaf.leaf {
            Leaf::Vector(value) => value.into_data(),
            Leaf::Matrix(value) => value.into_data(),
        };
        let values = data.convert::<f32>().into_vec::<f32>().expect("converted to f32");
        n += values.len() as u64;
        finite += values.iter().filter(|x| x.is_finite()).count() as u64;
    }
    let estimate = Estimate::without_interval(finite as f64 / n as f64, n);
    Metric::new(&format!("{name}.finite_weights"), Direction::Higher, estimate, model_hash)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::tasks::fixture::tiny;

    #[test]
    fn one_bad_parameter_is_noticed() {
        let (model, device) = tiny();
        let metric = run("checkpoint", &model, "m");
        assert_eq!((metric.value, metric.n), (1.0, model.config.n_params()));
        let mut leaves: Vec<_> = model.leaves().into_iter().map(|named| named.leaf).collect();
        let d = model.config.d_model;
        leaves[1] = Leaf::Vector(Tensor::from_data([f32::NAN].repeat(d).as_slice(), &device));
        let broken = model.with_leaves(leaves);
        assert!(run("checkpoint", &broken, "m").value < 1.0);
    }
}
