//! The output head and its cross-entropy in one op: `x·Wᵀ`, log-softmax, weighted negative log-likelihood, z-loss.
//!
//! ```text
//! l[m,v]  = x[m]·W[v]
//! L[m]    = ln Σ_v exp l[m,v]
//! nll[m]  = L[m] − l[m, target[m]]
//! loss    = Σ_m w[m]·(nll[m] + z·L[m]²)          nll_sum = Σ_m w[m]·nll[m]
//! ```
//! and backward:
//! ```text
//! dl[m,v] = w[m]·( (1 + 2·z·L[m])·exp(l[m,v] − L[m]) − [v = target[m]] )
//! dx      = dl·W          dW = dlᵀ·x
//! ```
//! A row whose target is [`IGNORED`] or whose weight is zero adds nothing, whatever `x` holds there; such rows are left out
//! before any product. If no row is left, both sums are 0.
//!
//! # Shapes
//! `x [m,d]`, `W [v,d]`, targets `[m]`, weights `[m]`.
//!
//! # Numerics
//! The active rows are taken in chunks, and the logits of a chunk in blocks of vocabulary columns; the logits of all rows
//! never exist at once. Products are f32. Each block sums exponentials relative to its own maximum in f32, the blocks are
//! combined in f64, and so are the two sums, in the order of the rows. `dW` is summed chunk by chunk. Every piece of work
//! has a fixed size, which makes results independent of the number of threads. A non-finite logit in an active row makes
//! the loss non-finite unless it is −∞ and not the target's.
//!
//! # Source
//! Chowdhery et al., "PaLM", section 5, for `z·L²`; Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
//! and Hsu et al., "Liger Kernel", section 3.2, for taking the head in chunks with the gradient made in the forward pass.

pub mod cases;
pub(crate) mod chunk;
pub mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::KernelError;

/// Most logits of a chunk on a CUDA device.
const CHUNK_ELEMENTS: usize = 1 << 27;
/// Most rows of a chunk; for small vocabularies fewer, which costs nothing there.
const MAX_ROWS: usize = 4096;
const MAX_ROWS_SMALL: usize = 512;
/// Vocabulary from which [`MAX_ROWS`] counts.
const LARGE_VOCABULARY: usize = 4096;

/// Rows of each chunk but the last on a CUDA device, for a vocabulary of `v` tokens; memory plans need it on any machine.
pub fn device_chunk_rows(v: usize) -> usize {
    let most = if v < LARGE_VOCABULARY { MAX_ROWS_SMALL } else { MAX_ROWS };
    (CHUNK_ELEMENTS / v.max(1)).clamp(1, most)
}

/// Target of a row that takes no part.
pub const IGNORED: i32 = -100;

/// Activations, head and targets.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T = f32> {
    /// `[m, d]`.
    pub x: &'a [T],
    /// `[v, d]`.
    pub weight: &'a [T],
    /// `[m]`: below `v`, or [`IGNORED`].
    pub targets: &'a [i32],
    /// Width of a row.
    pub d: usize,
    /// Number of tokens in the vocabulary.
    pub v: usize,
}

impl<'a, T> Operands<'a, T> {
    /// Number of rows.
    pub fn m(&self) -> usize {
        self.targets.len()
    }

    /// Row `m` of the activations.
    pub(crate) fn row(&self, m: usize) -> &'a [T] {
        &self.x[m * self.d..][..self.d]
    }

    /// The target of row `m`, if it has one.
    pub(crate) fn target(&self, m: usize) -> Option<usize> {
        usize::try_from(self.targets[m]).ok()
    }

    /// Checks lengths and targets for the op of this name.
    ///
    /// # Errors
    /// [`KernelError::Target`] for the first target that is neither in `0..v` nor [`IGNORED`].
    ///
    /// # Panics
    /// When a slice has not the length that the shapes ask for.
    pub(crate) fn check(&self, op: &'static str) -> Result<(), KernelError> {
        let (lens, want) = ((self.x.len(), self.weight.len()), (self.m() * self.d, self.v * self.d));
        assert!(lens == want, "{op}: x and weight need {want:?} elements, got {lens:?}");
        let wrong = |&(_, &target): &(usize, &i32)| {
            target != IGNORED && !usize::try_from(target).is_ok_and(|target| target < self.v)
        };
        match self.targets.iter().enumerate().find(wrong) {
            Some((row, &target)) => Err(KernelError::Target { op, row, target, vocab_size: self.v }),
            None => Ok(()),
        }
    }
}
