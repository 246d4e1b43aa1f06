//! A chunk of rows and its logits, cut into blocks of vocabulary columns: what the ops of the output head share.

use std::ops::Range;

use rayon::prelude::*;

use super::Operands;
use crate::matrix::{Store, View, multiply};
use crate::simd_math;

/// Vocabulary columns of a block; with a chunk's rows it stays in a core's own cache.
pub(crate) const BLOCK: usize = 256;
/// Most logits of a chunk, as far as [`MIN_ROWS`] allows.
const CHUNK_ELEMENTS: usize = 1 << 21;
/// Fewest rows of a chunk: with fewer, packing the head and rewriting its gradient for every chunk would take longer than
/// the products. For rows at least this wide the logits of a chunk still take no more memory than the head itself.
const MIN_ROWS: usize = 128;
/// Most rows of a chunk.
const MAX_ROWS: usize = 512;
/// Rows of one task when the gradient of the rows is made.
const DX_ROWS: usize = 64;

/// Rows of each chunk but the last.
pub(crate) fn rows_per_chunk(v: usize) -> usize {
    (CHUNK_ELEMENTS / v.max(1)).clamp(MIN_ROWS, MAX_ROWS)
}

/// What one block says about one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partial {
    /// Largest logit.
    max: f32,
    /// Σ exp(logit − max).
    sum: f32,
    /// Logit of the row's target, 0 where that is in another block.
    target: f32,
}

impl Partial {
    /// Factor that turns the block's `exp(logit − max)` into probabilities.
    pub(crate) fn scale(&self, lse: f64) -> f64 {
        (f64::from(self.max) - lse).exp()
    }
}

/// What all blocks together say about one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowStats {
    /// Log-sum-exp.
    pub(crate) lse: f64,
    /// Logit of the target, 0 where the row has none.
    pub(crate) target: f32,
    /// The first block with the largest logit.
    best_block: usize,
}

/// Some rows with their logits. Block `j` stands at `j·rows·BLOCK` as `[rows, width of the block]`.
pub(crate) struct Chunk<'a> {
    operands: Operands<'a>,
    rows: &'a [usize],
    x: Vec<f32>,
    logits: Vec<f32>,
}

impl<'a> Chunk<'a> {
    /// Copies the rows together; the logits are not made yet. `buffer` is memory of an earlier chunk.
    pub(crate) fn new(operands: Operands<'a>, rows: &'a [usize], buffer: Vec<f32>) -> Self {
        let x = rows.iter().flat_map(|&m| operands.row(m)).copied().collect();
        let mut logits = buffer;
        logits.resize(rows.len() * operands.v, 0.0);
        Self { operands, rows, x, logits }
    }

    /// Gives the memory back for the next chunk.
    pub(crate) fn into_buffer(self) -> Vec<f32> {
        self.logits
    }

    /// Runs `task` on every block in parallel, with the block's rows of `dw [v, d]` where that is given and an empty slice
    /// otherwise; results come in the order of the blocks.
    pub(crate) fn par_blocks<S: Send>(
        &mut self,
        dw: Option<&mut [f32]>,
        task: impl Fn(&mut Block, &mut [f32]) -> S + Sync,
    ) -> Vec<S> {
        let Self { operands, rows, x, logits } = self;
        let size = rows.len() * BLOCK;
        let run = |(j, (logits, dw)): (usize, (&mut [f32], &mut [f32]))| {
            let columns = j * BLOCK..((j + 1) * BLOCK).min(operands.v);
            task(&mut Block { operands, rows, x, columns, logits }, dw)
        };
        match dw {
            Some(dw) => {
                let dw = dw.par_chunks_mut((BLOCK * operands.d).max(1));
                logits.par_chunks_mut(size).zip(dw).enumerate().map(run).collect()
            }
            None => logits.par_chunks_mut(size).map(|block| (block, &mut [][..])).enumerate().map(run).collect(),
        }
    }

    /// What the blocks' partial results, `[block][row]`, say about each row.
    pub(crate) fn combine(&self, partials: &[Vec<Partial>]) -> Vec<RowStats> {
        (0..self.rows.len()).into_par_iter().map(|row| combine(partials, row)).collect()
    }

    /// The first column with the row's largest logit; 0 if there is none, because of NaN.
    pub(crate) fn argmax(&self, row: usize, stats: &RowStats, partials: &[Vec<Partial>]) -> usize {
        let Some(partial) = partials.get(stats.best_block).map(|block| block[row]) else { return 0 };
        let (at, width) = self.block(stats.best_block);
        let logits = &self.logits[at + row * width..][..width];
        logits.iter().position(|&l| l == partial.max).map_or(0, |i| stats.best_block * BLOCK + i)
    }

