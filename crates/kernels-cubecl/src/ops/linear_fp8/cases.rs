//! Cases of the FP8 linear layer.

use burn::tensor::{Tensor, TensorPrimitive};

use super::{gathered, reference};
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;
use crate::{Fp8, Fp8Known, LmBackend, Tracked};

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
    /// Entries of the history of x, w and dy; empty without one.
    pub history: [&'static [f32]; 3],
    /// How products are summed.
    pub mode: Fp8,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case =
        |name, rows, widths, fill| Case { name, rows, widths, fill, history: [&[], &[], &[]], mode: Fp8::default() };
    let with = |name, history| Case { history, ..case(name, [2, 64], [96, 160], Fill::Typical) };
    let exact = Fp8 { fast_forward: false, fast_backward: false };
    vec![
        case("typical", [2, 64], [96, 160], Fill::Typical),
        case("one group", [1, 16], [16, 16], Fill::Typical),
        case("edges of tiles", [3, 48], [144, 272], Fill::Typical),
        case("deep sum", [2, 16], [1504, 48], Fill::Typical),
        Case { mode: exact, ..case("deep sum, not fast", [2, 16], [1504, 48], Fill::Typical) },
        case("many rows", [5, 208], [32, 48], Fill::Typical),
        case("ragged", [3, 37], [101, 67], Fill::Typical),
        case("ragged rows", [1, 5], [64, 304], Fill::Typical),
        case("no rows", [2, 0], [16, 32], Fill::Typical),
        case("zero", [2, 16], [32, 48], Fill::Zero),
        case("huge", [2, 16], [32, 48], Fill::Huge),
        case("tiny", [2, 16], [32, 48], Fill::Tiny),
        case("nan", [2, 16], [32, 48], Fill::WithNan),
        case("infinite", [2, 16], [32, 48], Fill::WithInfinities),
        with("history", [&[3.0, 2.5], &[2.0, 4.0], &[1.0, 5.0]]),
        with("history that saturates", [&[0.5], &[1.0], &[0.25]]),
        with("history of zeros", [&[0.0; 3]; 3]),
        with("history without dy", [&[3.0, 0.0, 2.0], &[3.0; 3], &[0.0; 3]]),
        Case { rows: [3, 37], ..with("history, ragged", [&[3.0, 2.0]; 3]) },
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t], [i, o]) = (case.rows, case.widths);
    let (m, n) = (b * t, case.history[0].len());
    let dims = [m, i, o];
    let (x, x64) = runner.tracked(case.fill.values(1, m * i), [b, t, i]);
    let (w, w64) = runner.tracked(Fill::Typical.values(2, o * i), [o, i]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [b, t, o]);
    let history64 = case.history.map(|row| row.iter().copied().map(f64::from).collect::<Vec<_>>());
    let known = (n > 0).then_some(&history64);
    let history = known.map(|_| runner.tracked_f32(case.history.concat(), [3, n]));
    let y = crate::linear_fp8(x.clone(), w.clone(), history.clone(), case.mode);
    runner.check("y", y.clone().inner(), &reference::forward(&x64, &w64, known, dims), Kind::Product);
    if !runner.differentiates(m) {
        return;
    }
    let grads = runner.backward(y, dy.clone());
    let (dx64, dw64) = reference::backward(&dy64, &x64, &w64, known, dims);
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dw", &w, &grads, &dw64, Kind::Product);
    if let (Some(history), Some(known)) = (history, known) {
        let next = reference::next_history(&dy64, &x64, &w64, known, dims);
        runner.check_grad("history", &history, &grads, &next, Kind::Copy);
    }
    accumulated(runner, [&x, &dy].map(|tensor| tensor.clone().inner()), w.inner(), [&x64, &w64, &dy64], dims);
}

/// The weight's gradient on top of another one, where no other is asked for.
fn accumulated<B: LmBackend>(
    runner: &mut Runner<B>,
    [x, dy]: [Tensor<B, 3>; 2],
    w: Tensor<B, 2>,
    [x64, w64, dy64]: [&[f64]; 3],
    dims @ [_, i, o]: [usize; 3],
) {
    let (sum, sum64) = runner.constant(Fill::Typical.values(4, o * i), [o, i]);
    let primitive = |tensor: Tensor<B, 3>| tensor.into_primitive().tensor();
    let w = w.into_primitive().tensor();
    let want = Tracked { x: false, weight: true };
    let (_, saved) = B::lm_linear_fp8_fwd(primitive(x), w.clone(), Fp8Known::default(), Fp8::default(), want, None);
    let sum = sum.inner().into_primitive().tensor();
    let grads = B::lm_linear_fp8_bwd(primitive(dy), w, saved, Fp8::default(), want, Some(sum), None);
    let (_, dw64) = reference::backward(dy64, x64, w64, None, dims);
    let total: Vec<f64> = sum64.iter().zip(dw64).map(|(sum, dw)| sum + dw).collect();
    let got = grads.dw.map(|dw| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(dw)));
    runner.check_made("dw on top", got, &total, Kind::Product);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("linear_fp8", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    gathered::cases().iter().for_each(|case| gathered::run_case(case, &mut runner));
    runner.finish()
}
