//! A linear layer per expert with a low-rank update of each expert, and its cases.
//!
//! With the rows `r` of expert `e` as in [`super`]:
//! ```text
//! low[r] = s·x[r]·a_eᵀ              y[r]  = x[r]·w_eᵀ + low[r]·b_eᵀ + bias_e
//! dlow[r] = s·dy[r]·b_e             dx[r] = dy[r]·w_e + dlow[r]·a_e
//! da_e = Σ_r dlow[r]ᵀ·x[r]          db_e  = Σ_r dy[r]ᵀ·low[r]
//! ```
//! The weight is in the backend's type or packed. Where nothing of the base is trained, the graph has one node for all of it.
//!
//! # Shapes
//! `x [m, i]`, `w [e·o, i]`, `a [e·q, i]`, `b [e·o, q]` of rank `q`, `low [m, q]`, `y [m, o]`.
//!
//! # Numerics
//! `low` and `dlow` are rounded to the type of `x` before and after the factor. A backend may sum both products of a result before
//! it rounds, or round each.

use burn::tensor::Tensor;

use crate::cases::{Check, Fill, Runner};
use crate::ops::dispatch::cases::Assign;
use crate::ops::dispatch::reference::Sorted;
use crate::ops::grouped_linear::reference;
use crate::tolerance::Kind;
use crate::{ExpertLora, ExpertWeight, Fp8Rows, LmBackend, MXFP4_BYTES, Mxfp4, Packed, quantise_mxfp4};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Tokens, choices of each, and experts.
    pub dims: [usize; 3],
    /// Input width, output width and rank of an expert.
    pub widths: [usize; 3],
    /// Factor on the update.
    pub scale: f32,
    /// Who goes where.
    pub assign: Assign,
    /// Numbers in `x`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, widths, scale, assign, fill| Case { name, dims, widths, scale, assign, fill };
    vec![
        case("typical", [64, 4, 8], [96, 160, 16], 2.0, Assign::Spread, Fill::Typical),
        case("many rows", [700, 2, 3], [96, 200, 8], 1.0, Assign::Spread, Fill::Typical),
        case("wide", [150, 2, 2], [64, 328, 16], 0.5, Assign::Spread, Fill::Typical),
        case("rank beyond a step", [50, 2, 3], [160, 96, 72], 2.0, Assign::Spread, Fill::Typical),
        case("rank beyond a tile", [50, 2, 2], [64, 96, 136], 0.25, Assign::Spread, Fill::Typical),
        case("ragged", [37, 3, 7], [64, 67, 5], 1.5, Assign::Spread, Fill::Typical),
        case("rank 1", [33, 2, 5], [32, 48, 1], 2.0, Assign::Spread, Fill::Typical),
        case("experts without rows", [37, 2, 8], [32, 24, 8], 2.0, Assign::Half, Fill::Typical),
        case("all to one expert", [133, 2, 5], [32, 24, 8], 2.0, Assign::One, Fill::Typical),
        case("masked", [300, 4, 8], [32, 24, 8], 2.0, Assign::Masked, Fill::Typical),
        case("all masked", [10, 2, 4], [32, 16, 8], 2.0, Assign::Nobody, Fill::Typical),
        case("one token", [1, 4, 32], [64, 48, 8], 2.0, Assign::Spread, Fill::Typical),
        case("no tokens", [0, 2, 4], [32, 16, 8], 2.0, Assign::Spread, Fill::Typical),
        case("huge", [17, 2, 4], [32, 24, 8], 2.0, Assign::Spread, Fill::Huge),
        case("nan", [170, 2, 4], [32, 24, 8], 2.0, Assign::Spread, Fill::WithNan),
    ]
}

/// Everything that an update's maths gives, in f64.
struct Want {
    y: Vec<f64>,
    dx: Vec<f64>,
    da: Vec<f64>,
    db: Vec<f64>,
}

