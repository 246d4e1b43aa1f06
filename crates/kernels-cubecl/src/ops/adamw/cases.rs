//! Cases of the optimizer step: every kind of parameter, gradient and moments, on every kind of numbers.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};

use super::packed::{self, BLOCK};
use super::reference::{self, Codes};
use super::{AdamW, Master, Moments, PackedMoments, master};
use crate::cases::{Check, Fill, Runner, numbers};
use crate::tolerance::{Kind, Precision, Tolerance, tolerance};
use crate::{Leaf, LmBackend};

/// How a parameter is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// In the backend's own float type, rounded to nearest.
    Plain,
    /// In bf16, rounded stochastically.
    Stochastic,
    /// In bf16, with the remainder.
    Remainder,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Shape of the parameter.
    pub dims: [usize; 2],
    /// Numbers in the gradient.
    pub fill: Fill,
    /// Factor of the gradient.
    pub scale: f32,
    /// Hyper-parameters.
    pub hyper: AdamW,
}

/// The table; each case is run for every [`Weight`], with full and with packed moments.
pub fn cases() -> Vec<Case> {
    let hyper = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 7, seed: 11 };
    let case = |name, dims, fill| Case { name, dims, fill, scale: 1.0, hyper };
    vec![
        case("typical", [256, 300], Fill::Typical),
        case("many blocks and an odd rest", [23, 219], Fill::Typical),
        case("rest of a multiple of four", [3, 100], Fill::Typical),
        case("ragged", [7, 13], Fill::Typical),
        Case { hyper: AdamW { step: 1, ..hyper }, ..case("first step", [9, 9], Fill::Typical) },
        Case { hyper: AdamW { step: 1_000_000, ..hyper }, ..case("late step", [9, 9], Fill::Typical) },
        Case { hyper: AdamW { weight_decay: 0.0, ..hyper }, ..case("no decay", [9, 9], Fill::Typical) },
        Case { scale: 0.03, ..case("scaled", [9, 9], Fill::Typical) },
        case("size 1", [1, 1], Fill::Typical),
        case("empty", [0, 4], Fill::Typical),
        case("zero", [9, 9], Fill::Zero),
        case("huge", [9, 9], Fill::Huge),
        case("tiny", [9, 9], Fill::Tiny),
        case("nan", [9, 90], Fill::WithNan),
        case("infinite", [9, 90], Fill::WithInfinities),
        Case { scale: 0.0, ..case("skipped by 0", [9, 40], Fill::Typical) },
        Case { scale: f32::NAN, ..case("skipped by nan", [9, 40], Fill::WithNan) },
        Case { scale: f32::INFINITY, ..case("skipped by infinity", [9, 40], Fill::Typical) },
    ]
}

/// Operands on the device.
#[derive(Clone)]
struct Operands<B: LmBackend> {
    param: Tensor<B, 2>,
    grad: Tensor<B, 2>,
    master: Master<B>,
    moments: Moments<B>,
}

impl<B: LmBackend> Operands<B> {
    /// The operands, and the f64 numbers that they stand for.
    fn new(case: &Case, weight: Weight, packs: bool, runner: &Runner<B>) -> (Self, [Vec<f64>; 4]) {
        let (n, device) = (case.dims[0] * case.dims[1], &runner.device);
        let values = Fill::Typical.values(1, n);
        let (param, master, param64) = match weight {
            Weight::Plain => {
                let (param, wide) = runner.constant(values, case.dims);
                (param.inner(), Master::Nearest, wide)
            }
            Weight::Stochastic => {
                let param = cast(runner.constant(values, case.dims).0.inner(), DType::BF16);
                let wide = widen(numbers(param.clone()));
                (param, Master::Stochastic, wide)
            }
            Weight::Remainder => {
                let (working, remainder) = master::split_all(&values);
                let working = working.into_iter().map(half::bf16::to_f32).collect();
                let param = cast(runner.constant(working, case.dims).0.inner(), DType::BF16);
                (param, Master::Remainder(ints(remainder, device)), widen(values))
            }
        };
        // Another type than the parameter's: they are independent.
        let (grad, _) = runner.constant(case.fill.values(2, n), case.dims);
        let grad = if weight == Weight::Stochastic { cast(grad.inner(), DType::F32) } else { grad.inner() };
        let grad64 = widen(numbers(grad.clone()));
        let m: Vec<f32> = Fill::Typical.values(3, n);
        let v: Vec<f32> = Fill::Typical.values(4, n).into_iter().map(|x| x * x).collect();
        let (moments, m64, v64) = if packs { packed_moments(&m, &v, device) } else { full_moments(m, v, case, runner) };
        (Self { param, grad, master, moments }, [param64, grad64, m64, v64])
    }

