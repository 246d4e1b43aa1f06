//! Tests of the attention's slice kernel and of its reference.

use super::cases::{Case, Mask, cached_cases, cases};
use super::{Operands, Problem, Rows, cpu, reference};
use crate::HeadLayout;
use crate::cases::Fill;
use crate::compare::compare;
use crate::finite_difference::assert_gradient;
use crate::tolerance::{Kind, Precision, tolerance};

/// A case with its spans, ready to run.
struct Run {
    case: Case,
    start: Vec<i32>,
    end: Vec<i32>,
    sinks: Option<Vec<f32>>,
}

impl Run {
    fn new(case: Case) -> Self {
        let (start, end) = case.mask.spans([case.rows[0], case.rows[1], case.n_keys()]);
        let sinks = case.sinks();
        Self { case, start, end, sinks }
    }

    fn problem(&self) -> Problem<'_> {
        let ([b, t], s) = (self.case.rows, self.case.n_keys());
        let Case { heads, scale, .. } = self.case;
        Problem { heads, b, t, s, scale, start: &self.start, end: &self.end, sinks: self.sinks.as_deref() }
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn check(what: &str, got: &[f32], want: &[f64]) {
    if let Err(mismatch) = compare(got, want, tolerance(Precision::F32, Kind::Product)) {
        panic!("{what}: {mismatch}");
    }
}

#[test]
fn forward_and_backward_match_the_reference() {
    for run in cases().into_iter().map(Run::new) {
        let (case, problem, name) = (&run.case, run.problem(), run.case.name);
        let (qkv, dout, sinks64) = (case.qkv(), case.dout(), wide(run.sinks.as_deref().unwrap_or_default()));
        let qkv64 = wide(&qkv);
        let x64 = Operands::fused(&qkv64, &problem);
        let got = cpu::forward(&qkv, &problem);
        let want = reference::forward(&x64, &problem, &sinks64);
        check(&format!("{name}: o"), &got.out, &want.out);
        check(&format!("{name}: lse"), &got.lse, &want.lse);
        let grad = cpu::backward(&dout, &qkv, &got.out, &got.lse, &problem);
        if case.has_gradient() {
            let want = reference::backward(&wide(&dout), &x64, &problem, &sinks64);
            check(&format!("{name}: dqkv"), &grad.dqkv, &want.dqkv(&problem));
            assert_eq!(grad.dsinks.is_some(), case.sinks);
            if let Some(dsinks) = grad.dsinks {
                check(&format!("{name}: dsinks"), &dsinks, &want.dsinks);
            }
        } else {
            assert!(grad.dqkv.iter().all(|x| x.is_finite()), "{name}: gradients stay finite");
        }
    }
}

/// Keys and values inside longer rows and batches, as a cache with spare room holds them.
#[test]
fn cached_rows_may_have_gaps() {
    for run in cached_cases().into_iter().map(Run::new) {
        let (problem, heads) = (run.problem(), run.case.heads);
        let (b, t, s) = (problem.b, problem.t, problem.s);
        let (row_stride, batch_stride) = (heads.kv_width() + 3, (s + 5) * (heads.kv_width() + 3));
        let q = Fill::Typical.values(7, b * t * heads.q_width());
        let [k, v] = [8, 9].map(|seed| Fill::Typical.values(seed, b * batch_stride));
        let rows = |data| Rows { data, batch_stride, row_stride };
        let x = Operands { q: Rows::contiguous(&q, t, heads.q_width()), k: rows(&k), v: rows(&v) };
        let got = cpu::forward_cached(&x, &problem);
        let [q64, k64, v64] = [wide(&q), wide(&k), wide(&v)];
        let x64 = Operands {
            q: Rows::contiguous(&q64, t, heads.q_width()),
            k: Rows { data: &k64, batch_stride, row_stride },
            v: Rows { data: &v64, batch_stride, row_stride },
        };
        let want = reference::forward(&x64, &problem, &wide(run.sinks.as_deref().unwrap_or_default()));
        check(run.case.name, &got, &want.out);
    }
}

#[test]
fn reference_gradient_matches_finite_differences() {
    let heads = HeadLayout { n_heads: 4, n_kv_heads: 2, d_head: 3 };
    for (mask, sinks) in [(Mask::Causal, false), (Mask::Documents(&[2, 4]), true), (Mask::Window(2), true)] {
        let name = "finite differences";
        let run = Run::new(Case { name, rows: [2, 6], heads, mask, sinks, fill: Fill::Typical, scale: 0.7 });
        let problem = run.problem();
        let (qkv, dout) = (wide(&run.case.qkv()), wide(&run.case.dout()));
        let sinks = wide(run.sinks.as_deref().unwrap_or_default());
        let grad = reference::backward(&dout, &Operands::fused(&qkv, &problem), &problem, &sinks);
        let forward =
            |qkv: &[f64], sinks: &[f64]| reference::forward(&Operands::fused(qkv, &problem), &problem, sinks).out;
        assert_gradient(&qkv, &grad.dqkv(&problem), &dout, |qkv| forward(qkv, &sinks));
        if !sinks.is_empty() {
            assert_gradient(&sinks, &grad.dsinks, &dout, |sinks| forward(&qkv, sinks));
        }
    }
}

/// One head of width 1 by hand: the second query weighs its two keys 1 : e.
#[test]
fn reference_matches_a_calculation_by_hand() {
    let heads = HeadLayout { n_heads: 1, n_kv_heads: 1, d_head: 1 };
    let (start, end) = Mask::Causal.spans([1, 2, 2]);
    let problem = Problem { heads, b: 1, t: 2, s: 2, scale: 0.5, start: &start, end: &end, sinks: None };
    let qkv = [9.0, 1.0, 3.0, 2.0, 2.0, 5.0];
    let got = reference::forward(&Operands::fused(&qkv, &problem), &problem, &[]);
    let e = std::f64::consts::E;
    let want = [3.0, (3.0 + e * 5.0) / (1.0 + e)];
    assert!(got.out.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12), "{got:?} {want:?}");
    assert!((got.lse[1] - (1.0 + (1.0 + e).ln())).abs() < 1e-12 && (got.lse[0] - 4.5).abs() < 1e-12, "{got:?}");
}

