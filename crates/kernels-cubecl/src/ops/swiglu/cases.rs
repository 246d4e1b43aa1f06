//! Cases of the gated unit.

use super::reference;
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Batch, tokens and width of the result.
    pub dims: [usize; 3],
    /// Numbers in `gate_up`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, fill| Case { name, dims, fill };
    vec![
        case("typical", [2, 33, 128], Fill::Typical),
        case("ragged", [3, 7, 43], Fill::Typical),
        case("many rows", [4, 300, 17], Fill::Typical),
        case("size 1", [1, 1, 1], Fill::Typical),
        case("no rows", [1, 0, 8], Fill::Typical),
        case("zero", [2, 3, 32], Fill::Zero),
        case("huge", [2, 3, 32], Fill::Huge),
        case("tiny", [2, 3, 32], Fill::Tiny),
        case("nan", [2, 3, 32], Fill::WithNan),
        case("infinite", [2, 3, 32], Fill::WithInfinities),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let [b, t, f] = case.dims;
    let (gate_up, wide) = runner.tracked(case.fill.values(1, b * t * 2 * f), [b, t, 2 * f]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(2, b * t * f), [b, t, f]);
    let y = crate::swiglu(gate_up.clone());
    runner.check("y", y.clone().inner(), &reference::forward(&wide, f), Kind::Elementwise);
    if !runner.differentiates(b * t * f) {
        return;
    }
    let grads = runner.backward(y, dy);
    runner.check_grad("dgate_up", &gate_up, &grads, &reference::backward(&dy64, &wide, f), Kind::Elementwise);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("swiglu", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let (m, f) = (3, 4);
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, dy) = (wide(1, m * 2 * f), wide(2, m * f));
        assert_gradient(&x, &reference::backward(&dy, &x, f), &dy, |x| reference::forward(x, f));
    }
}
