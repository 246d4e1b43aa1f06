//! Cases of the attention: spans of every kind, grouped heads, sinks.

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::{Operands, Problem, Rows, reference};
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;
use crate::{HeadLayout, LmBackend, Spans};

/// Which keys the queries of a row see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All keys up to the query itself.
    Causal,
    /// Documents of these lengths one after the other, again and again.
    Documents(&'static [usize]),
    /// The last keys, this many.
    Window(usize),
    /// Documents with a window inside.
    DocumentsWindow(&'static [usize], usize),
    /// So many tokens at the front, and one more per batch row, are padding.
    PaddedLeft(usize),
    /// So many tokens at the end, and one more per batch row, are padding.
    PaddedRight(usize),
    /// No query sees anything.
    Nothing,
    /// The last so many keys belong to the queries, all others to a cache.
    Cached(usize),
    /// As above, and a query sees only so many keys.
    CachedWindow(usize, usize),
}

impl Mask {
    /// Start and end for every query, `[b, t]`, over `s` keys.
    pub fn spans(self, [b, t, s]: [usize; 3]) -> (Vec<i32>, Vec<i32>) {
        let span = |i: usize| {
            let (b, t, offset) = (i / t, i % t, s - t);
            let (start, end) = self.span(b, t + offset, s);
            (start.min(s) as i32, end.min(s) as i32)
        };
        (0..b * t).map(span).unzip()
    }

    /// The span of the query at key position `at`.
    fn span(self, b: usize, at: usize, s: usize) -> (usize, usize) {
        let document = |lens: &[usize]| {
            let mut start = 0;
            lens.iter().cycle().find_map(|len| {
                start += len;
                (start > at).then_some(start - len)
            })
        };
        match self {
            Self::Causal | Self::Cached(_) => (0, at + 1),
            Self::Documents(lens) => (document(lens).unwrap_or(0), at + 1),
            Self::Window(width) | Self::CachedWindow(_, width) => ((at + 1).saturating_sub(width), at + 1),
            Self::DocumentsWindow(lens, width) => {
                (document(lens).unwrap_or(0).max((at + 1).saturating_sub(width)), at + 1)
            }
            Self::PaddedLeft(n) if at < n + b => (at, at),
            Self::PaddedLeft(n) => (n + b, at + 1),
            Self::PaddedRight(n) if at + n + b >= s => (at, at),
            Self::PaddedRight(_) => (0, at + 1),
            Self::Nothing => (at, at),
        }
    }
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Batch rows and queries.
    pub rows: [usize; 2],
    /// Heads of a row.
    pub heads: HeadLayout,
    /// Who sees what.
    pub mask: Mask,
    /// Whether there are sinks.
    pub sinks: bool,
    /// Numbers in `qkv`.
    pub fill: Fill,
    /// Factor on the scores.
    pub scale: f32,
}

impl Case {
    /// Keys per row.
    pub fn n_keys(&self) -> usize {
        match self.mask {
            Mask::Cached(n) | Mask::CachedWindow(n, _) => n + self.rows[1],
            _ => self.rows[1],
        }
    }

    /// `[b, t, (n + 2k)·h]`.
    pub fn qkv(&self) -> Vec<f32> {
        self.fill.values(1, self.rows[0] * self.rows[1] * self.heads.width())
    }

    /// Upstream gradient `[b, t, n·h]`.
    pub fn dout(&self) -> Vec<f32> {
        Fill::Typical.values(2, self.rows[0] * self.rows[1] * self.heads.q_width())
    }

    /// `[n]`, where the case has them.
    pub fn sinks(&self) -> Option<Vec<f32>> {
        self.sinks.then(|| Fill::Typical.values(3, self.heads.n_heads))
    }

    /// True where gradients are worth comparing: a softmax with all its weight on one key has none but rounding errors,
    /// and a NaN reaches every key of its row as `0·NaN`.
    pub fn has_gradient(&self) -> bool {
        matches!(self.fill, Fill::Typical | Fill::Zero | Fill::Tiny) && self.scale < 2.0
    }
}

/// The table for fused rows.
pub fn cases() -> Vec<Case> {
    let case = |name, rows, [n_heads, n_kv_heads, d_head]: [usize; 3], mask, sinks| {
        let heads = HeadLayout { n_heads, n_kv_heads, d_head };
        Case { name, rows, heads, mask, sinks, fill: Fill::Typical, scale: 1.0 / (d_head as f32).sqrt() }
    };
    let filled = |name, fill| Case { fill, ..case(name, [2, 9], [2, 1, 8], Mask::Causal, false) };
    vec![
        case("typical", [2, 70], [4, 4, 32], Mask::Causal, false),
        case("grouped", [2, 70], [8, 2, 16], Mask::Causal, false),
        case("one kv head", [1, 33], [5, 1, 16], Mask::Causal, true),
        case("ragged", [3, 37], [6, 3, 7], Mask::Causal, false),
        case("long", [1, 600], [2, 1, 8], Mask::Causal, true),
        case("documents", [2, 150], [4, 2, 16], Mask::Documents(&[40, 1, 23, 61]), false),
        case("window", [1, 300], [2, 2, 8], Mask::Window(33), false),
        case("window of one", [1, 70], [2, 2, 8], Mask::Window(1), true),
        case("documents and window", [2, 90], [2, 1, 8], Mask::DocumentsWindow(&[50, 7], 12), true),
        case("left padding", [3, 70], [4, 2, 8], Mask::PaddedLeft(5), false),
        case("left padding, sinks", [3, 20], [4, 2, 8], Mask::PaddedLeft(5), true),
        case("right padding", [3, 70], [4, 2, 8], Mask::PaddedRight(9), false),
        case("nothing seen", [2, 5], [2, 1, 4], Mask::Nothing, false),
        case("nothing seen, sinks", [2, 5], [2, 1, 4], Mask::Nothing, true),
        case("head of 64", [2, 150], [4, 2, 64], Mask::Causal, false),
        case("head of 128", [1, 200], [4, 1, 128], Mask::Causal, true),
        case("head of 128, whole blocks", [2, 256], [2, 2, 128], Mask::Causal, false),
        case("head of 64, documents", [2, 300], [4, 2, 64], Mask::Documents(&[70, 1, 129, 40]), true),
        case("head of 128, window", [1, 300], [2, 1, 128], Mask::Window(70), false),
        case("head of 64, left padding", [2, 140], [2, 1, 64], Mask::PaddedLeft(66), true),
        case("head of 128, right padding", [2, 140], [2, 1, 128], Mask::PaddedRight(70), false),
        case("head of 64, nothing seen", [1, 70], [2, 1, 64], Mask::Nothing, true),
        case("head of 64, many tiles", [12, 130], [12, 4, 64], Mask::DocumentsWindow(&[50, 7], 9), true),
        // Whole tiles of padding behind tiles that see something, several for each block of threads.
        case("head of 64, tiles of padding", [24, 132], [12, 4, 64], Mask::PaddedRight(0), false),
        Case { fill: Fill::Huge, ..case("head of 64, huge", [1, 70], [2, 1, 64], Mask::Causal, false) },
        case("size 1", [1, 1], [1, 1, 1], Mask::Causal, false),
        case("no tokens", [2, 0], [2, 1, 4], Mask::Causal, true),
        case("no rows", [0, 3], [2, 1, 4], Mask::Causal, false),
        filled("zero", Fill::Zero),
        filled("huge", Fill::Huge),
        filled("tiny", Fill::Tiny),
        Case { scale: 40.0, ..filled("sharp", Fill::Typical) },
    ]
}

/// The table for queries over a cache.
pub fn cached_cases() -> Vec<Case> {
    let case = |name, rows, cached, sinks| {
        let heads = HeadLayout { n_heads: 4, n_kv_heads: 2, d_head: 16 };
        Case { name, rows, heads, mask: Mask::Cached(cached), sinks, fill: Fill::Typical, scale: 0.25 }
    };
    let wide = |name, rows, [n_heads, n_kv_heads, d_head]: [usize; 3], cached, sinks| {
        let heads = HeadLayout { n_heads, n_kv_heads, d_head };
        Case { heads, scale: 0.1, ..case(name, rows, cached, sinks) }
    };
    vec![
        case("one new token", [3, 1], 40, false),
        case("one new token, sinks", [1, 1], 700, true),
        wide("one new token, heads of 128", [2, 1], [8, 2, 128], 90, true),
        wide("one new token, heads of 128, many keys", [2, 1], [8, 2, 128], 1500, false),
        wide("one new token, heads of 64, groups of 8", [3, 1], [16, 2, 64], 333, true),
        wide("one new token, heads of 64, groups of 3", [2, 1], [6, 2, 64], 200, true),
        wide("one new token, many rows", [70, 1], [8, 8, 64], 130, false),
        Case { mask: Mask::CachedWindow(900, 128), ..wide("one new token, window", [2, 1], [16, 2, 64], 900, true) },
        Case { mask: Mask::Nothing, ..wide("one new token sees nothing", [2, 1], [8, 2, 128], 0, true) },
        case("some new tokens", [2, 5], 11, false),
        case("empty cache", [2, 20], 0, true),
        Case { mask: Mask::Nothing, ..case("nothing seen", [2, 1], 0, false) },
    ]
}

/// f64 copies of what a case holds.
struct Wide {
    start: Vec<i32>,
    end: Vec<i32>,
    sinks: Vec<f64>,
}

impl Wide {
    fn new(case: &Case, sinks: Option<Vec<f64>>) -> Self {
        let (start, end) = case.mask.spans([case.rows[0], case.rows[1], case.n_keys()]);
        Self { start, end, sinks: sinks.unwrap_or_default() }
    }

    fn problem(&self, case: &Case) -> Problem<'_> {
        let ([b, t], s) = (case.rows, case.n_keys());
        Problem { heads: case.heads, b, t, s, scale: case.scale, start: &self.start, end: &self.end, sinks: None }
    }

    fn spans<B: LmBackend>(&self, case: &Case, runner: &Runner<B>) -> Spans<Autodiff<B>> {
        Spans { start: runner.ints(self.start.clone(), case.rows), end: runner.ints(self.end.clone(), case.rows) }
    }
}