/// The original system had no test of its document mask; what stands beside a document must not change a bit of it.
#[test]
fn packed_documents_equal_separate_ones_bit_for_bit() {
    let heads = HeadLayout { n_heads: 4, n_kv_heads: 2, d_head: 16 };
    let (lens, t): (&[usize], _) = (&[41, 1, 97, 30], 169);
    let run = |mask, t| {
        Run::new(Case { name: "packed", rows: [1, t], heads, mask, sinks: true, fill: Fill::Typical, scale: 0.25 })
    };
    let packed = run(Mask::Documents(lens), t);
    let (qkv, dout) = (packed.case.qkv(), packed.case.dout());
    let all = cpu::forward(&qkv, &packed.problem());
    let all_grad = cpu::backward(&dout, &qkv, &all.out, &all.lse, &packed.problem());
    let mut from = 0;
    for &len in lens {
        let one = run(Mask::Causal, len);
        let part = |x: &[f32], width: usize| x[from * width..(from + len) * width].to_vec();
        let (qkv, dout) = (part(&qkv, heads.width()), part(&dout, heads.q_width()));
        let alone = cpu::forward(&qkv, &one.problem());
        assert_eq!(alone.out, part(&all.out, heads.q_width()), "document of {len}");
        let grad = cpu::backward(&dout, &qkv, &alone.out, &alone.lse, &one.problem());
        check("dqkv", &part(&all_grad.dqkv, heads.width()), &wide(&grad.dqkv));
        from += len;
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let heads = HeadLayout { n_heads: 6, n_kv_heads: 3, d_head: 16 };
    let mask = Mask::Documents(&[200, 90]);
    let run =
        Run::new(Case { name: "threads", rows: [2, 300], heads, mask, sinks: true, fill: Fill::Typical, scale: 0.2 });
    let (qkv, dout, problem) = (run.case.qkv(), run.case.dout(), run.problem());
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let forward = cpu::forward(&qkv, &problem);
            let backward = cpu::backward(&dout, &qkv, &forward.out, &forward.lse, &problem);
            (forward, backward)
        })
    };
    let one = with(1);
    for threads in [2, 7] {
        assert!(with(threads) == one, "{threads} threads");
    }
}

