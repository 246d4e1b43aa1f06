//! Attention on the CPU: tiles of queries × keys, online softmax, threads over batch rows and blocks of queries.

mod backward;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use super::{Operands, Problem};
use crate::matrix::{Store, View, multiply};
use crate::simd_math;
use tile::QueryBlock;

pub use backward::{Backward, backward};

/// Most keys of a tile. Where all keys of a query fit one tile, nothing is rescaled and its output does not depend on what
/// else the row holds.
const MAX_KEYS: usize = 512;

/// Output of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `[b, t, n·h]`.
    pub out: Vec<f32>,
    /// `[b, n, t]`: log-sum-exp with the sink in it; −∞ for a query that sees nothing and has no sink.
    pub lse: Vec<f32>,
}

/// Attention over fused rows.
///
/// # Shapes
/// `qkv [b, t, (n + 2k)·h]`; see [`Forward`] for the results.
///
/// # Panics
/// When a slice has not the length that the shapes ask for.
pub fn forward(qkv: &[f32], problem: &Problem) -> Forward {
    attend(&Operands::fused(qkv, problem), problem)
}

/// Attention of new queries over cached keys and values, output `[b, t, n·h]`.
///
/// # Shapes
/// `q [b, t, n·h]`, `k` and `v` `[b, s, k·h]` with any distance between rows.
///
/// # Panics
/// When a slice is shorter than the shapes ask for.
pub fn forward_cached(x: &Operands, problem: &Problem) -> Vec<f32> {
    attend(x, problem).out
}

fn attend(x: &Operands, problem: &Problem) -> Forward {
    x.check(problem);
    let (b, t, n, width) = (problem.b, problem.t, problem.heads.n_heads, problem.heads.q_width());
    let mut out = vec![0.0; b * t * width];
    let mut lse_btn = vec![0.0; b * t * n];
    if b * t == 0 {
        return Forward { out, lse: lse_btn };
    }
    let len = tile::queries_per_block(problem);
    out.par_chunks_mut(t * width).zip(lse_btn.par_chunks_mut(t * n)).enumerate().for_each(|(b, (out, lse))| {
        let blocks = out.par_chunks_mut(len * width).zip(lse.par_chunks_mut(len * n)).enumerate();
        blocks.for_each_init(Scratch::default, |scratch, (i, (out, lse))| {
            let block = QueryBlock::new(problem, b, i * len);
            for kv in 0..problem.heads.n_kv_heads {
                scratch.attend(x, problem, &block, kv);
                scratch.finish(problem, &block, kv, out, lse);
            }
        });
    });
    Forward { out, lse: heads_first(&lse_btn, problem) }
}

/// `[b, t, n]` to `[b, n, t]`.
fn heads_first(x: &[f32], problem: &Problem) -> Vec<f32> {
    let (t, n) = (problem.t, problem.heads.n_heads);
    let mut y = vec![0.0; x.len()];
    for (x, y) in x.chunks(t * n).zip(y.chunks_mut(t * n)) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = x[i % t * n + i / t];
        }
    }
    y
}

/// Working memory of one thread. A tile's row `g·len + t` is query `t` of the block for head `g` of the group.
#[derive(Default)]
struct Scratch {
    /// `[rows, h]`: queries.
    q: Vec<f32>,
    /// `[rows, keys]`: scores, then probabilities relative to the running maximum.
    p: Vec<f32>,
    /// `[rows, h]`: Σ p·v so far.
    acc: Vec<f32>,
    /// `[rows]`: running maximum of the scores.
    max: Vec<f32>,
    /// `[rows]`: Σ p so far.
    total: Vec<f32>,
}

impl Scratch {
    /// Goes over the keys that the block sees.
    fn attend(&mut self, x: &Operands, problem: &Problem, block: &QueryBlock, kv: usize) {
        let (heads, h) = (problem.heads, problem.heads.d_head);
        let rows = heads.group() * block.len();
        block.gather(&mut self.q, x.q, problem, kv);
        self.acc.clear();
        self.acc.resize(rows * h, 0.0);
        self.max.clear();
        self.total.clear();
        for row in 0..rows {
            let sink = problem.sinks.map(|sinks| sinks[kv * heads.group() + row / block.len()]);
            self.max.push(sink.unwrap_or(f32::NEG_INFINITY));
            self.total.push(if sink.is_some() { 1.0 } else { 0.0 });
        }
        for keys in block.tiles(MAX_KEYS) {
            let (from, width) = (keys.start, keys.len());
            self.p.resize(rows * MAX_KEYS, 0.0);
            let p = &mut self.p[..rows * width];
            let k = View::rows(x.k.at(block.b, from, kv * h), width, h, x.k.row_stride);
            let v = View::rows(x.v.at(block.b, from, kv * h), width, h, x.v.row_stride);
            multiply(p, width, Store::Replace, View::rows(&self.q, rows, h, h), k.transposed(), problem.scale);
            for (row, p) in p.chunks_mut(width).enumerate() {
                let shrink = online_softmax(p, block.seen(row, &keys), &mut self.max[row], &mut self.total[row]);
                if shrink != 1.0 {
                    simd_math::scale(&mut self.acc[row * h..][..h], shrink);
                }
            }
            multiply(&mut self.acc, h, Store::Add, View::rows(p, rows, width, width), v, 1.0);
        }
    }

    /// Divides by the sums; `out` is `[len, n·h]`, `lse` is `[len, n]`.
    fn finish(&self, problem: &Problem, block: &QueryBlock, kv: usize, out: &mut [f32], lse: &mut [f32]) {
        let (heads, h) = (problem.heads, problem.heads.d_head);
        for (row, acc) in self.acc.chunks(h).enumerate() {
            let (n, t) = (kv * heads.group() + row / block.len(), row % block.len());
            let total = self.total[row];
            lse[t * heads.n_heads + n] = self.max[row] + total.ln();
            let inverse = if total == 0.0 { 0.0 } else { 1.0 / total };
            for (o, acc) in out[t * heads.q_width() + n * h..][..h].iter_mut().zip(acc) {
                *o = acc * inverse;
            }
        }
    }
}

/// Turns the scores of one row into `exp(score − max)`, hidden ones into 0, and updates the running maximum and sum.
/// Returns the factor that brings what was summed before to the new maximum.
fn online_softmax(row: &mut [f32], seen: Range<usize>, max: &mut f32, total: &mut f32) -> f32 {
    let tile_max = simd_math::max(&row[seen.clone()]);
    let live = tile::hide(row, seen);
    if live.is_empty() {
        return 1.0;
    }
    let new_max = if tile_max > *max { tile_max } else { *max };
    let sum = simd_math::exp_sub_sum(live, simd_math::shift(new_max));
    let shrink = if new_max == *max { 1.0 } else { simd_math::exp(*max - new_max) };
    *total = *total * shrink + sum;
    *max = new_max;
    shrink
}
