//! Shapes that several ops share: how heads lie in a fused row, and which keys a query sees.

use burn::tensor::{Int, Tensor, backend::Backend};

/// How the heads lie in a fused row `[q heads | k heads | v heads]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadLayout {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and of value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
}

impl HeadLayout {
    /// Width of a fused row.
    pub const fn width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.d_head
    }

    /// Width of the query part, which is also the width of the attention's output.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.d_head
    }

    /// Width of the key part, which is also the width of the value part.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.d_head
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Panics with the values when the layout cannot describe a row.
    pub(crate) fn check(&self) {
        assert!(
            self.d_head > 0 && self.n_kv_heads > 0 && self.n_heads > 0 && self.n_heads.is_multiple_of(self.n_kv_heads),
            "head layout: n_heads must be a positive multiple of n_kv_heads and d_head positive, got {self:?}"
        );
    }
}

/// Which keys each query sees: query `t` sees keys `start[t]..end[t]`.
///
/// One pair of tensors carries the causal mask, document bounds, a sliding window and padding at once. `end[t]` is at most
/// `t + 1` (plus the number of cached keys), and `start` does not decrease within a row. `start >= end` means that the
/// query sees nothing: its output row is zero and no gradient flows.
///
/// # Shapes
/// `start` and `end` are `[b, t]`.
#[derive(Clone, Debug)]
pub struct Spans<B: Backend> {
    /// First key that is seen.
    pub start: Tensor<B, 2, Int>,
    /// One past the last key that is seen.
    pub end: Tensor<B, 2, Int>,
}
