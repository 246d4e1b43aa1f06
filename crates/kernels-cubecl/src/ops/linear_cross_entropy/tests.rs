//! Tests of the head's slice kernel and of its reference.

use super::cases::{Active, Case, cases};
use super::{IGNORED, Operands, cpu, reference};
use crate::cases::Fill;
use crate::compare::compare;
use crate::finite_difference::assert_gradient;
use crate::tolerance::{Kind, Precision, tolerance};
use crate::{KernelError, Tracked};

const BOTH: Tracked = Tracked { x: true, weight: true };
const NEITHER: Tracked = Tracked { x: false, weight: false };

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn check(what: &str, got: &[f32], want: &[f64]) {
    if let Err(mismatch) = compare(got, want, tolerance(Precision::F32, Kind::Product)) {
        panic!("{what}: {mismatch}");
    }
}

/// What a case holds.
struct Run {
    x: Vec<f32>,
    weight: Vec<f32>,
    targets: Vec<i32>,
    weights: Vec<f32>,
    case: Case,
}

impl Run {
    fn new(case: Case) -> Self {
        Self { x: case.x(), weight: case.weight(), targets: case.targets(), weights: case.weights(), case }
    }

    fn operands(&self) -> Operands<'_> {
        let [_, d, v] = self.case.dims;
        Operands { x: &self.x, weight: &self.weight, targets: &self.targets, d, v }
    }
}

/// A case of this shape with typical numbers.
fn run(dims: [usize; 3]) -> Run {
    let (name, head) = ("typical", 1.0 / (dims[1] as f32).sqrt());
    Run::new(Case { name, dims, active: Active::All, z_loss: 1e-3, fill: Fill::Typical, head })
}

#[test]
fn sums_and_gradients_match_the_reference() {
    for run in cases().into_iter().map(Run::new) {
        let (name, x, z) = (run.case.name, run.operands(), run.case.z_loss);
        let (x64, weight64, weights64) = (wide(x.x), wide(x.weight), wide(&run.weights));
        let wide = Operands { x: &x64, weight: &weight64, targets: x.targets, d: x.d, v: x.v };
        let got = cpu::forward_backward(&x, &run.weights, z, BOTH).unwrap();
        let want = reference::forward(&wide, &weights64, f64::from(z));
        check(&format!("{name}: loss"), &[got.sums.loss as f32], &[want.loss]);
        check(&format!("{name}: nll"), &[got.sums.nll as f32], &[want.nll]);
        let plain = cpu::forward(&x, &run.weights, z).unwrap();
        let bits = |sums: cpu::Sums| (sums.loss.to_bits(), sums.nll.to_bits());
        assert_eq!(bits(plain), bits(got.sums), "{name}: the gradient changes nothing in the sums");
        if run.case.has_gradient() {
            let (dx, dw) = reference::backward(&wide, &weights64, f64::from(z));
            check(&format!("{name}: dx"), &got.dx.unwrap(), &dx);
            check(&format!("{name}: dw"), &got.dw.unwrap(), &dw);
        }
    }
}

#[test]
fn reference_gradient_matches_finite_differences() {
    let run = run([6, 3, 5]);
    let (x, weight, weights) = (wide(&run.x), wide(&run.weight), wide(&run.weights));
    let loss = |x: &[f64], weight: &[f64]| {
        let operands = Operands { x, weight, targets: &run.targets, d: 3, v: 5 };
        vec![reference::forward(&operands, &weights, 0.3).loss]
    };
    let operands = Operands { x: &x, weight: &weight, targets: &run.targets, d: 3, v: 5 };
    let (dx, dw) = reference::backward(&operands, &weights, 0.3);
    assert_gradient(&x, &dx, &[1.0], |x| loss(x, &weight));
    assert_gradient(&weight, &dw, &[1.0], |weight| loss(&x, weight));
}

/// Two tokens by hand: logits 0 and ln 3, so the target has probability 1/4.
#[test]
fn reference_matches_a_calculation_by_hand() {
    let operands = Operands { x: &[1.0], weight: &[0.0, 3.0f64.ln()], targets: &[0], d: 1, v: 2 };
    let sums = reference::forward(&operands, &[2.0], 0.5);
    let (nll, lse) = (4.0f64.ln(), 4.0f64.ln());
    assert!((sums.nll - 2.0 * nll).abs() < 1e-12);
    assert!((sums.loss - 2.0 * (nll + 0.5 * lse * lse)).abs() < 1e-12);
}

/// A batch without a supervised token has loss 0, not NaN, and gradients of 0.
#[test]
fn s08_nothing_supervised_is_zero_not_nan() {
    let mut run = run([40, 8, 30]);
    run.targets.fill(IGNORED);
    let got = cpu::forward_backward(&run.operands(), &run.weights, 0.1, BOTH).unwrap();
    assert_eq!(got.sums, cpu::Sums { loss: 0.0, nll: 0.0 });
    assert!(got.dx.unwrap().iter().chain(&got.dw.unwrap()).all(|x| *x == 0.0));
    let run = self::run([40, 8, 30]);
    let got = cpu::forward_backward(&run.operands(), &[0.0; 40], 0.1, BOTH).unwrap();
    assert_eq!(got.sums, cpu::Sums { loss: 0.0, nll: 0.0 });
}