    /// Begin and width of a block.
    fn block(&self, j: usize) -> (usize, usize) {
        (j * self.rows.len() * BLOCK, BLOCK.min(self.operands.v - j * BLOCK))
    }

    /// Writes `dlogits · W`, with the blocks holding the gradient of the logits, to this chunk's rows of `dx [m, d]`.
    pub(crate) fn write_dx(&self, dx: &mut [f32]) {
        let (d, v) = (self.operands.d, self.operands.v);
        if d == 0 {
            return;
        }
        let mut gathered = vec![0.0; self.x.len()];
        gathered.par_chunks_mut(DX_ROWS * d).enumerate().for_each(|(i, dx)| {
            let (first, rows) = (i * DX_ROWS, dx.len() / d);
            for j in 0..v.div_ceil(BLOCK) {
                let (at, width) = self.block(j);
                let dlogits = View::rows(&self.logits[at + first * width..], rows, width, width);
                let weight = View::rows(&self.operands.weight[j * BLOCK * d..], width, d, d);
                multiply(dx, d, Store::Add, dlogits, weight, 1.0);
            }
        });
        for (row, &m) in gathered.chunks(d).zip(self.rows) {
            dx[m * d..][..d].copy_from_slice(row);
        }
    }
}

fn combine(partials: &[Vec<Partial>], row: usize) -> RowStats {
    let (mut max, mut best_block) = (f32::NEG_INFINITY, 0);
    for (j, block) in partials.iter().enumerate() {
        if block[row].max > max {
            (max, best_block) = (block[row].max, j);
        }
    }
    let shift = f64::from(simd_math::shift(max));
    let (mut total, mut target) = (0.0, 0.0);
    for block in partials {
        let Partial { max, sum, target: here } = block[row];
        target += here;
        total += f64::from(sum) * (f64::from(max) - shift).exp();
    }
    RowStats { lse: shift + total.ln(), target, best_block }
}

/// One block of one chunk.
pub(crate) struct Block<'a> {
    operands: &'a Operands<'a>,
    rows: &'a [usize],
    x: &'a [f32],
    columns: Range<usize>,
    logits: &'a mut [f32],
}

impl Block<'_> {
    /// Position among the blocks.
    pub(crate) fn index(&self) -> usize {
        self.columns.start / BLOCK
    }

    /// Makes the logits.
    pub(crate) fn fill(&mut self) {
        let (d, width) = (self.operands.d, self.columns.len());
        let x = View::rows(self.x, self.rows.len(), d, d);
        let weight = View::rows(&self.operands.weight[self.columns.start * d..], width, d, d);
        multiply(self.logits, width, Store::Replace, x, weight.transposed(), 1.0);
    }

    /// Maximum, sum and target of each row; with `keep_exp` the logits become `exp(logit − max)`.
    pub(crate) fn partials(&mut self, keep_exp: bool) -> Vec<Partial> {
        let one = |(target, logits): (Option<usize>, &mut [f32])| {
            let (max, target) = (simd_math::max(logits), target.map_or(0.0, |i| logits[i]));
            let sum = match keep_exp {
                true => simd_math::exp_sub_sum(logits, simd_math::shift(max)),
                false => simd_math::sum_exp_sub(logits, simd_math::shift(max)),
            };
            Partial { max, sum, target }
        };
        self.rows_mut().map(one).collect()
    }

    /// Each row's logits with the place of its target in this block.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = (Option<usize>, &mut [f32])> {
        let Self { operands, rows, columns, logits, .. } = self;
        let here = |m: usize| operands.target(m).filter(|v| columns.contains(v)).map(|v| v - columns.start);
        rows.iter().zip(logits.chunks_mut(columns.len())).map(move |(&m, logits)| (here(m), logits))
    }

    /// Adds `dlogitsᵀ · x`, with the block holding the gradient of the logits, to the block's rows of `dw`.
    pub(crate) fn add_dw(&self, dw: &mut [f32]) {
        let (c, d, width) = (self.rows.len(), self.operands.d, self.columns.len());
        let dlogits = View::rows(self.logits, c, width, width);
        multiply(dw, d, Store::Add, dlogits.transposed(), View::rows(self.x, c, d, d), 1.0);
    }
}