/// Runs one case over fused rows forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t], heads) = (case.rows, case.heads);
    let (qkv, qkv64) = runner.tracked(case.qkv(), [b, t, heads.width()]);
    let (dout, dout64) = runner.constant(case.dout(), [b, t, heads.q_width()]);
    let sinks = case.sinks().map(|sinks| runner.tracked(sinks, [heads.n_heads]));
    let wide = Wide::new(case, sinks.as_ref().map(|(_, sinks)| sinks.clone()));
    let (problem, spans) = (wide.problem(case), wide.spans(case, runner));
    let sinks = sinks.map(|(sinks, _)| sinks);
    let out = crate::attention(qkv.clone(), &spans, sinks.clone(), heads, case.scale);
    let x = Operands::fused(&qkv64, &problem);
    runner.check("o", out.clone().inner(), &reference::forward(&x, &problem, &wide.sinks).out, Kind::Product);
    if !case.has_gradient() || !runner.differentiates(b * t) {
        return;
    }
    let grads = runner.backward(out, dout);
    let want = reference::backward(&dout64, &x, &problem, &wide.sinks);
    runner.check_grad("dqkv", &qkv, &grads, &want.dqkv(&problem), Kind::Product);
    if let Some(sinks) = sinks {
        runner.check_grad("dsinks", &sinks, &grads, &want.dsinks, Kind::Cancelling);
    }
}

