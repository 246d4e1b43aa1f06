//! Cases of the token log-probabilities: the table of the output head.

use super::{Operands, reference};
use crate::LmBackend;
use crate::cases::{Check, Runner};
use crate::tolerance::Kind;

pub use super::super::linear_cross_entropy::cases::{Active, Case, cases};

/// Runs one case: log-probabilities forward and backward, then the statistics.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let [m, d, v] = case.dims;
    let (x, x64) = runner.tracked(case.x(), [m, d]);
    let (weight, weight64) = runner.tracked(case.weight(), [v, d]);
    let (upstream, upstream64) = runner.constant(case.upstream(), [m]);
    let targets = case.targets();
    let targets_tensor = runner.ints(targets.clone(), [m]);
    let operands = Operands { x: &x64, weight: &weight64, targets: &targets, d, v };
    let want = reference::forward(&operands);
    let logprob = crate::token_logprobs(x.clone(), weight.clone(), targets_tensor.clone());
    runner.check("logprob", logprob.clone().inner(), &want.logprob, Kind::Product);
    let stats = crate::token_stats(x.clone().inner(), weight.clone().inner(), targets_tensor.inner());
    runner.check("logprob of the statistics", stats.logprob, &want.logprob, Kind::Product);
    runner.check("lse", stats.lse, &want.lse, Kind::Product);
    if !case.has_gradient() || !runner.differentiates(m) {
        return;
    }
    let argmax: Vec<f64> = want.argmax.iter().map(|&v| f64::from(v)).collect();
    runner.check_ints("argmax", stats.argmax, &argmax);
    let grads = runner.backward(logprob, upstream);
    let (dx, dw) = reference::backward(&upstream64, &operands);
    runner.check_grad("dx", &x, &grads, &dx, Kind::Product);
    runner.check_grad("dw", &weight, &grads, &dw, Kind::Product);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("token_logprobs", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
