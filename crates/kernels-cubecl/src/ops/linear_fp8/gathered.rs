//! Cases of slots: what a kernel leaves in one is the peak of what it wrote, and a block with slots gives the bits of one without.

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

use super::reference;
use crate::cases::{Fill, Runner, numbers};
use crate::tolerance::{Kind, Precision, tolerance};
use crate::{
    Fp8, Gathered, HeadLayout, LmBackend, Rotation, Spans, add_rms_norm_gathered, attention_gathered,
    linear_fp8_gathered, rms_norm_gathered, rope_qkv_gathered, swiglu_gathered,
};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Leading axes of the stream.
    pub rows: [usize; 2],
    /// Width of the stream, and of the gated unit.
    pub widths: [usize; 2],
    /// Numbers in the stream.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, rows, widths, fill| Case { name, rows, widths, fill };
    vec![
        case("gathered, typical", [2, 32], [64, 96], Fill::Typical),
        case("gathered, many rows", [4, 300], [32, 48], Fill::Typical),
        case("gathered, wide", [1, 16], [2064, 1040], Fill::Typical),
        case("gathered, ragged", [3, 7], [50, 27], Fill::Typical),
        case("gathered, zero", [2, 16], [32, 48], Fill::Zero),
        case("gathered, huge", [2, 16], [32, 48], Fill::Huge),
        case("gathered, nan", [2, 16], [32, 48], Fill::WithNan),
        case("gathered, infinite", [2, 16], [32, 48], Fill::WithInfinities),
    ]
}

/// Heads of the block; a row of queries, keys and values is four heads wide.
const HEADS: HeadLayout = HeadLayout { n_heads: 2, n_kv_heads: 1, d_head: 16 };
/// Heads of attention on its own, as the kernels that gather want them.
const MIXED: HeadLayout = HeadLayout { n_heads: 4, n_kv_heads: 2, d_head: 64 };
const EPS: f32 = 1e-5;

/// Runs one case: every kernel that fills a slot, then the block.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    kernels(case, runner);
    let [plain, slotted] = [false, true].map(|slotted| block(case, runner, slotted));
    for ((what, plain), (_, slotted)) in plain.into_iter().zip(slotted) {
        let want: Vec<f64> = plain.into_iter().map(f64::from).collect();
        runner.check_numbers(what, &slotted, &want, tolerance(Precision::F32, Kind::Copy));
    }
}

fn tensor<B: LmBackend>(primitive: FloatTensor<B>) -> Tensor<B, 3> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Compares what is in the slot with the peak of what the kernel wrote; a backend that does not gather leaves nothing.
fn check<B: LmBackend>(runner: &mut Runner<B>, what: &'static str, written: FloatTensor<B>, slot: &B::Peaks) {
    let written: Vec<f64> = numbers(tensor::<B>(written)).into_iter().map(f64::from).collect();
    let want = if B::lm_gathers(&runner.device) { vec![reference::peak(&written)] } else { Vec::new() };
    let seen = B::lm_take_peaks(slot).map(|peaks| Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(peaks)));
    let got: Vec<f32> = seen.map(|peaks| numbers(peaks).into_iter().fold(0.0, f32::max)).into_iter().collect();
    runner.check_numbers(what, &got, &want, tolerance(Precision::F32, Kind::Copy));
}

/// Every kernel that fills a slot, on its own.
fn kernels<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    let ([b, t], [d, f]) = (case.rows, case.widths);
    let raw = |seed, dims: [usize; 3], fill: Fill| {
        let (tensor, _) = runner.constant(fill.values(seed, dims.iter().product()), dims);
        tensor.inner().into_primitive().tensor()
    };
    let [x, residual, dy] =
        [1, 2, 3].map(|seed| raw(seed, [b, t, d], if seed == 1 { case.fill } else { Fill::Typical }));
    let (gamma, _) = runner.constant(Fill::Typical.values(4, d), [d]);
    let gamma = || gamma.clone().inner().into_primitive().tensor();
    let (gate_up, dgated) = (raw(5, [b, t, 2 * f], case.fill), raw(6, [b, t, f], Fill::Typical));
    let (qkv, cos) = (raw(7, [b, t, HEADS.width()], case.fill), raw(8, [b, t, HEADS.d_head / 2], Fill::Typical));
    let qkv_wide = raw(9, [b, t, MIXED.width()], case.fill);
    let slot = B::Peaks::default();
    let (y, rstd) = B::lm_rms_norm_fwd(x.clone(), gamma(), EPS, Some(&slot));
    check(runner, "peak of a norm", y, &slot);
    let (_, y, _) = B::lm_add_rms_norm_fwd(x.clone(), residual.clone(), gamma(), EPS, Some(&slot));
    check(runner, "peak of a norm of a sum", y, &slot);
    let (dx, _) = B::lm_rms_norm_bwd(dy, x, gamma(), rstd, Some(residual), Some(&slot));
    check(runner, "peak of a norm's gradient", dx, &slot);
    let y = B::lm_swiglu(gate_up.clone(), Gathered { forward: Some(slot.clone()), backward: None });
    check(runner, "peak of a gated unit", y, &slot);
    check(runner, "peak of its gradient", B::lm_swiglu_bwd(dgated, gate_up, Some(&slot)), &slot);
    let [start, end] = [|_: usize| 0, |i| i as i32 + 1]
        .map(|of: fn(usize) -> i32| runner.ints((0..b * t).map(|i| of(i % t)).collect(), [b, t]).into_primitive());
    let (mixed, _) = B::lm_attention_fwd(qkv_wide, start, end, None, MIXED, 0.125, Some(&slot));
    // Not every device that gathers has such a kernel of attention.
    if let Some(seen) = B::lm_take_peaks(&slot) {
        let mixed: Vec<f64> = numbers(tensor::<B>(mixed)).into_iter().map(f64::from).collect();
        let seen = numbers(Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(seen)));
        let got = [seen.into_iter().fold(0.0, f32::max)];
        let want = [reference::peak(&mixed)];
        runner.check_numbers("peak of attention", &got, &want, tolerance(Precision::F32, Kind::Copy));
    }
    let turned = B::lm_rope_qkv(qkv, cos.clone(), cos, HEADS, Rotation::Backward, Some(&slot));
    check(runner, "peak of a rotation's gradient", turned, &slot);
}

