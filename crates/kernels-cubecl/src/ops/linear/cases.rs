//! Cases of the linear layer.

use burn::tensor::DType;

use super::reference;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;
use crate::{Leaf, LmBackend, backward_into};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Leading axes of `x`.
    pub rows: [usize; 2],
    /// Input and output width.
    pub widths: [usize; 2],
    /// Numbers in `x`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, rows, widths, fill| Case { name, rows, widths, fill };
    vec![
        case("typical", [2, 64], [96, 160], Fill::Typical),
        case("ragged", [3, 37], [101, 67], Fill::Typical),
        case("deep sum", [2, 9], [1500, 33], Fill::Typical),
        case("many rows", [5, 205], [24, 40], Fill::Typical),
        case("one row", [1, 1], [96, 160], Fill::Typical),
        case("few rows", [1, 5], [64, 300], Fill::Typical),
        case("one output", [2, 33], [65, 1], Fill::Typical),
        case("one input", [2, 33], [1, 65], Fill::Typical),
        case("size 1", [1, 1], [1, 1], Fill::Typical),
        case("no rows", [2, 0], [8, 4], Fill::Typical),
        case("zero", [2, 17], [32, 24], Fill::Zero),
        case("huge", [2, 17], [32, 24], Fill::Huge),
        case("tiny", [2, 17], [32, 24], Fill::Tiny),
        case("nan", [2, 17], [32, 24], Fill::WithNan),
        case("infinite", [2, 17], [32, 24], Fill::WithInfinities),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t], [i, o]) = (case.rows, case.widths);
    let m = b * t;
    let (x, x64) = runner.tracked(case.fill.values(1, m * i), [b, t, i]);
    let (w, w64) = runner.tracked(Fill::Typical.values(2, o * i), [o, i]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [b, t, o]);
    let y = crate::linear(x.clone(), w.clone());
    runner.check("y", y.clone().inner(), &reference::forward(&x64, &w64, [m, i, o]), Kind::Product);
    let wide = crate::linear_f32(x.clone().inner(), w.clone().inner());
    assert_eq!(wide.dtype(), DType::F32, "linear_f32 keeps its sums");
    runner.check("y in f32", wide, &reference::forward(&x64, &w64, [m, i, o]), Kind::Product);
    if !runner.differentiates(m) {
        return;
    }
    let grads = runner.backward(y, dy.clone());
    let (dx64, dw64) = reference::backward(&dy64, &x64, &w64, [m, i, o]);
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dw", &w, &grads, &dw64, Kind::Product);
    // Two passes onto one sum.
    let (leaf, mut sums) = ([Leaf::Matrix(w.clone())], [None]);
    for _ in 0..2 {
        let y = crate::linear(x.clone(), w.clone());
        backward_into((y * dy.clone()).sum(), &leaf, &mut sums);
    }
    let [Some(Leaf::Matrix(sum))] = sums else { unreachable!("the weight is tracked and a matrix") };
    let twice: Vec<f64> = dw64.iter().map(|dw| 2.0 * dw).collect();
    runner.check("dw summed", sum, &twice, Kind::Product);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("linear", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let dims @ [m, i, o] = [3, 4, 5];
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, w, dy) = (wide(1, m * i), wide(2, o * i), wide(3, m * o));
        let (dx, dw) = reference::backward(&dy, &x, &w, dims);
        assert_gradient(&x, &dx, &dy, |x| reference::forward(x, &w, dims));
        assert_gradient(&w, &dw, &dy, |w| reference::forward(&x, w, dims));
    }
}