/// The last query of a row sees the same through a cache.
#[test]
fn cache_equals_fused_rows() {
    let heads = HeadLayout { n_heads: 4, n_kv_heads: 2, d_head: 8 };
    let (b, t) = (2, 50);
    let full = Run::new(Case {
        name: "full",
        rows: [b, t],
        heads,
        mask: Mask::Causal,
        sinks: true,
        fill: Fill::Typical,
        scale: 0.3,
    });
    let qkv = full.case.qkv();
    let want = cpu::forward(&qkv, &full.problem()).out;
    let (start, end) = (vec![0; b], vec![t as i32; b]);
    let problem = Problem { t: 1, start: &start, end: &end, ..full.problem() };
    let fused = Operands::fused(&qkv, &full.problem());
    let q = Rows { data: &qkv[(t - 1) * heads.width()..], ..fused.q };
    let got = cpu::forward_cached(&Operands { q, ..fused }, &problem);
    for b in 0..b {
        let want = &want[((b + 1) * t - 1) * heads.q_width()..][..heads.q_width()];
        check("last query", &got[b * heads.q_width()..][..heads.q_width()], &wide(want));
    }
}

/// Spans that reach beyond the keys, or run backwards, are cut and never touch memory outside.
#[test]
fn wild_spans_are_cut() {
    let heads = HeadLayout { n_heads: 1, n_kv_heads: 1, d_head: 2 };
    let (start, end) = ([-5, 3, 2, i32::MIN], [9, 1, 2, i32::MAX]);
    let problem = Problem { heads, b: 1, t: 4, s: 4, scale: 1.0, start: &start, end: &end, sinks: None };
    assert_eq!((0..4).map(|t| problem.span(0, t).len()).collect::<Vec<_>>(), [4, 0, 0, 4]);
    let qkv = Fill::Typical.values(1, 4 * heads.width());
    let want = reference::forward(&Operands::fused(&wide(&qkv), &problem), &problem, &[]);
    let got = cpu::forward(&qkv, &problem);
    check("o", &got.out, &want.out);
    assert_eq!(got.out[2..6], [0.0; 4]);
    assert_eq!(got.lse[1..3], [f32::NEG_INFINITY; 2]);
}

/// A NaN or infinity anywhere must show in what sees it, and the comparison must not let it pass.
#[test]
fn s02_non_finite_operands_show() {
    let heads = HeadLayout { n_heads: 2, n_kv_heads: 1, d_head: 4 };
    let run = Run::new(Case {
        name: "non-finite",
        rows: [1, 20],
        heads,
        mask: Mask::Causal,
        sinks: false,
        fill: Fill::Typical,
        scale: 0.5,
    });
    let (clean, problem) = (run.case.qkv(), run.problem());
    let want = wide(&cpu::forward(&clean, &problem).out);
    let (q, k, v) = (0, heads.q_width(), heads.q_width() + heads.kv_width());
    for (part, bad) in [(q, f32::NAN), (k, f32::NAN), (v, f32::NAN), (q, f32::INFINITY), (v, f32::NEG_INFINITY)] {
        let mut qkv = clean.clone();
        qkv[7 * heads.width() + part] = bad;
        let got = cpu::forward(&qkv, &problem);
        assert!(!got.out[7 * heads.q_width()].is_finite(), "{part} {bad}");
        assert!(compare(&got.out, &want, tolerance(Precision::F32, Kind::Product)).is_err(), "{part} {bad}");
        let grad = cpu::backward(&run.case.dout(), &qkv, &got.out, &got.lse, &problem);
        assert!(grad.dqkv.iter().any(|x| !x.is_finite()), "{part} {bad}");
    }
}

/// The table keeps the contract of spans: ends at most one past the query, starts that do not decrease.
#[test]
fn cases_keep_the_contract() {
    for run in cases().into_iter().chain(cached_cases()).map(Run::new) {
        let ([_, t], s) = (run.case.rows, run.case.n_keys());
        for (i, (start, end)) in run.start.iter().zip(&run.end).enumerate() {
            assert!(*end as usize <= i % t + 1 + s - t, "{}: query {i} ends at {end}", run.case.name);
            assert!(i % t == 0 || run.start[i - 1] <= *start, "{}: query {i} starts at {start}", run.case.name);
        }
    }
}
