//! Cases of routing.

use burn::tensor::DType;

use super::reference;
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner, whole_numbers};
use crate::tolerance::Kind;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Tokens, experts and chosen experts.
    pub dims: [usize; 3],
    /// The logits.
    pub fill: Fill,
    /// Logits are small whole numbers, so that many are equal.
    pub ties: bool,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, fill, ties| Case { name, dims, fill, ties };
    vec![
        case("typical", [130, 32, 4], Fill::Typical, false),
        case("many experts", [70, 128, 4], Fill::Typical, false),
        case("ragged", [37, 7, 3], Fill::Typical, false),
        case("many tokens", [5000, 6, 2], Fill::Typical, false),
        case("one token", [1, 32, 4], Fill::Typical, false),
        case("one choice", [19, 8, 1], Fill::Typical, false),
        case("one expert", [9, 1, 1], Fill::Typical, false),
        case("all experts", [33, 6, 6], Fill::Typical, false),
        case("no tokens", [0, 8, 2], Fill::Typical, false),
        case("ties", [200, 32, 4], Fill::Typical, true),
        case("zero", [17, 32, 4], Fill::Zero, false),
        case("huge", [17, 32, 4], Fill::Huge, false),
        case("tiny", [17, 32, 4], Fill::Tiny, false),
        case("nan", [17, 32, 4], Fill::WithNan, false),
        case("infinite", [17, 32, 4], Fill::WithInfinities, false),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let [n, e, k] = case.dims;
    let values = match case.ties {
        true => whole_numbers(1, n * e, 5).into_iter().map(|x| x as f32).collect(),
        false => case.fill.values(1, n * e),
    };
    let (logits, wide) = runner.tracked(values, [n, e]);
    let (dw, dw64) = runner.constant(Fill::Typical.values(2, n * k), [n, k]);
    let (weights64, experts64) = reference::forward(&wide, e, k);
    let routed = crate::route(logits.clone(), k);
    assert_eq!(routed.weights.dtype(), DType::F32, "weights are f32");
    let ids: Vec<f64> = experts64.iter().map(|&expert| expert as f64).collect();
    runner.check_ints("experts", routed.experts.inner(), &ids);
    runner.check("weights", routed.weights.clone().inner(), &weights64, Kind::Elementwise);
    if !runner.differentiates(n) {
        return;
    }
    let grads = runner.backward(routed.weights, dw);
    let want = reference::backward(&dw64, &weights64, &experts64, e, k);
    runner.check_grad("dlogits", &logits, &grads, &want, Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("route", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let [n, e, k] = [4, 7, 3];
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (logits, dw) = (wide(1, n * e), wide(2, n * k));
        let (weights, experts) = reference::forward(&logits, e, k);
        let want = reference::backward(&dw, &weights, &experts, e, k);
        assert_gradient(&logits, &want, &dw, |logits| reference::forward(logits, e, k).0);
    }
}