impl Want {
    fn new(case: &Case, [x, w, bias, a, b, dy]: [&[f64]; 6], offsets: &[usize]) -> Self {
        let ([n, k, _], [i, o, r]) = (case.dims, case.widths);
        let (m, scale) = (n * k, f64::from(case.scale));
        let sum = |x: Vec<f64>, y: Vec<f64>| x.into_iter().zip(y).map(|(x, y)| x + y).collect::<Vec<_>>();
        let scaled = |x: Vec<f64>| x.into_iter().map(|x| x * scale).collect::<Vec<_>>();
        let low = scaled(reference::forward(x, a, None, offsets, [m, i, r]));
        let y = sum(
            reference::forward(x, w, Some(bias), offsets, [m, i, o]),
            reference::forward(&low, b, None, offsets, [m, r, o]),
        );
        let (dlow, db, _) = reference::backward(dy, &low, b, offsets, [m, r, o]);
        let (dx_low, da, _) = reference::backward(&scaled(dlow), x, a, offsets, [m, i, r]);
        let (dx, _, _) = reference::backward(dy, x, w, offsets, [m, i, o]);
        Self { y, dx: sum(dx, dx_low), da, db }
    }
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([n, k, e], [i, o, r]) = (case.dims, case.widths);
    let (m, experts) = (n * k, case.assign.experts(case.dims));
    let offsets = Sorted::new(&experts, k, e).offsets;
    let at = crate::dispatch(runner.ints(experts, [n, k]), e);
    let (x, x64) = runner.tracked(case.fill.values(1, m * i), [m, i]);
    let (w, w64) = runner.constant(Fill::Typical.values(2, e * o * i), [e * o, i]);
    let (bias, bias64) = runner.constant(Fill::Typical.values(4, e * o), [e * o]);
    let (a, a64) = runner.tracked(Fill::Typical.values(5, e * r * i), [e * r, i]);
    let (b, b64) = runner.tracked(Fill::Typical.values(6, e * o * r), [e * o, r]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [m, o]);
    let lora = ExpertLora { a: a.clone(), b: b.clone(), scale: case.scale };
    let (blocks, scales) = quantise_mxfp4(&Fill::Typical.values(2, e * o * i)).expect("widths are whole blocks");
    let packed64 = crate::ops::grouped_mxfp4::reference::decode(&blocks, &scales);
    assert!(blocks.len() == e * o * i / 32 * MXFP4_BYTES, "widths are whole blocks");
    let packed = Mxfp4::<B>::from_bytes(&blocks, &scales, [e * o, i], &runner.device).expect("the lengths fit");
    let fp8 =
        Fp8Rows::<B>::quantise(&Fill::Typical.values(2, e * o * i), [e * o, i], &runner.device).expect("whole words");
    // Decoding has a table of its own, so that its numbers can stand for the reference's here.
    let fp8_64: Vec<f64> = fp8.decode().into_data().iter::<f64>().collect();
    let weights = [
        (["y", "dx", "da", "db"], ExpertWeight::Dense(w), w64),
        (
            ["y of MXFP4", "dx of MXFP4", "da of MXFP4", "db of MXFP4"],
            ExpertWeight::Packed(Packed::Mxfp4(packed.map(Tensor::from_inner))),
            packed64,
        ),
        (
            ["y of FP8", "dx of FP8", "da of FP8", "db of FP8"],
            ExpertWeight::Packed(Packed::Fp8(fp8.map(Tensor::from_inner))),
            fp8_64,
        ),
    ];
    for ([name_y, name_dx, name_da, name_db], weight, w64) in weights {
        let want = Want::new(case, [&x64, &w64, &bias64, &a64, &b64, &dy64], &offsets);
        let y = crate::grouped_lora(x.clone(), &weight, Some(bias.clone()), &lora, &at);
        runner.check(name_y, y.clone().inner(), &want.y, Kind::Product);
        if !runner.differentiates(m) {
            continue;
        }
        let grads = runner.backward(y, dy.clone());
        runner.check_grad(name_dx, &x, &grads, &want.dx, Kind::Product);
        runner.check_grad(name_da, &a, &grads, &want.da, Kind::Product);
        runner.check_grad(name_db, &b, &grads, &want.db, Kind::Product);
    }
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("grouped_lora", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
