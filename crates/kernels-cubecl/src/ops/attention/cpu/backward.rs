//! Backward pass: the tiles are made again from the log-sum-exp; threads over batch rows and key heads.

use rayon::prelude::*;

use super::super::{Operands, Problem, Rows};
use super::tile::{QueryBlock, hide, queries_per_block};
use crate::matrix::{Store, View, multiply};
use crate::simd_math;

/// Most keys of a tile; two tiles exist at a time.
const MAX_KEYS: usize = 256;

/// Gradients of a fused attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Backward {
    /// `[b, t, (n + 2k)·h]`.
    pub dqkv: Vec<f32>,
    /// `[n]`, where the problem has sinks.
    pub dsinks: Option<Vec<f32>>,
}

/// Gradients from what the forward pass saved.
///
/// # Shapes
/// `dout` and `out` `[b, t, n·h]`, `qkv [b, t, (n + 2k)·h]`, `lse [b, n, t]`.
///
/// # Numerics
/// Each key head is one task that goes over its queries in order, so no sum depends on the number of threads; sinks are
/// summed in f64.
///
/// # Panics
/// When a slice has not the length that the shapes ask for.
pub fn backward(dout: &[f32], qkv: &[f32], out: &[f32], lse: &[f32], problem: &Problem) -> Backward {
    let x = Operands::fused(qkv, problem);
    x.check(problem);
    let (heads, t) = (problem.heads, problem.t);
    let lens = (dout.len(), out.len(), lse.len());
    let rows = problem.b * t;
    let want = (rows * heads.q_width(), rows * heads.q_width(), rows * heads.n_heads);
    assert!(lens == want, "attention backward: dout, out and lse need {want:?} elements, got {lens:?}");
    let mut dqkv = vec![0.0; qkv.len()];
    let mut dsinks = vec![0.0f64; heads.n_heads];
    if rows > 0 {
        let upstream = Upstream {
            dout: Rows::contiguous(dout, t, heads.q_width()),
            out: Rows::contiguous(out, t, heads.q_width()),
            lse,
        };
        let per_row: Vec<Vec<f64>> = dqkv
            .par_chunks_mut(t * heads.width())
            .enumerate()
            .map(|(b, dqkv)| row_gradient(&x, problem, &upstream, b, dqkv))
            .collect();
        for row in per_row {
            dsinks.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
    let dsinks = problem.sinks.map(|_| dsinks.into_iter().map(|x| x as f32).collect());
    Backward { dqkv, dsinks }
}

/// What comes from above and from the forward pass.
struct Upstream<'a> {
    dout: Rows<'a>,
    out: Rows<'a>,
    lse: &'a [f32],
}

/// Gradient of one batch row, `dqkv [t, (n + 2k)·h]`; returns that of the sinks.
fn row_gradient(x: &Operands, problem: &Problem, upstream: &Upstream, b: usize, dqkv: &mut [f32]) -> Vec<f64> {
    let (heads, h) = (problem.heads, problem.heads.d_head);
    let strips: Vec<Strip> =
        (0..heads.n_kv_heads).into_par_iter().map(|kv| Strip::new(x, problem, upstream, b, kv)).collect();
    for (t, row) in dqkv.chunks_mut(heads.width()).enumerate() {
        let (dq, dkv) = row.split_at_mut(heads.q_width());
        let (dk, dv) = dkv.split_at_mut(heads.kv_width());
        for (kv, strip) in strips.iter().enumerate() {
            let q_width = heads.group() * h;
            dq[kv * q_width..][..q_width].copy_from_slice(&strip.dq[t * q_width..][..q_width]);
            dk[kv * h..][..h].copy_from_slice(&strip.dk[t * h..][..h]);
            dv[kv * h..][..h].copy_from_slice(&strip.dv[t * h..][..h]);
        }
    }
    strips.into_iter().flat_map(|strip| strip.dsinks).collect()
}

/// Gradients of one key head and the query heads that read it.
struct Strip {
    /// `[t, group·h]`.
    dq: Vec<f32>,
    /// `[t, h]`.
    dk: Vec<f32>,
    /// `[t, h]`.
    dv: Vec<f32>,
    /// `[group]`.
    dsinks: Vec<f64>,
}

impl Strip {
    fn new(x: &Operands, problem: &Problem, upstream: &Upstream, b: usize, kv: usize) -> Self {
        let (t, h, group) = (problem.t, problem.heads.d_head, problem.heads.group());
        let mut strip =
            Self { dq: vec![0.0; t * group * h], dk: vec![0.0; t * h], dv: vec![0.0; t * h], dsinks: vec![0.0; group] };
        let mut scratch = Scratch::default();
        for from in (0..t).step_by(queries_per_block(problem)) {
            let block = QueryBlock::new(problem, b, from);
            scratch.load(x, problem, upstream, &block, kv);
            scratch.tiles(x, problem, &block, kv, &mut strip);
            scratch.store(problem, &block, kv, &mut strip);
        }
        strip
    }
}

/// Working memory of one task; rows as in the forward pass.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    dq: Vec<f32>,
    lse: Vec<f32>,
    /// `[rows]`: do·o.
    delta: Vec<f32>,
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl Scratch {
    /// Gathers what belongs to the block's rows.
    fn load(&mut self, x: &Operands, problem: &Problem, upstream: &Upstream, block: &QueryBlock, kv: usize) {
        let (heads, h) = (problem.heads, problem.heads.d_head);
        block.gather(&mut self.q, x.q, problem, kv);
        block.gather(&mut self.dout, upstream.dout, problem, kv);
        block.gather(&mut self.out, upstream.out, problem, kv);
        self.delta.clear();
        self.delta.extend(self.dout.chunks(h).zip(self.out.chunks(h)).map(|(dout, out)| simd_math::dot(dout, out)));
        self.lse.clear();
        for n in kv * heads.group()..(kv + 1) * heads.group() {
            let at = (block.b * heads.n_heads + n) * problem.t + block.t;
            self.lse.extend_from_slice(&upstream.lse[at..at + block.len()]);
        }
        self.dq.clear();
        self.dq.resize(self.q.len(), 0.0);
    }

    /// Goes over the keys that the block sees and adds to all four gradients.
    fn tiles(&mut self, x: &Operands, problem: &Problem, block: &QueryBlock, kv: usize, strip: &mut Strip) {
        let (h, scale) = (problem.heads.d_head, problem.scale);
        let rows = problem.heads.group() * block.len();
        self.p.resize(rows * MAX_KEYS, 0.0);
        self.ds.resize(rows * MAX_KEYS, 0.0);
        let (q, dout) = (View::rows(&self.q, rows, h, h), View::rows(&self.dout, rows, h, h));
        for keys in block.tiles(MAX_KEYS) {
            let (from, width) = (keys.start, keys.len());
            let (p, ds) = (&mut self.p[..rows * width], &mut self.ds[..rows * width]);
            let k = View::rows(x.k.at(block.b, from, kv * h), width, h, x.k.row_stride);
            let v = View::rows(x.v.at(block.b, from, kv * h), width, h, x.v.row_stride);
            multiply(p, width, Store::Replace, q, k.transposed(), scale);
            multiply(ds, width, Store::Replace, dout, v.transposed(), 1.0);
            for (row, (p, ds)) in p.chunks_mut(width).zip(ds.chunks_mut(width)).enumerate() {
                let seen = block.seen(row, &keys);
                simd_math::scaled_exp_sub(hide(p, seen.clone()), simd_math::shift(self.lse[row]), 1.0);
                ds[..seen.start].fill(0.0);
                ds[seen.end..].fill(0.0);
                simd_math::softmax_gradient(&mut ds[seen.clone()], &p[seen], self.delta[row]);
            }
            let (p, ds) = (View::rows(p, rows, width, width), View::rows(ds, rows, width, width));
            let at = from * h..(from + width) * h;
            multiply(&mut strip.dv[at.clone()], h, Store::Add, p.transposed(), dout, 1.0);
            multiply(&mut strip.dk[at], h, Store::Add, ds.transposed(), q, scale);
            multiply(&mut self.dq, h, Store::Add, ds, k, scale);
        }
    }

    /// Writes the block's share of `dq` and adds to the sinks' gradient.
    fn store(&self, problem: &Problem, block: &QueryBlock, kv: usize, strip: &mut Strip) {
        let (h, group) = (problem.heads.d_head, problem.heads.group());
        for (row, dq) in self.dq.chunks(h).enumerate() {
            let (g, t) = (row / block.len(), block.t + row % block.len());
            strip.dq[(t * group + g) * h..][..h].copy_from_slice(dq);
            if let Some(sinks) = problem.sinks {
                let p = f64::from(sinks[kv * group + g] - self.lse[row]).exp();
                strip.dsinks[g] -= p * f64::from(self.delta[row]);
            }
        }
    }
}
