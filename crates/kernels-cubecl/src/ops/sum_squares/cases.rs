//! Cases of the sum of squares.

use super::reference;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;
use crate::{Leaf, LmBackend};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Shape of `x`.
    pub dims: [usize; 2],
    /// Numbers in `x`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, fill| Case { name, dims, fill };
    vec![
        case("typical", [256, 300], Fill::Typical),
        case("ragged", [7, 13], Fill::Typical),
        case("size 1", [1, 1], Fill::Typical),
        case("empty", [0, 4], Fill::Typical),
        case("zero", [9, 9], Fill::Zero),
        case("huge", [9, 9], Fill::Huge),
        case("tiny", [9, 9], Fill::Tiny),
        case("nan", [9, 9], Fill::WithNan),
        case("infinite", [9, 9], Fill::WithInfinities),
    ]
}

/// Runs one case.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let [rows, cols] = case.dims;
    let (x, wide) = runner.constant(case.fill.values(1, rows * cols), case.dims);
    runner.check("s", crate::sum_squares(x.inner()), &[reference::forward(&wide)], Kind::Reduction);
}

/// `(name, sum of squares, units, largest norm)` of the factor's cases.
const SCALES: [(&str, f32, f64, f64); 8] = [
    ("kept", 4.0, 10.0, 1.0),
    ("clipped", 400.0, 10.0, 1.0),
    ("not clipped", 400.0, 10.0, f64::INFINITY),
    ("zero gradient", 0.0, 3.0, 1.0),
    ("no units", 4.0, 0.0, 1.0),
    ("neither", 0.0, 0.0, 1.0),
    ("overflow", f32::INFINITY, 10.0, 1.0),
    ("damaged", f32::NAN, 10.0, 1.0),
];

/// Runs the cases of the factor, and of the sum over all tensors of the table.
fn run_norms<B: LmBackend>(runner: &mut Runner<B>) {
    for (name, squares, units, max_norm) in SCALES {
        runner.begin(name);
        let scale = crate::clip_scale(runner.floats([squares]), units, max_norm);
        let want = reference::clip_scale(squares.into(), units, max_norm);
        runner.check("scale", scale, &[want], Kind::Elementwise);
    }
    for (name, fills) in [("all numbers", &[Fill::Typical, Fill::Zero][..]), ("all", &[Fill::Typical, Fill::WithNan])] {
        runner.begin(name);
        let tensors: Vec<Case> = cases().into_iter().filter(|case| fills.contains(&case.fill)).collect();
        let mut parts = crate::sum_squares_parts::<B>(tensors.len(), &runner.device);
        let mut want = 0.0;
        for (i, case) in tensors.iter().enumerate() {
            let (x, wide) = runner.constant(case.fill.values(i as u64, case.dims[0] * case.dims[1]), case.dims);
            parts = crate::sum_squares_into(parts, i, Leaf::Matrix(x.inner()));
            want += reference::forward(&wide);
        }
        runner.check("sum", crate::sum_parts(parts), &[want], Kind::Reduction);
    }
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("sum_squares", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    run_norms(&mut runner);
    runner.finish()
}
