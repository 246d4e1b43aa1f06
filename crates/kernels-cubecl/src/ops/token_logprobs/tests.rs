//! Tests of the log-probabilities' slice kernel and of its reference.

use super::cases::{Active, Case, cases};
use super::{IGNORED, Operands, cpu, reference};
use crate::cases::Fill;
use crate::compare::compare;
use crate::finite_difference::assert_gradient;
use crate::tolerance::{Kind, Precision, tolerance};
use crate::{KernelError, Tracked};

const BOTH: Tracked = Tracked { x: true, weight: true };

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
    upstream: Vec<f32>,
    case: Case,
}

impl Run {
    fn new(case: Case) -> Self {
        Self { x: case.x(), weight: case.weight(), targets: case.targets(), upstream: case.upstream(), case }
    }

    fn typical(dims: [usize; 3]) -> Self {
        let (name, head) = ("typical", 1.0 / (dims[1] as f32).sqrt());
        Self::new(Case { name, dims, active: Active::All, z_loss: 0.0, fill: Fill::Typical, head })
    }

    fn operands(&self) -> Operands<'_> {
        let [_, d, v] = self.case.dims;
        Operands { x: &self.x, weight: &self.weight, targets: &self.targets, d, v }
    }
}

#[test]
fn statistics_and_gradients_match_the_reference() {
    for run in cases().into_iter().map(Run::new) {
        let (name, x) = (run.case.name, run.operands());
        let (x64, weight64) = (wide(x.x), wide(x.weight));
        let operands = Operands { x: &x64, weight: &weight64, targets: x.targets, d: x.d, v: x.v };
        let (got, want) = (cpu::forward(&x).unwrap(), reference::forward(&operands));
        check(&format!("{name}: logprob"), &got.logprob, &want.logprob);
        check(&format!("{name}: lse"), &got.lse, &want.lse);
        if run.case.has_gradient() {
            assert_eq!(got.argmax, want.argmax, "{name}: argmax");
            let grad = cpu::backward(&run.upstream, &x, &got.lse, BOTH).unwrap();
            let (dx, dw) = reference::backward(&wide(&run.upstream), &operands);
            check(&format!("{name}: dx"), &grad.dx.unwrap(), &dx);
            check(&format!("{name}: dw"), &grad.dw.unwrap(), &dw);
        }
    }
}

#[test]
fn reference_gradient_matches_finite_differences() {
    let mut run = Run::typical([5, 3, 4]);
    run.targets[2] = IGNORED;
    let (x, weight, upstream) = (wide(&run.x), wide(&run.weight), wide(&run.upstream));
    let logprob = |x: &[f64], weight: &[f64]| {
        reference::forward(&Operands { x, weight, targets: &run.targets, d: 3, v: 4 }).logprob
    };
    let operands = Operands { x: &x, weight: &weight, targets: &run.targets, d: 3, v: 4 };
    let (dx, dw) = reference::backward(&upstream, &operands);
    assert_gradient(&x, &dx, &upstream, |x| logprob(x, &weight));
    assert_gradient(&weight, &dw, &upstream, |weight| logprob(&x, weight));
}

/// Probabilities 1/4 and 3/4.
#[test]
fn reference_matches_a_calculation_by_hand() {
    let weight = [0.0, 3.0f64.ln()];
    let operands = Operands { x: &[1.0, 1.0, 1.0], weight: &weight, targets: &[0, 1, IGNORED], d: 1, v: 2 };
    let got = reference::forward(&operands);
    let near = |got: &[f64], want: [f64; 3]| got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12);
    assert!(near(&got.logprob, [0.25f64.ln(), 0.75f64.ln(), 0.0]), "{got:?}");
    assert!(near(&got.lse, [4.0f64.ln(); 3]), "{got:?}");
    assert_eq!(got.argmax, [1, 1, 1]);
}

/// Equal logits, also across blocks: the first one wins.
#[test]
fn argmax_takes_the_first_of_equals() {
    let mut weight = vec![0.0f32; 1000];
    [300, 301, 299, 700].iter().for_each(|&v| weight[v] = 2.0);
    let operands = Operands { x: &[1.0, 0.0, -1.0], weight: &weight, targets: &[IGNORED; 3], d: 1, v: 1000 };
    assert_eq!(cpu::forward(&operands).unwrap().argmax, [299, 0, 0]);
}

/// Probabilities add up: over all tokens as targets, Σ exp(logprob) = 1.
#[test]
fn probabilities_add_up_to_one() {
    let run = Run::typical([1, 12, 700]);
    let x = run.x.repeat(700);
    let targets: Vec<i32> = (0..700).collect();
    let stats = cpu::forward(&Operands { x: &x, targets: &targets, ..run.operands() }).unwrap();
    let total: f64 = stats.logprob.iter().map(|&p| f64::from(p).exp()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}

#[test]
fn targets_outside_the_vocabulary_are_errors() {
    let mut run = Run::typical([9, 8, 30]);
    run.targets[4] = 30;
    let error = cpu::forward(&run.operands()).unwrap_err();
    assert_eq!(error, KernelError::Target { op: "token_logprobs", row: 4, target: 30, vocab_size: 30 });
    assert!(cpu::backward(&run.upstream, &run.operands(), &[0.0; 9], BOTH).is_err());
}

#[test]
fn s02_non_finite_rows_show_and_stay_where_they_are() {
    let mut run = Run::typical([80, 16, 600]);
    let clean = cpu::forward(&run.operands()).unwrap();
    run.x[66 * 16] = f32::NAN;
    let dirty = cpu::forward(&run.operands()).unwrap();
    assert!(dirty.logprob[66].is_nan() && dirty.lse[66].is_nan());
    assert!(compare(&dirty.logprob, &wide(&clean.logprob), tolerance(Precision::F32, Kind::Product)).is_err());
    let others = |stats: &cpu::Stats| (0..80).filter(|m| *m != 66).map(|m| stats.logprob[m]).collect::<Vec<_>>();
    assert_eq!(others(&clean), others(&dirty));
}

#[test]
fn chunk_size_does_not_matter() {
    let run = Run::typical([100, 24, 300]);
    let x = run.operands();
    let whole = cpu::forward_in_chunks(&x, 1000).unwrap();
    let grad = cpu::backward_in_chunks(&run.upstream, &x, &whole.lse, BOTH, 1000).unwrap();
    for rows in [1, 7, 64] {
        let got = cpu::forward_in_chunks(&x, rows).unwrap();
        check("logprob", &got.logprob, &wide(&whole.logprob));
        assert_eq!(got.argmax, whole.argmax);
        let got = cpu::backward_in_chunks(&run.upstream, &x, &whole.lse, BOTH, rows).unwrap();
        check("dx", &got.dx.unwrap(), &wide(grad.dx.as_ref().unwrap()));
        check("dw", &got.dw.unwrap(), &wide(grad.dw.as_ref().unwrap()));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = Run::typical([200, 32, 1000]);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let stats = cpu::forward_in_chunks(&run.operands(), 64).unwrap();
            let grad = cpu::backward_in_chunks(&run.upstream, &run.operands(), &stats.lse, BOTH, 64).unwrap();
            (stats, grad)
        })
    };
    let one = with(1);
    for threads in [2, 7] {
        assert!(with(threads) == one, "{threads} threads");
    }
}
