//! Cases of the linear layer per expert.

use super::reference;
use crate::cases::{Check, Fill, Runner};
use crate::ops::dispatch::cases::Assign;
use crate::ops::dispatch::reference::Sorted;
use crate::tolerance::Kind;
use crate::{Leaf, LmBackend, backward_into};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Tokens, choices of each, and experts.
    pub dims: [usize; 3],
    /// Input and output width of an expert.
    pub widths: [usize; 2],
    /// Who goes where.
    pub assign: Assign,
    /// Numbers in `x`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims, widths, assign, fill| Case { name, dims, widths, assign, fill };
    vec![
        case("typical", [64, 4, 8], [96, 160], Assign::Spread, Fill::Typical),
        case("many experts", [40, 4, 32], [48, 72], Assign::Spread, Fill::Typical),
        case("ragged", [37, 3, 7], [45, 67], Assign::Spread, Fill::Typical),
        case("long groups", [700, 2, 3], [33, 21], Assign::Spread, Fill::Typical),
        case("deep sum", [9, 2, 3], [1500, 33], Assign::Spread, Fill::Typical),
        case("several tiles", [700, 2, 3], [72, 328], Assign::Spread, Fill::Typical),
        case("two steps of columns", [150, 2, 3], [200, 136], Assign::Half, Fill::Typical),
        case("many outputs", [9, 2, 3], [24, 700], Assign::Spread, Fill::Typical),
        case("to rank 4", [64, 2, 5], [96, 4], Assign::Spread, Fill::Typical),
        case("from rank 4", [64, 2, 5], [4, 96], Assign::Spread, Fill::Typical),
        case("to rank 1", [33, 2, 5], [48, 1], Assign::Spread, Fill::Typical),
        case("from rank 1", [33, 2, 5], [1, 48], Assign::Spread, Fill::Typical),
        case("experts without rows", [37, 2, 8], [32, 24], Assign::Half, Fill::Typical),
        case("all to one expert", [133, 2, 5], [32, 24], Assign::One, Fill::Typical),
        case("one expert", [33, 1, 1], [32, 24], Assign::Spread, Fill::Typical),
        case("all experts", [19, 6, 6], [32, 24], Assign::Spread, Fill::Typical),
        case("masked", [100, 4, 8], [32, 24], Assign::Masked, Fill::Typical),
        case("all masked", [10, 2, 4], [8, 16], Assign::Nobody, Fill::Typical),
        case("one token", [1, 4, 32], [64, 48], Assign::Spread, Fill::Typical),
        case("size 1", [1, 1, 1], [1, 1], Assign::Spread, Fill::Typical),
        case("no tokens", [0, 2, 4], [8, 16], Assign::Spread, Fill::Typical),
        case("zero", [17, 2, 4], [32, 24], Assign::Spread, Fill::Zero),
        case("huge", [17, 2, 4], [32, 24], Assign::Spread, Fill::Huge),
        case("tiny", [17, 2, 4], [32, 24], Assign::Spread, Fill::Tiny),
        case("nan", [17, 2, 4], [32, 24], Assign::Spread, Fill::WithNan),
        case("infinite", [17, 2, 4], [32, 24], Assign::Spread, Fill::WithInfinities),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([n, k, e], [i, o]) = (case.dims, case.widths);
    let (m, experts) = (n * k, case.assign.experts(case.dims));
    let offsets = Sorted::new(&experts, k, e).offsets;
    let at = crate::dispatch(runner.ints(experts, [n, k]), e);
    let (x, x64) = runner.tracked(case.fill.values(1, m * i), [m, i]);
    let (w, w64) = runner.tracked(Fill::Typical.values(2, e * o * i), [e * o, i]);
    let (bias, bias64) = runner.tracked(Fill::Typical.values(4, e * o), [e * o]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(3, m * o), [m, o]);
    let y = crate::grouped_linear(x.clone(), w.clone(), None, &at);
    let biased = crate::grouped_linear(x.clone(), w.clone(), Some(bias.clone()), &at);
    let want = |bias: Option<&[f64]>| reference::forward(&x64, &w64, bias, &offsets, [m, i, o]);
    runner.check("y", y.clone().inner(), &want(None), Kind::Product);
    runner.check("y with bias", biased.clone().inner(), &want(Some(&bias64)), Kind::Product);
    if !runner.differentiates(m) {
        return;
    }
    let (dx64, dw64, db64) = reference::backward(&dy64, &x64, &w64, &offsets, [m, i, o]);
    let grads = runner.backward(y, dy.clone());
    runner.check_grad("dx", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dw", &w, &grads, &dw64, Kind::Product);
    let grads = runner.backward(biased, dy.clone());
    runner.check_grad("dx with bias", &x, &grads, &dx64, Kind::Product);
    runner.check_grad("dw with bias", &w, &grads, &dw64, Kind::Product);
    runner.check_grad("dbias", &bias, &grads, &db64, Kind::Reduction);
    // Two passes onto one sum.
    let (leaves, mut sums) = ([Leaf::Matrix(w.clone()), Leaf::Vector(bias.clone())], [None, None]);
    for _ in 0..2 {
        let y = crate::grouped_linear(x.clone(), w.clone(), Some(bias.clone()), &at);
        backward_into((y * dy.clone()).sum(), &leaves, &mut sums);
    }
    let twice = |values: &[f64]| values.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
    let [Some(dw), Some(db)] = sums else { unreachable!("both are tracked") };
    runner.check("dw summed", dw.matrix(), &twice(&dw64), Kind::Product);
    runner.check("dbias summed", db.vector(), &twice(&db64), Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("grouped_linear", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        for assign in [Assign::Spread, Assign::Half, Assign::Masked] {
            let ([n, k, e], [i, o]) = ([4, 2, 3], [3, 4]);
            let m = n * k;
            let offsets = Sorted::new(&assign.experts([n, k, e]), k, e).offsets;
            let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
            let (x, w, b, dy) = (wide(1, m * i), wide(2, e * o * i), wide(4, e * o), wide(3, m * o));
            let forward = |x: &[f64], w: &[f64], b: &[f64]| reference::forward(x, w, Some(b), &offsets, [m, i, o]);
            let (dx, dw, db) = reference::backward(&dy, &x, &w, &offsets, [m, i, o]);
            assert_gradient(&x, &dx, &dy, |x| forward(x, &w, &b));
            assert_gradient(&w, &dw, &dy, |w| forward(&x, w, &b));
            assert_gradient(&b, &db, &dy, |b| forward(&x, &w, b));
        }
    }

    /// An expert's rows do not feel how many others there are, and cutting the work differently changes no bit.
    #[test]
    fn experts_do_not_depend_on_each_other() {
        let (i, o, sizes) = (130, 90, [500usize, 0, 3, 260]);
        let offsets: Vec<i32> = std::iter::once(0)
            .chain(sizes.iter().scan(0, |at, n| {
                *at += *n as i32;
                Some(*at)
            }))
            .collect();
        let m = offsets[4] as usize;
        let groups = super::super::cpu::groups(&offsets, m);
        let (x, w) = (Fill::Typical.values(1, m * i), Fill::Typical.values(2, 4 * o * i));
        let mut y = vec![0.0; m * o];
        super::super::cpu::forward(&x, &w, None, &groups, &mut y, [i, o]);
        for (e, group) in groups.iter().enumerate() {
            let mut alone = vec![0.0; group.len() * o];
            let x = &x[group.start * i..group.end * i];
            crate::ops::linear::cpu::forward(x, &w[e * o * i..(e + 1) * o * i], &mut alone, [group.len(), i, o]);
            assert!(y[group.start * o..group.end * o] == alone, "expert {e}");
        }
    }
}
