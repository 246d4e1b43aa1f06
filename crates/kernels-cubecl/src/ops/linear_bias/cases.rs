//! Cases of the linear layer with bias.

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
        case("router", [2, 130], [72, 32], Fill::Typical),
        case("many rows", [5, 405], [24, 600], Fill::Typical),
        case("one row", [1, 1], [96, 160], Fill::Typical),
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
    let (bias, bias64) = runner.tracked(Fill::Typical.values(4, o), [o]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [b, t, o]);
    let want = reference::forward(&x64, &w64, &bias64, [m, i, o]);
    let (dx64, dw64, db64) = reference::backward(&dy64, &x64, &w64, [m, i, o]);
    let y = crate::linear_bias(x.clone(), w.clone(), bias.clone());
    runner.check("y", y.clone().inner(), &want, Kind::Product);
    let wide = crate::linear_bias_f32(x.clone(), w.clone(), bias.clone());
    assert_eq!(wide.dtype(), DType::F32, "linear_bias_f32 keeps its sums");
    runner.check("y in f32", wide.clone().inner(), &want, Kind::Product);
    if !runner.differentiates(m) {
        return;
    }
    let grads = runner.backward(wide, dy.clone());
    runner.check_grad("dx of f32", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dw of f32", &w, &grads, &dw64, Kind::Product);
    runner.check_grad("dbias of f32", &bias, &grads, &db64, Kind::Reduction);
    let grads = runner.backward(y, dy.clone());
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dw", &w, &grads, &dw64, Kind::Product);
    runner.check_grad("dbias", &bias, &grads, &db64, Kind::Reduction);
    // Two passes onto one sum.
    let (leaves, mut sums) = ([Leaf::Matrix(w.clone()), Leaf::Vector(bias.clone())], [None, None]);
    for _ in 0..2 {
        let y = crate::linear_bias(x.clone(), w.clone(), bias.clone());
        backward_into((y * dy.clone()).sum(), &leaves, &mut sums);
    }
    let twice = |values: &[f64]| values.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
    let [Some(dw), Some(db)] = sums else { unreachable!("both are tracked") };
    runner.check("dw summed", dw.matrix(), &twice(&dw64), Kind::Product);
    runner.check("dbias summed", db.vector(), &twice(&db64), Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("linear_bias", device);
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
        let (x, w, b, dy) = (wide(1, m * i), wide(2, o * i), wide(4, o), wide(3, m * o));
        let (dx, dw, db) = reference::backward(&dy, &x, &w, dims);
        assert_gradient(&x, &dx, &dy, |x| reference::forward(x, &w, &b, dims));
        assert_gradient(&w, &dw, &dy, |w| reference::forward(&x, w, &b, dims));
        assert_gradient(&b, &db, &dy, |b| reference::forward(&x, &w, b, dims));
    }
}