/// Runs one case over a cache.
pub fn run_cached_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t], s, heads) = (case.rows, case.n_keys(), case.heads);
    let (q, q64) = runner.constant(Fill::Typical.values(4, b * t * heads.q_width()), [b, t, heads.q_width()]);
    let parts = [5, 6].map(|seed| {
        let values = Fill::Typical.values(seed, b * s * heads.kv_width());
        runner.constant(values, [b, s, heads.kv_width()])
    });
    let [(k, k64), (v, v64)] = parts;
    let sinks = case.sinks().map(|sinks| runner.constant(sinks, [heads.n_heads]));
    let wide = Wide::new(case, sinks.as_ref().map(|(_, sinks)| sinks.clone()));
    let (problem, spans) = (wide.problem(case), wide.spans(case, runner));
    let spans = Spans { start: spans.start.inner(), end: spans.end.inner() };
    let sinks: Option<Tensor<B, 1>> = sinks.map(|(sinks, _)| sinks.inner());
    let out = crate::attention_cached(q.inner(), k.inner(), v.inner(), &spans, sinks, heads, case.scale);
    let x = Operands {
        q: Rows::contiguous(&q64, t, heads.q_width()),
        k: Rows::contiguous(&k64, s, heads.kv_width()),
        v: Rows::contiguous(&v64, s, heads.kv_width()),
    };
    runner.check("o over a cache", out, &reference::forward(&x, &problem, &wide.sinks).out, Kind::Product);
}

/// Runs both tables.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("attention", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    cached_cases().iter().for_each(|case| run_cached_case(case, &mut runner));
    runner.finish()
}