/// The result and all gradients of a transformer block in FP8, with slots or without.
fn block<B: LmBackend>(case: &Case, runner: &Runner<B>, slotted: bool) -> Vec<(&'static str, Vec<f32>)> {
    type Graph<B> = Autodiff<B>;
    let ([b, t], [d, f], mode) = (case.rows, case.widths, Fp8::default());
    let matrix = |seed, rows: usize, columns: usize| {
        let values = Fill::Typical.values(seed, rows * columns).into_iter().map(|x| 0.2 * x).collect();
        runner.tracked(values, [rows, columns]).0
    };
    let gain = |seed| runner.tracked(Fill::Typical.values(seed, d), [d]).0;
    let stream = |seed, fill: Fill| runner.tracked(fill.values(seed, b * t * d), [b, t, d]).0;
    let (x, residual) = (stream(1, case.fill), stream(2, Fill::Typical));
    let gains = [3, 4, 5].map(gain);
    let weights = [matrix(6, HEADS.width(), d), matrix(7, d, HEADS.q_width()), matrix(8, 2 * f, d), matrix(9, d, f)];
    let [qkv_w, out_w, gate_up_w, down_w] = weights.clone();
    let [cos, sin] = [10, 11].map(|seed| {
        let dims = [b, t, HEADS.d_head / 2];
        runner.constant(Fill::Typical.values(seed, dims.iter().product()), dims).0
    });
    let ends = (0..b * t).map(|i| (i % t) as i32 + 1).collect();
    let spans = Spans::<Graph<B>> { start: runner.ints(vec![0; b * t], [b, t]), end: runner.ints(ends, [b, t]) };
    let slot = || slotted.then(B::Peaks::default);
    let pair = |forward: &Option<B::Peaks>, backward: &Option<B::Peaks>| Gathered {
        forward: forward.clone(),
        backward: backward.clone(),
    };
    let [of_first, of_qkv, of_mixed, of_out, of_second, of_gate_up, of_gated, of_down] = [(); 8].map(|()| slot());

    let normed = rms_norm_gathered(x.clone() + residual.clone(), gains[0].clone(), EPS, of_first.as_ref());
    let qkv = linear_fp8_gathered(normed, qkv_w, None, mode, pair(&of_first, &of_qkv));
    let qkv = rope_qkv_gathered(qkv, cos, sin, HEADS, of_qkv.as_ref());
    let mixed = attention_gathered(qkv, &spans, None, HEADS, 0.25, of_mixed.as_ref());
    let out = linear_fp8_gathered(mixed, out_w, None, mode, pair(&of_mixed, &of_out));
    let (sum, normed) = add_rms_norm_gathered(out, residual.clone(), gains[1].clone(), EPS, pair(&of_second, &of_out));
    let gate_up = linear_fp8_gathered(normed, gate_up_w, None, mode, pair(&of_second, &of_gate_up));
    let gated = swiglu_gathered(gate_up, pair(&of_gated, &of_gate_up));
    let down = linear_fp8_gathered(gated, down_w, None, mode, pair(&of_gated, &of_down));
    let (_, y) = add_rms_norm_gathered(down, sum, gains[2].clone(), EPS, pair(&None, &of_down));

    let mut results = vec![("y of a block", numbers(y.clone().inner()))];
    let (dy, _) = runner.constant(Fill::Typical.values(12, b * t * d), [b, t, d]);
    let grads = runner.backward(y, dy);
    let found = "every leaf is tracked";
    let of_stream = [("dx of a block", x), ("dresidual of a block", residual)];
    results.extend(of_stream.map(|(what, leaf)| (what, numbers(leaf.grad(&grads).expect(found)))));
    results.extend(gains.map(|leaf| ("dgamma of a block", numbers(leaf.grad(&grads).expect(found)))));
    results.extend(weights.map(|leaf| ("dw of a block", numbers(leaf.grad(&grads).expect(found)))));
    results
}
