//! Cases of the linear layer per expert in MXFP4.

use super::reference;
use crate::cases::{Check, Fill, Runner, whole_numbers};
use crate::ops::dispatch::cases::Assign;
use crate::ops::dispatch::reference::Sorted;
use crate::ops::grouped_linear::cases::Case;
use crate::ops::grouped_linear::reference as grouped;
use crate::tolerance::Kind;
use crate::{LmBackend, MXFP4_BLOCK, MXFP4_BYTES, Mxfp4};

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, widths, assign, fill| Case { name, dims, widths, assign, fill };
    vec![
        case("typical", [64, 4, 8], [96, 160], Assign::Spread, Fill::Typical),
        case("whole words of scales", [40, 4, 16], [128, 64], Assign::Spread, Fill::Typical),
        case("ragged", [37, 3, 7], [160, 67], Assign::Spread, Fill::Typical),
        case("deep sum", [9, 2, 3], [1440, 33], Assign::Spread, Fill::Typical),
        case("experts without rows", [37, 2, 8], [32, 24], Assign::Half, Fill::Typical),
        case("all to one expert", [133, 2, 5], [64, 24], Assign::One, Fill::Typical),
        case("one expert", [33, 1, 1], [32, 24], Assign::Spread, Fill::Typical),
        case("masked", [50, 4, 8], [32, 24], Assign::Masked, Fill::Typical),
        case("one token", [1, 4, 32], [64, 48], Assign::Spread, Fill::Typical),
        case("one output", [5, 2, 3], [32, 1], Assign::Spread, Fill::Typical),
        case("no tokens", [0, 2, 4], [32, 16], Assign::Spread, Fill::Typical),
        case("huge", [17, 2, 4], [32, 24], Assign::Spread, Fill::Huge),
        case("tiny", [17, 2, 4], [32, 24], Assign::Spread, Fill::Tiny),
        case("nan", [17, 2, 4], [32, 24], Assign::Spread, Fill::WithNan),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([n, k, e], [i, o]) = (case.dims, case.widths);
    let (m, experts) = (n * k, case.assign.experts(case.dims));
    let offsets = Sorted::new(&experts, k, e).offsets;
    let at = crate::dispatch(runner.ints(experts, [n, k]), e);
    let n_blocks = e * o * i / MXFP4_BLOCK;
    let blocks: Vec<u8> = whole_numbers(7, n_blocks * MXFP4_BYTES, 256).into_iter().map(|x| x as u8).collect();
    let scales: Vec<u8> = whole_numbers(8, n_blocks, 9).into_iter().map(|x| x as u8 + 121).collect();
    let w64 = reference::decode(&blocks, &scales);
    let inner = Mxfp4::<B>::from_bytes(&blocks, &scales, [e * o, i], &runner.device).expect("the lengths fit");
    runner.check("decoded", inner.decode(), &w64, Kind::Copy);
    runner.check("one row", inner.rows(e * o - 1, 1).decode(), &w64[(e * o - 1) * i..], Kind::Copy);
    assert!(inner.to_bytes() == (blocks.clone(), scales.clone()), "the bytes come back");
    let w = inner.map(burn::tensor::Tensor::from_inner);
    let (x, x64) = runner.tracked(case.fill.values(1, m * i), [m, i]);
    let (bias, bias64) = runner.tracked(Fill::Typical.values(4, e * o), [e * o]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [m, o]);
    let y = crate::grouped_linear_mxfp4(x.clone(), &w, None, &at);
    let biased = crate::grouped_linear_mxfp4(x.clone(), &w, Some(bias.clone()), &at);
    let want = |bias: Option<&[f64]>| grouped::forward(&x64, &w64, bias, &offsets, [m, i, o]);
    runner.check("y", y.clone().inner(), &want(None), Kind::Product);
    runner.check("y with bias", biased.clone().inner(), &want(Some(&bias64)), Kind::Product);
    if !runner.differentiates(m) {
        return;
    }
    let (dx64, _, db64) = grouped::backward(&dy64, &x64, &w64, &offsets, [m, i, o]);
    let grads = runner.backward(y, dy.clone());
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Product);
    let grads = runner.backward(biased, dy);
    runner.check_grad("dx with bias", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dbias", &bias, &grads, &db64, Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("grouped_mxfp4", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