    /// One step on these operands.
    fn step(self, case: &Case, runner: &Runner<B>) -> (Leaf<B>, Master<B>, Moments<B>) {
        let (param, grad) = (Leaf::Matrix(self.param), Leaf::Matrix(self.grad));
        crate::adamw_step(param, grad, self.master, self.moments, runner.floats([case.scale]), &case.hyper)
    }

    /// One step that gathers the new parameter's peaks; checks them, where the backend gathers.
    fn step_gathered(self, case: &Case, runner: &mut Runner<B>) -> (Leaf<B>, Master<B>) {
        let (param, grad, state) = (Leaf::Matrix(self.param), Leaf::Matrix(self.grad), (self.master, self.moments));
        let scale = runner.floats([case.scale]);
        let (param, kept, _, peaks) = crate::adamw_step_gathered(param, grad, state, scale, &case.hyper, true);
        let must = B::lm_gathers(&runner.device) && param.dtype() == DType::BF16 && param.n_elements() > 0;
        let peak = || f64::from(crate::fp8::peak(&numbers(param.clone().matrix())));
        let want: Vec<f64> = (must || peaks.is_some()).then(peak).into_iter().collect();
        let got: Vec<f32> = peaks.map(|seen| crate::fp8::peak(&numbers(seen))).into_iter().collect();
        runner.check_numbers("peak of the new param", &got, &want, tolerance(Precision::F32, Kind::Copy));
        (param, kept)
    }
}

/// The tensor in another element type; burn's own cast launches a kernel over no elements, which CUDA refuses.
fn cast<B: LmBackend>(tensor: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
    match tensor.dims().contains(&0) {
        true => Tensor::empty(tensor.dims(), (&tensor.device(), dtype)),
        false => tensor.cast::<FloatDType>(dtype.into()),
    }
}

