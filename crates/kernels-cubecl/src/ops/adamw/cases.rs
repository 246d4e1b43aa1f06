//! Cases of the optimizer step.

use super::{AdamW, reference};
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Shape of the parameter.
    pub dims: [usize; 2],
    /// Numbers in the gradient.
    pub fill: Fill,
    /// Hyper-parameters.
    pub hyper: AdamW,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let hyper = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0, step: 7 };
    let case = |name, dims, fill| Case { name, dims, fill, hyper };
    vec![
        case("typical", [256, 300], Fill::Typical),
        case("ragged", [7, 13], Fill::Typical),
        Case { hyper: AdamW { step: 1, ..hyper }, ..case("first step", [9, 9], Fill::Typical) },
        Case { hyper: AdamW { step: 1_000_000, ..hyper }, ..case("late step", [9, 9], Fill::Typical) },
        Case { hyper: AdamW { weight_decay: 0.0, ..hyper }, ..case("no decay", [9, 9], Fill::Typical) },
        Case { hyper: AdamW { grad_scale: 0.03, ..hyper }, ..case("scaled", [9, 9], Fill::Typical) },
        case("size 1", [1, 1], Fill::Typical),
        case("empty", [0, 4], Fill::Typical),
        case("zero", [9, 9], Fill::Zero),
        case("huge", [9, 9], Fill::Huge),
        case("tiny", [9, 9], Fill::Tiny),
        case("nan", [9, 9], Fill::WithNan),
        case("infinite", [9, 9], Fill::WithInfinities),
    ]
}

/// Runs one case, with shared and with owned operands.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let n = case.dims[0] * case.dims[1];
    let positive = Fill::Typical.values(4, n).into_iter().map(|x| x * x).collect();
    let (param, param64) = runner.constant(Fill::Typical.values(1, n), case.dims);
    let (grad, grad64) = runner.constant(case.fill.values(2, n), case.dims);
    let (m, m64) = runner.constant(Fill::Typical.values(3, n), case.dims);
    let (v, v64) = runner.constant(positive, case.dims);
    let (param, grad, m, v) = (param.inner(), grad.inner(), m.inner(), v.inner());
    let want = reference::step(&param64, &grad64, &m64, &v64, &case.hyper);
    let shared = crate::adamw_step(param.clone(), grad.clone(), m.clone(), v.clone(), &case.hyper);
    runner.check("param of shared", shared.0, &want[0], Kind::Elementwise);
    runner.check("shared", param.clone(), &param64, Kind::Copy);
    let owned = crate::adamw_step(param, grad, m, v, &case.hyper);
    runner.check("param", owned.0, &want[0], Kind::Elementwise);
    runner.check("m", owned.1, &want[1], Kind::Elementwise);
    runner.check("v", owned.2, &want[2], Kind::Elementwise);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("adamw", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
