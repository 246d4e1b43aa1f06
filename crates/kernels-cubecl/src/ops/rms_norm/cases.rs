//! Cases of the RMS norm, alone and with the residual add.

use super::reference;
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Shape of `x`.
    pub dims: [usize; 3],
    /// Numbers in `x`.
    pub fill: Fill,
    /// Added to the mean square.
    pub eps: f32,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, fill| Case { name, dims, fill, eps: 1e-5 };
    vec![
        case("typical", [2, 33, 256], Fill::Typical),
        case("ragged", [3, 7, 99], Fill::Typical),
        case("narrow", [2, 5, 3], Fill::Typical),
        case("many rows", [4, 300, 32], Fill::Typical),
        // With a small eps the one element is ±1 and its gradient nothing but rounding errors.
        Case { eps: 0.5, ..case("size 1", [1, 1, 1], Fill::Typical) },
        case("no rows", [1, 0, 8], Fill::Typical),
        case("zero", [2, 3, 64], Fill::Zero),
        case("huge", [2, 3, 64], Fill::Huge),
        case("tiny", [2, 3, 64], Fill::Tiny),
        case("nan", [2, 3, 64], Fill::WithNan),
        case("infinite", [2, 3, 64], Fill::WithInfinities),
        Case { eps: 1e-6, ..case("small eps", [2, 3, 48], Fill::Typical) },
    ]
}

/// Runs one case: the norm, then the fused form, each forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t, d], eps) = (case.dims, f64::from(case.eps));
    let n = b * t * d;
    let (x, x64) = runner.tracked(case.fill.values(1, n), case.dims);
    let (gamma, gamma64) = runner.tracked(Fill::Typical.values(2, d), [d]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, n), case.dims);
    let y = crate::rms_norm(x.clone(), gamma.clone(), case.eps);
    runner.check("y", y.clone().inner(), &reference::forward(&x64, &gamma64, eps).0, Kind::Reduction);
    if !runner.differentiates(n) {
        return;
    }
    let grads = runner.backward(y, dy.clone());
    let (dx64, dgamma64) = reference::backward(&dy64, &x64, &gamma64, eps);
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Reduction);
    runner.check_grad("dgamma", &gamma, &grads, &dgamma64, Kind::Reduction);
    run_fused(case, runner, [dy64, gamma64]);
}

/// The fused form, with a second user of the sum so that the gradient's carry is there.
fn run_fused<B: LmBackend>(case: &Case, runner: &mut Runner<B>, [dy64, gamma64]: [Vec<f64>; 2]) {
    let ([b, t, d], eps) = (case.dims, f64::from(case.eps));
    let n = b * t * d;
    let (x, _) = runner.tracked(case.fill.values(1, n), case.dims);
    let (residual, _) = runner.tracked(Fill::Typical.values(4, n), case.dims);
    let (gamma, _) = runner.tracked(Fill::Typical.values(2, d), [d]);
    let (dy, _) = runner.constant(Fill::Typical.values(3, n), case.dims);
    let (dsum, dsum64) = runner.constant(Fill::Typical.values(5, n), case.dims);
    let (sum, y) = crate::add_rms_norm(x.clone(), residual.clone(), gamma.clone(), case.eps);
    let plain = (x.clone().inner() + residual.clone().inner()).into_data().iter::<f64>().collect::<Vec<_>>();
    runner.check("sum", sum.clone().inner(), &plain, Kind::Copy);
    runner.check("y of sum", y.clone().inner(), &reference::forward(&plain, &gamma64, eps).0, Kind::Reduction);
    let grads = ((y * dy).sum() + (sum.clone() * dsum).sum()).backward();
    let (norm, dgamma64) = reference::backward(&dy64, &plain, &gamma64, eps);
    let dx64: Vec<f64> = norm.iter().zip(&dsum64).map(|(a, b)| a + b).collect();
    runner.check_grad("dx of sum", &x, &grads, &dx64, Kind::Reduction);
    runner.check_grad("dresidual", &residual, &grads, &dx64, Kind::Reduction);
    runner.check_grad("dgamma of sum", &gamma, &grads, &dgamma64, Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("rms_norm", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let (m, d, eps) = (3, 5, 1e-3);
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, gamma, dy) = (wide(1, m * d), wide(2, d), wide(3, m * d));
        let (dx, dgamma) = reference::backward(&dy, &x, &gamma, eps);
        assert_gradient(&x, &dx, &dy, |x| reference::forward(x, &gamma, eps).0);
        assert_gradient(&gamma, &dgamma, &dy, |gamma| reference::forward(&x, gamma, eps).0);
    }
}
