//! Token log-probabilities on the CPU, on the chunks and blocks of the output head.

use super::{IGNORED, Operands};
use crate::ops::linear_cross_entropy::chunk::{Chunk, rows_per_chunk};
use crate::{KernelError, Tracked, simd_math};

/// Statistics of every row.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// `[m]`: log-probability of the target, 0 where it is ignored.
    pub logprob: Vec<f32>,
    /// `[m]`: log-sum-exp, rounded from f64.
    pub lse: Vec<f32>,
    /// `[m]`: the first token with the largest logit.
    pub argmax: Vec<i32>,
}

/// Gradients that were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `[m, d]`: by the activations.
    pub dx: Option<Vec<f32>>,
    /// `[v, d]`: by the head.
    pub dw: Option<Vec<f32>>,
}

/// Statistics of every row, ignored ones too.
///
/// # Errors
/// [`KernelError::Target`] for a target outside the vocabulary.
///
/// # Panics
/// When a slice has not the length that the shapes ask for.
pub fn forward(x: &Operands) -> Result<Stats, KernelError> {
    forward_in_chunks(x, rows_per_chunk(x.v))
}

/// As [`forward`], with a given number of rows per chunk.
pub(super) fn forward_in_chunks(x: &Operands, rows_per_chunk: usize) -> Result<Stats, KernelError> {
    x.check("token_logprobs")?;
    let rows: Vec<usize> = (0..x.m()).collect();
    let with_room = || Vec::with_capacity(x.m());
    let mut result = Stats { logprob: with_room(), lse: with_room(), argmax: Vec::with_capacity(x.m()) };
    let mut buffer = Vec::new();
    for rows in rows.chunks(rows_per_chunk) {
        let mut chunk = Chunk::new(*x, rows, buffer);
        let partials = chunk.par_blocks(None, |block, _| {
            block.fill();
            block.partials(false)
        });
        for (row, stats) in chunk.combine(&partials).iter().enumerate() {
            let hot = x.targets[rows[row]] != IGNORED;
            result.logprob.push(if hot { (f64::from(stats.target) - stats.lse) as f32 } else { 0.0 });
            result.lse.push(stats.lse as f32);
            result.argmax.push(chunk.argmax(row, stats, &partials) as i32);
        }
        buffer = chunk.into_buffer();
    }
    Ok(result)
}

/// Gradients for the upstream gradient `g [m]`, with `lse [m]` from the forward pass.
///
/// # Errors
/// [`KernelError::Target`] for a target outside the vocabulary.
///
/// # Panics
/// When a slice has not the length that the shapes ask for.
pub fn backward(g: &[f32], x: &Operands, lse: &[f32], want: Tracked) -> Result<Gradients, KernelError> {
    backward_in_chunks(g, x, lse, want, rows_per_chunk(x.v))
}

/// As [`backward`], with a given number of rows per chunk.
pub(super) fn backward_in_chunks(
    g: &[f32],
    x: &Operands,
    lse: &[f32],
    want: Tracked,
    rows_per_chunk: usize,
) -> Result<Gradients, KernelError> {
    x.check("token_logprobs backward")?;
    let lens = (g.len(), lse.len());
    assert!(lens == (x.m(), x.m()), "token_logprobs backward: {} rows but {lens:?} gradients and log-sums", x.m());
    let active: Vec<usize> = (0..x.m()).filter(|&m| x.targets[m] != IGNORED && g[m] != 0.0).collect();
    let mut result =
        Gradients { dx: want.x.then(|| vec![0.0; x.x.len()]), dw: want.weight.then(|| vec![0.0; x.weight.len()]) };
    if !want.x && !want.weight {
        return Ok(result);
    }
    let mut buffer = Vec::new();
    for rows in active.chunks(rows_per_chunk) {
        let mut chunk = Chunk::new(*x, rows, buffer);
        chunk.par_blocks(result.dw.as_deref_mut(), |block, dw| {
            block.fill();
            for (row, (target, logits)) in block.rows_mut().enumerate() {
                let m = rows[row];
                simd_math::scaled_exp_sub(logits, simd_math::shift(lse[m]), -g[m]);
                if let Some(target) = target {
                    logits[target] += g[m];
                }
            }
            if !dw.is_empty() {
                block.add_dw(dw);
            }
        });
        if let Some(dx) = &mut result.dx {
            chunk.write_dx(dx);
        }
        buffer = chunk.into_buffer();
    }
    Ok(result)
}
