//! Cases of dispatch: the sort, gathering and combining.

use super::reference::Sorted;
use crate::cases::{Check, Fill, Runner, whole_numbers};
use crate::tolerance::Kind;
use crate::{Dispatch, LmBackend};
use burn::backend::Autodiff;

/// Which experts the tokens go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assign {
    /// Any, different ones for a token.
    Spread,
    /// The lower half only: the others have no rows.
    Half,
    /// All slots to the last expert.
    One,
    /// As spread, with every third token left out.
    Masked,
    /// No slot has an expert.
    Nobody,
}

impl Assign {
    /// Experts `[n, k]` out of `e`.
    pub fn experts(self, [n, k, e]: [usize; 3]) -> Vec<i32> {
        let first = whole_numbers(40, n, e);
        let pool = if self == Self::Half { e.div_ceil(2) } else { e };
        let one = |slot: usize| match self {
            Self::One => e as i32 - 1,
            Self::Nobody => {
                if slot.is_multiple_of(2) {
                    -1
                } else {
                    e as i32
                }
            }
            Self::Masked if (slot / k).is_multiple_of(3) => -1,
            _ => ((first[slot / k] as usize + (slot % k)) % pool) as i32,
        };
        (0..n * k).map(one).collect()
    }
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Tokens, choices of each, and experts.
    pub dims: [usize; 3],
    /// Width of a token.
    pub d: usize,
    /// Who goes where.
    pub assign: Assign,
    /// Numbers in `x` and `y`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, d, assign, fill| Case { name, dims, d, assign, fill };
    vec![
        case("typical", [130, 4, 32], 96, Assign::Spread, Fill::Typical),
        case("ragged", [37, 3, 7], 45, Assign::Spread, Fill::Typical),
        case("many tokens", [3000, 2, 6], 24, Assign::Spread, Fill::Typical),
        case("wide", [5, 2, 8], 2880, Assign::Spread, Fill::Typical),
        case("experts without rows", [37, 2, 8], 32, Assign::Half, Fill::Typical),
        case("all to one expert", [33, 2, 5], 17, Assign::One, Fill::Typical),
        case("one expert", [33, 1, 1], 17, Assign::Spread, Fill::Typical),
        case("all experts", [19, 6, 6], 32, Assign::Spread, Fill::Typical),
        case("masked", [100, 4, 8], 32, Assign::Masked, Fill::Typical),
        case("all masked", [10, 2, 4], 8, Assign::Nobody, Fill::Typical),
        case("one token", [1, 4, 32], 64, Assign::Spread, Fill::Typical),
        case("size 1", [1, 1, 1], 1, Assign::Spread, Fill::Typical),
        case("no tokens", [0, 2, 4], 8, Assign::Spread, Fill::Typical),
        case("zero", [17, 2, 4], 8, Assign::Spread, Fill::Zero),
        case("huge", [17, 2, 4], 8, Assign::Spread, Fill::Huge),
        case("tiny", [17, 2, 4], 8, Assign::Spread, Fill::Tiny),
        case("nan", [17, 2, 4], 8, Assign::Spread, Fill::WithNan),
        case("infinite", [17, 2, 4], 8, Assign::Spread, Fill::WithInfinities),
    ]
}

/// Sorts on the device and by the definition, and compares the two.
fn sorted<B: LmBackend>(case: &Case, runner: &mut Runner<B>) -> (Dispatch<Autodiff<B>>, Sorted) {
    let [n, k, e] = case.dims;
    let experts = case.assign.experts([n, k, e]);
    let want = Sorted::new(&experts, k, e);
    let got = crate::dispatch(runner.ints(experts, [n, k]), e);
    let floats = |values: &[usize]| values.iter().map(|&x| x as f64).collect::<Vec<_>>();
    let token: Vec<usize> = want.slot.iter().map(|slot| slot / k).collect();
    for (what, got, want) in [
        ("slot", &got.slot, &want.slot),
        ("token", &got.token, &token),
        ("position", &got.position, &want.position),
        ("offsets", &got.offsets, &want.offsets),
    ] {
        runner.check_ints(what, got.clone().inner(), &floats(want));
    }
    (got, want)
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([n, k, _], d) = (case.dims, case.d);
    let m = n * k;
    let (at, want) = sorted(case, runner);
    let (x, x64) = runner.tracked(case.fill.values(1, n * d), [n, d]);
    let xs = crate::gather_tokens(x.clone(), &at);
    runner.check("gathered", xs.clone().inner(), &want.gather(&x64, d), Kind::Copy);
    let mut y = case.fill.values(2, m * d);
    // What stands in rows of no expert must not matter.
    y[want.n_live() * d..].fill(f32::NAN);
    let (y, y64) = runner.tracked(y, [m, d]);
    let weights = Fill::Typical.values(3, m);
    let weights64: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let weights = match m {
        0 => runner.tracked(weights, [n, k]).0,
        _ => runner.tracked_f32(weights, [n, k]),
    };
    let out = crate::combine(y.clone(), weights.clone(), &at);
    runner.check("combined", out.clone().inner(), &want.combine(&y64, &weights64, d), Kind::Reduction);
    if !runner.differentiates(m) {
        return;
    }
    let (dxs, dxs64) = runner.constant(Fill::Typical.values(4, m * d), [m, d]);
    let grads = runner.backward(xs, dxs);
    runner.check_grad("dx", &x, &grads, &want.gather_backward(&dxs64, d), Kind::Reduction);
    let (dout, dout64) = runner.constant(Fill::Typical.values(5, n * d), [n, d]);
    let grads = runner.backward(out, dout);
    let (dy64, dweights64) = want.combine_backward(&dout64, &y64, &weights64, d);
    runner.check_grad("dy", &y, &grads, &dy64, Kind::Elementwise);
    runner.check_grad("dweights", &weights, &grads, &dweights64, Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("dispatch", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradients_match_finite_differences() {
        for assign in [Assign::Spread, Assign::Masked, Assign::One] {
            let ([n, k, e], d) = ([7, 2, 5], 3);
            let sorted = Sorted::new(&assign.experts([n, k, e]), k, e);
            let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
            let (x, dxs) = (wide(1, n * d), wide(2, n * k * d));
            assert_gradient(&x, &sorted.gather_backward(&dxs, d), &dxs, |x| sorted.gather(x, d));
            let (y, w, dout) = (wide(3, n * k * d), wide(4, n * k), wide(5, n * d));
            let (dy, dw) = sorted.combine_backward(&dout, &y, &w, d);
            assert_gradient(&y, &dy, &dout, |y| sorted.combine(y, &w, d));
            assert_gradient(&w, &dw, &dout, |w| sorted.combine(&y, w, d));
        }
    }
}