#[test]
fn targets_outside_the_vocabulary_are_errors() {
    for bad in [30, -1, -101, i32::MAX, i32::MIN] {
        let mut run = run([9, 8, 30]);
        run.targets[5] = bad;
        // Not even a weight of 0 excuses it.
        run.weights[5] = 0.0;
        let error = cpu::forward(&run.operands(), &run.weights, 0.0).unwrap_err();
        let want = KernelError::Target { op: "linear_cross_entropy", row: 5, target: bad, vocab_size: 30 };
        assert_eq!(error, want);
    }
}

/// Rows that take no part may hold anything.
#[test]
fn ignored_rows_change_nothing() {
    let mut run = run([90, 16, 300]);
    (0..90).filter(|m| m % 4 == 2).for_each(|m| run.targets[m] = IGNORED);
    let clean = cpu::forward_backward(&run.operands(), &run.weights, 0.01, BOTH).unwrap();
    for m in (0..90).filter(|&m| m % 4 == 2 || run.weights[m] == 0.0) {
        run.x[m * 16] = f32::NAN;
    }
    let dirty = cpu::forward_backward(&run.operands(), &run.weights, 0.01, BOTH).unwrap();
    assert_eq!(clean, dirty);
}

#[test]
fn s02_non_finite_rows_show_in_the_loss() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut run = run([70, 16, 600]);
        run.x[66 * 16..67 * 16].fill(bad);
        let got = cpu::forward_backward(&run.operands(), &run.weights, 0.0, BOTH).unwrap();
        assert!(!got.sums.loss.is_finite() && !got.sums.nll.is_finite(), "{bad}");
    }
    let mut run = run([70, 16, 600]);
    run.x[66 * 16..67 * 16].fill(1e38);
    run.weight.fill(1.0);
    assert!(!cpu::forward(&run.operands(), &run.weights, 0.0).unwrap().loss.is_finite(), "products that overflow");
    run = self::run([70, 16, 600]);
    run.weights[1] = f32::NAN;
    assert!(cpu::forward(&run.operands(), &run.weights, 0.0).unwrap().loss.is_nan());
}

/// A column of −∞ is a token that cannot occur: the loss of the others is finite.
#[test]
fn impossible_tokens_are_no_error() {
    let mut run = run([10, 1, 600]);
    run.x.fill(1.0);
    run.weight[256..512].fill(f32::NEG_INFINITY);
    run.targets.fill(3);
    let (x64, weight64) = (wide(&run.x), wide(&run.weight));
    let operands = Operands { x: &x64, weight: &weight64, targets: &run.targets, d: 1, v: 600 };
    let want = reference::forward(&operands, &wide(&run.weights), 1e-3);
    let got = cpu::forward(&run.operands(), &run.weights, 1e-3).unwrap();
    check("loss", &[got.loss as f32], &[want.loss]);
    run.targets.fill(300);
    assert_eq!(cpu::forward(&run.operands(), &run.weights, 1e-3).unwrap().loss, f64::INFINITY);
}

#[test]
fn chunk_size_does_not_matter() {
    let run = run([100, 24, 300]);
    let x = run.operands();
    let whole = cpu::in_chunks(&x, &run.weights, 1e-3, BOTH, 1000).unwrap();
    for rows in [1, 7, 64] {
        let got = cpu::in_chunks(&x, &run.weights, 1e-3, BOTH, rows).unwrap();
        assert!((got.sums.loss - whole.sums.loss).abs() <= 1e-6 * whole.sums.loss.abs(), "{rows} rows");
        check("dx", got.dx.as_ref().unwrap(), &wide(whole.dx.as_ref().unwrap()));
        check("dw", got.dw.as_ref().unwrap(), &wide(whole.dw.as_ref().unwrap()));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = run([200, 32, 1000]);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cpu::in_chunks(&run.operands(), &run.weights, 1e-3, BOTH, 64).unwrap())
    };
    let one = with(1);
    for threads in [2, 7] {
        assert!(with(threads) == one, "{threads} threads");
    }
}

#[test]
fn only_what_is_wanted_is_made() {
    let run = run([20, 8, 30]);
    let with = |want| cpu::forward_backward(&run.operands(), &run.weights, 0.0, want).unwrap();
    let (both, x, weight) =
        (with(BOTH), with(Tracked { x: true, ..NEITHER }), with(Tracked { weight: true, ..NEITHER }));
    assert_eq!((x.dx.as_ref(), x.dw), (both.dx.as_ref(), None));
    assert_eq!((weight.dx, weight.dw.as_ref()), (None, both.dw.as_ref()));
    assert_eq!(with(NEITHER).sums, both.sums);
}
