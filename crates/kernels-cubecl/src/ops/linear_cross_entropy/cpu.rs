//! Head and cross-entropy on the CPU: chunks of active rows, blocks of vocabulary columns in parallel.

use super::chunk::{Chunk, RowStats, rows_per_chunk};
use super::{IGNORED, Operands};
use crate::{KernelError, Tracked, simd_math};

pub use super::reference::Sums;

/// Both sums and the gradients that were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// The sums.
    pub sums: Sums,
    /// `[m, d]`: gradient of the loss by the activations.
    pub dx: Option<Vec<f32>>,
    /// `[v, d]`: gradient of the loss by the head.
    pub dw: Option<Vec<f32>>,
}

/// The two sums alone; `weights` is `[m]`.
///
/// # Errors
/// [`KernelError::Target`] for a target outside the vocabulary.
pub fn forward(x: &Operands, weights: &[f32], z_loss: f32) -> Result<Sums, KernelError> {
    forward_backward(x, weights, z_loss, Tracked { x: false, weight: false }).map(|result| result.sums)
}

/// The two sums and, made on the way, the gradients that `want` asks for; `weights` is `[m]`.
///
/// # Errors
/// [`KernelError::Target`] for a target outside the vocabulary.
///
/// # Panics
/// When a slice has not the length that the shapes ask for.
pub fn forward_backward(x: &Operands, weights: &[f32], z_loss: f32, want: Tracked) -> Result<Gradients, KernelError> {
    in_chunks(x, weights, z_loss, want, rows_per_chunk(x.v))
}

/// As [`forward_backward`], with a given number of rows per chunk.
pub(super) fn in_chunks(
    x: &Operands,
    weights: &[f32],
    z_loss: f32,
    want: Tracked,
    rows_per_chunk: usize,
) -> Result<Gradients, KernelError> {
    x.check("linear_cross_entropy")?;
    assert!(weights.len() == x.m(), "linear_cross_entropy: {} rows but {} weights", x.m(), weights.len());
    let active: Vec<usize> = (0..x.m()).filter(|&m| x.targets[m] != IGNORED && weights[m] != 0.0).collect();
    let mut result = Gradients {
        sums: Sums { loss: 0.0, nll: 0.0 },
        dx: want.x.then(|| vec![0.0; x.x.len()]),
        dw: want.weight.then(|| vec![0.0; x.weight.len()]),
    };
    let mut buffer = Vec::new();
    for rows in active.chunks(rows_per_chunk) {
        let mut chunk = Chunk::new(*x, rows, buffer);
        add_chunk(&mut chunk, rows, weights, z_loss, &mut result);
        buffer = chunk.into_buffer();
    }
    Ok(result)
}

/// Adds one chunk of rows to sums and gradients.
fn add_chunk(chunk: &mut Chunk, rows: &[usize], weights: &[f32], z_loss: f32, result: &mut Gradients) {
    let gradient = result.dx.is_some() || result.dw.is_some();
    let partials = chunk.par_blocks(None, |block, _| {
        block.fill();
        block.partials(gradient)
    });
    let stats = chunk.combine(&partials);
    let z = f64::from(z_loss);
    for (&m, RowStats { lse, target, .. }) in rows.iter().zip(&stats) {
        let (weight, nll) = (f64::from(weights[m]), lse - f64::from(*target));
        result.sums.nll += weight * nll;
        result.sums.loss += weight * (nll + z * lse * lse);
    }
    if !gradient {
        return;
    }
    chunk.par_blocks(result.dw.as_deref_mut(), |block, dw| {
        let partials = &partials[block.index()];
        for (row, (target, logits)) in block.rows_mut().enumerate() {
            let (weight, lse) = (f64::from(weights[rows[row]]), stats[row].lse);
            let factor = weight * (1.0 + 2.0 * z * lse) * partials[row].scale(lse);
            simd_math::scale(logits, factor as f32);
            if let Some(target) = target {
                logits[target] -= weight as f32;
            }
        }
        if !dw.is_empty() {
            block.add_dw(dw);
        }
    });
    if let Some(dx) = &mut result.dx {
        chunk.write_dx(dx);
    }
}
