//! Cases of the clamped gated unit.

use super::reference;
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;

/// The published slope of the gate.
const ALPHA: f32 = 1.702;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Batch, tokens and width of the result.
    pub dims: [usize; 3],
    /// Where gate and up are cut off.
    pub limit: f32,
    /// Numbers in `gate_up`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, limit, fill| Case { name, dims, limit, fill };
    vec![
        case("typical", [2, 33, 128], 7.0, Fill::Typical),
        case("often at the limit", [2, 33, 128], 0.5, Fill::Typical),
        case("ragged", [3, 7, 43], 1.0, Fill::Typical),
        case("many rows", [4, 1000, 17], 1.0, Fill::Typical),
        case("size 1", [1, 1, 1], 7.0, Fill::Typical),
        case("no rows", [1, 0, 8], 7.0, Fill::Typical),
        case("zero", [2, 3, 32], 7.0, Fill::Zero),
        case("huge", [2, 3, 32], 7.0, Fill::Huge),
        case("tiny", [2, 3, 32], 7.0, Fill::Tiny),
        case("nan", [2, 3, 32], 7.0, Fill::WithNan),
        case("infinite", [2, 3, 32], 7.0, Fill::WithInfinities),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let [b, t, f] = case.dims;
    let mut values = case.fill.values(1, b * t * 2 * f);
    // Both limits themselves, where the gradient passes.
    for (x, tie) in values.iter_mut().zip([case.limit, -case.limit, case.limit, case.limit]) {
        *x = if x.is_finite() { tie } else { *x };
    }
    let (gate_up, wide) = runner.tracked(values, [b, t, 2 * f]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(2, b * t * f), [b, t, f]);
    let (alpha, limit) = (f64::from(ALPHA), f64::from(case.limit));
    let y = crate::swiglu_clamped(gate_up.clone(), ALPHA, case.limit);
    runner.check("y", y.clone().inner(), &reference::forward(&wide, alpha, limit), Kind::Elementwise);
    if !runner.differentiates(b * t * f) {
        return;
    }
    let grads = runner.backward(y, dy);
    let want = reference::backward(&dy64, &wide, alpha, limit);
    runner.check_grad("dgate_up", &gate_up, &grads, &want, Kind::Elementwise);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("swiglu_clamped", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let (alpha, limit) = (f64::from(ALPHA), 0.8);
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, dy) = (wide(1, 48), wide(2, 24));
        let cut = |at: usize| x.iter().skip(at).step_by(2).filter(|x| x.abs() > limit).count();
        assert!(cut(0) > 3 && cut(1) > 3, "both clamps must act");
        assert_gradient(&x, &reference::backward(&dy, &x, alpha, limit), &dy, |x| reference::forward(x, alpha, limit));
    }
}
