//! Cases of accumulation and scaling.

use burn::tensor::{Tensor, TensorPrimitive};

use super::reference;
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Shape of both operands.
    pub dims: [usize; 2],
    /// Numbers in both operands.
    pub fill: Fill,
    /// Factor of the scaling.
    pub factor: f32,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, fill| Case { name, dims, fill, factor: -0.75 };
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
        Case { factor: 1.0, ..case("factor 1", [9, 9], Fill::Typical) },
    ]
}

/// Runs one case.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let n = case.dims[0] * case.dims[1];
    let (acc, acc64) = runner.constant(case.fill.values(1, n), case.dims);
    let (x, x64) = runner.constant(case.fill.values(2, n), case.dims);
    let (acc, x) = (acc.inner(), x.inner());
    let want = reference::add_assign(&acc64, &x64);
    // With a second owner the accumulator must stay as it was.
    runner.check("sum of shared", crate::add_assign(acc.clone(), x.clone()), &want, Kind::Elementwise);
    runner.check("shared", acc.clone(), &acc64, Kind::Copy);
    runner.check("sum", crate::add_assign(acc, x.clone()), &want, Kind::Elementwise);
    let factor = Tensor::<B, 1>::from_floats([case.factor], &runner.device);
    let scaled = B::lm_scale(x.into_primitive().tensor(), factor.into_primitive().tensor());
    let scaled = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(scaled));
    runner.check("scaled", scaled, &reference::scale(&x64, case.factor.into()), Kind::Elementwise);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("accumulate", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
