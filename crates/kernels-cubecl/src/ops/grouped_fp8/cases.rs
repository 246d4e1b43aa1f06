//! Cases of the linear layer per expert in FP8: the shapes and routings of [`super::super::grouped_mxfp4`].

use super::reference;
use crate::cases::{Check, Fill, Runner};
use crate::ops::dispatch::reference::Sorted;
use crate::ops::grouped_linear::cases::Case;
use crate::ops::grouped_linear::reference as grouped;
use crate::ops::grouped_mxfp4;
use crate::tolerance::Kind;
use crate::{Fp8Rows, LmBackend, Packed};

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([n, k, e], [i, o]) = (case.dims, case.widths);
    let (m, experts) = (n * k, case.assign.experts(case.dims));
    let offsets = Sorted::new(&experts, k, e).offsets;
    let at = crate::dispatch(runner.ints(experts, [n, k]), e);
    // Rows of different sizes, so that each has a scale of its own.
    let size = |at: usize| 2f32.powi((at / i % 7) as i32 - 5);
    let values: Vec<f32> =
        Fill::Typical.values(7, e * o * i).into_iter().enumerate().map(|(at, x)| x * size(at)).collect();
    let inner = Fp8Rows::<B>::quantise(&values, [e * o, i], &runner.device).expect("whole words");
    let words: Vec<i32> = inner.codes.clone().into_data().iter::<i32>().collect();
    let scales: Vec<i32> = inner.scales.clone().into_data().iter::<i32>().collect();
    let codes: Vec<u8> = words.into_iter().flat_map(i32::to_le_bytes).collect();
    let w64 = reference::decode(&codes, &scales, i);
    runner.check("decoded", inner.decode(), &w64, Kind::Copy);
    runner.check("one row", inner.rows(e * o - 1, 1).decode(), &w64[(e * o - 1) * i..], Kind::Copy);
    let w = Packed::Fp8(inner).to_autodiff();
    let (x, x64) = runner.tracked(case.fill.values(1, m * i), [m, i]);
    let (bias, bias64) = runner.tracked(Fill::Typical.values(4, e * o), [e * o]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [m, o]);
    let y = crate::grouped_linear_packed(x.clone(), &w, bias.clone(), &at);
    let want = grouped::forward(&x64, &w64, Some(&bias64), &offsets, [m, i, o]);
    runner.check("y", y.clone().inner(), &want, Kind::Product);
    if !runner.differentiates(m) {
        return;
    }
    let (dx64, _, db64) = grouped::backward(&dy64, &x64, &w64, &offsets, [m, i, o]);
    let grads = runner.backward(y, dy);
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dbias", &bias, &grads, &db64, Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("grouped_fp8", device);
    grouped_mxfp4::cases::cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