fn widen(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

fn ints<B: LmBackend>(values: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let options = (device, DType::I32);
    match values.len() {
        0 => Tensor::empty([0], options),
        n => Tensor::from_data(TensorData::new(values, [n]), options),
    }
}

fn host_ints<B: LmBackend>(tensor: Tensor<B, 1, Int>) -> Vec<i32> {
    match tensor.dims() {
        [0] => Vec::new(),
        _ => tensor.into_data().iter::<i32>().collect(),
    }
}

type WithWide<B> = (Moments<B>, Vec<f64>, Vec<f64>);

fn full_moments<B: LmBackend>(m: Vec<f32>, v: Vec<f32>, case: &Case, runner: &Runner<B>) -> WithWide<B> {
    let ((m, m64), (v, v64)) = (runner.constant(m, case.dims), runner.constant(v, case.dims));
    (Moments::Full { m: Leaf::Matrix(m.inner()), v: Leaf::Matrix(v.inner()) }, m64, v64)
}

fn packed_moments<B: LmBackend>(m: &[f32], v: &[f32], device: &B::Device) -> WithWide<B> {
    let n = m.len();
    let (m, v) = (reference::pack_m(&widen(m.to_vec()), 5), reference::pack_v(&widen(v.to_vec()), 5));
    let code = |code: &f64| if *code < 0.0 { (-*code) as u8 | 0x80 } else { *code as u8 };
    let words = |codes: &Codes| {
        let codes: Vec<u8> = codes.codes.iter().map(code).collect();
        let mut words = vec![0; codes.len() / packed::CODES];
        packed::pack(&codes, &mut words);
        ints(words, device)
    };
    let scales = |codes: &Codes| {
        let scales: Vec<f32> = codes.scales.iter().map(|&x| x as f32).collect();
        let options = (device, DType::F32);
        match scales.len() {
            0 => Tensor::empty([0], options),
            n => Tensor::<B, 1>::from_data(TensorData::new(scales, [n]), options),
        }
    };
    let wide = |codes: &Codes, decode: fn(u8) -> f32| -> Vec<f64> {
        let value = |i: usize| f64::from(decode(code(&codes.codes[i]))) * codes.scales[i / BLOCK];
        (0..n).map(value).collect()
    };
    let (m64, roots) = (wide(&m, packed::decode_m), wide(&v, packed::decode_v));
    let moments = PackedMoments { m: words(&m), m_scale: scales(&m), v: words(&v), v_scale: scales(&v) };
    (Moments::Packed(moments), m64, roots.into_iter().map(|r| r * r).collect())
}

/// The codes of words as numbers, those of the first moment with their sign.
fn codes(words: Tensor<impl LmBackend, 1, Int>, signed: bool) -> Vec<f32> {
    let words = host_ints(words);
    let code = |i: usize| match packed::code(&words[i / packed::CODES..], i % packed::CODES) {
        code if signed && code & 0x80 != 0 => -f32::from(code & 0x7F),
        code => f32::from(code),
    };
    (0..words.len() * packed::CODES).map(code).collect()
}

/// Bounds of codes: the reference's, but for one in a thousand that is a neighbour, because rounding in f32 may decide
/// otherwise for a value that lies on the edge.
fn neighbours(want: &[f64]) -> Tolerance {
    let largest = want.iter().fold(1.0f64, |max, x| max.max(x.abs()));
    let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt().max(1.0);
    let neighbours = (want.len() as f64 / 1000.0).max(1.0).sqrt();
    Tolerance { element: 0.0, floor: 1.001 / largest, global: 1.001 * neighbours / norm }
}

/// Checks a parameter after a step, and with a remainder the number it stands for.
fn check_param<B: LmBackend>(runner: &mut Runner<B>, param: Leaf<B>, kept: Master<B>, want: &[f64], skipped: bool) {
    let param = param.matrix();
    let elementwise = tolerance(Precision::F32, if skipped { Kind::Copy } else { Kind::Elementwise });
    match kept {
        Master::Nearest => {
            runner.check("param", param, want, if skipped { Kind::Copy } else { Kind::Elementwise });
        }
        Master::Stochastic => {
            let bounds = match skipped {
                true => elementwise,
                // Now and then the other neighbour, one unit away.
                false => Tolerance { element: 8e-3, floor: 1e-7, global: 1e-3 },
            };
            runner.check_numbers("param", &numbers(param), want, bounds);
        }
        Master::Remainder(remainder) => {
            let working: Vec<half::bf16> = numbers(param).into_iter().map(half::bf16::from_f32).collect();
            let whole = master::join_all(&working, &host_ints(remainder));
            runner.check_numbers("whole param", &whole, want, elementwise);
            let nearest: Vec<f64> = whole.iter().map(|&x| master::split(x).0.to_f64()).collect();
            let working: Vec<f32> = working.into_iter().map(half::bf16::to_f32).collect();
            runner.check_numbers("working param", &working, &nearest, tolerance(Precision::F32, Kind::Copy));
        }
    }
}

/// The parameter that the reference gives; rounded stochastically where it is kept so.
fn wanted_param(param: &[f64], weight: Weight, hyper: &AdamW) -> Vec<f64> {
    if weight != Weight::Stochastic {
        return param.to_vec();
    }
    let random = |i| master::dither(packed::random(hyper.key(), i));
    let round = |(i, &x): (usize, &f64)| master::round_stochastically(x as f32, random(i)).to_f64();
    param.iter().enumerate().map(round).collect()
}

/// Runs one case in one variant, with shared and with owned operands.
fn run_variant<B: LmBackend>(case: &Case, weight: Weight, packs: bool, runner: &mut Runner<B>) {
    let (operands, wide) = Operands::new(case, weight, packs, runner);
    let [before, grad, m, v] = &wide;
    let skipped = !super::takes_effect(case.scale);
    let [param, m, v] = reference::step(before, grad, m, v, case.scale.into(), &case.hyper);
    let want = if skipped { param } else { wanted_param(&param, weight, &case.hyper) };
    // With a second owner the operands must stay as they were.
    let (param, kept) = operands.clone().step_gathered(case, runner);
    check_param(runner, param, kept, &want, skipped);
    check_param(runner, Leaf::Matrix(operands.param.clone()), operands.master.clone(), before, true);
    let old = match &operands.moments {
        Moments::Packed(PackedMoments { m, v, .. }) => [codes(m.clone(), true), codes(v.clone(), false)].map(widen),
        Moments::Full { .. } => Default::default(),
    };
    let (param, kept, moments) = operands.step(case, runner);
    check_param(runner, param, kept, &want, skipped);
    let kind = if skipped { Kind::Copy } else { Kind::Elementwise };
    match moments {
        Moments::Packed(moments) => {
            let exact = tolerance(Precision::F32, kind);
            let (m, v) = (reference::pack_m(&m, case.hyper.key()), reference::pack_v(&v, case.hyper.key()));
            let [m_codes, v_codes] = if skipped { old } else { [m.codes, v.codes] };
            let bounds = |want: &[f64]| if skipped { exact } else { neighbours(want) };
            runner.check_numbers("m", &codes(moments.m, true), &m_codes, bounds(&m_codes));
            runner.check_numbers("v", &codes(moments.v, false), &v_codes, bounds(&v_codes));
            if !skipped {
                runner.check_numbers("m scale", &numbers(moments.m_scale), &m.scales, exact);
                runner.check_numbers("v scale", &numbers(moments.v_scale), &v.scales, exact);
            }
        }
        Moments::Full { m: got_m, v: got_v } => {
            runner.check("m", got_m.matrix(), &m, kind);
            runner.check("v", got_v.matrix(), &v, kind);
        }
    }
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("adamw", device);
    for case in cases() {
        for weight in [Weight::Plain, Weight::Stochastic, Weight::Remainder] {
            for packs in [false, true] {
                let moments = if packs { "packed" } else { "full" };
                runner.begin(&format!("{}, {weight:?}, {moments}", case.name));
                run_variant(&case, weight, packs, &mut runner);
            }
        }
    }
    runner.finish()
}
