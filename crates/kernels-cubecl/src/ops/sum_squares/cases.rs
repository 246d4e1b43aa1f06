//! Cases of the sum of squares.

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

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("sum_squares", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
