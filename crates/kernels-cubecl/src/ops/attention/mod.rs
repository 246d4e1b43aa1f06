//! Attention over spans of keys: causal, packed documents, sliding window, padding, grouped heads, sinks.
//!
//! Query `t` of row `b` sees the keys `s` with `start[b,t] ≤ s < end[b,t]`. Query head `n` reads key and value head
//! `n / (n_heads / n_kv_heads)`. With `sink[n]` a logit that takes part in the normalisation and carries no value:
//! ```text
//! S[t,s] = scale · q[t]·k[s]                           over the visible s
//! L[t]   = ln( Σ_s exp S[t,s]  +  exp sink[n] )        log-sum-exp; the last term only where there are sinks
//! P[t,s] = exp(S[t,s] − L[t]),  p_sink[t] = exp(sink[n] − L[t])
//! o[t]   = Σ_s P[t,s]·v[s]
//! ```
//! and backward, for an upstream gradient `do`:
//! ```text
//! D[t]    = do[t]·o[t]
//! dS[t,s] = P[t,s]·(do[t]·v[s] − D[t])
//! dq[t]   = scale·Σ_s dS[t,s]·k[s]     dk[s] = scale·Σ_t dS[t,s]·q[t]     dv[s] = Σ_t P[t,s]·do[t]
//! dsink   = −Σ_t p_sink[t]·D[t]
//! ```
//! where the sums over `t` of `dk` and `dv` run over all query heads that share the key head. A query that sees nothing
//! gives `o = 0` and no gradient; its `L` is −∞, or the sink.
//!
//! # Shapes
//! A fused row is `[q heads | k heads | v heads]`, see [`crate::HeadLayout`]: `qkv [b,t,(n+2k)·h]`, `o [b,t,n·h]`,
//! `L [b,n,t]`, `sink [n]`, `start` and `end` `[b,t]`. Over a cache `q [b,t,n·h]`, `k` and `v` `[b,s,k·h]`.
//!
//! # Numerics
//! The CPU path works on tiles of queries × keys in f32 with the running maximum and sum of the online softmax; only tiles
//! that some query of the block sees are computed. The backward pass makes the tiles again from `L`. Sums over keys and
//! queries have a fixed order, which makes results independent of the number of threads. A tile multiplies hidden keys by
//! exact zeros, so a non-finite number in `k` or `v` can reach a query of the same tile that does not see it.
//!
//! # Source
//! Milakov and Gimelshein, "Online normalizer calculation for softmax"; Dao et al., "FlashAttention", sections 3.1 and B;
//! Ainslie et al., "GQA"; Xiao et al., "Efficient Streaming Language Models with Attention Sinks".

pub mod cases;
pub mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::HeadLayout;

/// What a call needs to know beside its tensors.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// How the heads lie in a row.
    pub heads: HeadLayout,
    /// Rows of the batch.
    pub b: usize,
    /// Queries per row.
    pub t: usize,
    /// Keys per row; equal to `t` for a fused row.
    pub s: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// `[b, t]`: first visible key.
    pub start: &'a [i32],
    /// `[b, t]`: one past the last visible key.
    pub end: &'a [i32],
    /// `[n]`: one more logit per head.
    pub sinks: Option<&'a [f32]>,
}

impl Problem<'_> {
    /// Visible keys of query `t` in row `b`, cut to the keys that exist; empty when it sees nothing.
    pub(crate) fn span(&self, b: usize, t: usize) -> std::ops::Range<usize> {
        let limit = i64::try_from(self.s).unwrap_or(i64::MAX);
        let cut = |x: i32| i64::from(x).clamp(0, limit) as usize;
        let (start, end) = (cut(self.start[b * self.t + t]), cut(self.end[b * self.t + t]));
        start..end.max(start)
    }

    /// Panics with the values when a slice has not the length that the shapes ask for.
    pub(crate) fn check(&self) {
        self.heads.check();
        let rows = self.b * self.t;
        let spans = (self.start.len(), self.end.len());
        assert!(spans == (rows, rows), "attention: spans of {} x {} queries, got {spans:?} numbers", self.b, self.t);
        let sinks = self.sinks.map_or(self.heads.n_heads, <[f32]>::len);
        assert!(sinks == self.heads.n_heads, "attention: {} heads but {sinks} sinks", self.heads.n_heads);
    }
}

/// Rows of heads inside a slice: row `(b, t)` begins at `b·batch_stride + t·row_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T = f32> {
    /// The slice; it begins with the first row.
    pub data: &'a [T],
    /// Distance from one batch row to the next.
    pub batch_stride: usize,
    /// Distance from one token to the next.
    pub row_stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// `[b, len, width]` without gaps.
    pub fn contiguous(data: &'a [T], len: usize, width: usize) -> Self {
        Self { data, batch_stride: len * width, row_stride: width }
    }

    /// The slice from `offset` elements into row `(b, t)` on.
    pub(crate) fn at(&self, b: usize, t: usize, offset: usize) -> &'a [T] {
        &self.data[b * self.batch_stride + t * self.row_stride + offset..]
    }

    /// Panics with the values when `[b, len, width]` does not fit the slice.
    pub(crate) fn check(&self, name: &str, b: usize, len: usize, width: usize) {
        let extent = match b == 0 || len == 0 {
            true => 0,
            false => (b - 1) * self.batch_stride + (len - 1) * self.row_stride + width,
        };
        assert!(extent <= self.data.len(), "attention: {name} needs {extent} elements, got {}", self.data.len());
    }
}

/// Queries, keys and values of a call.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T = f32> {
    /// `[b, t, n·h]`.
    pub q: Rows<'a, T>,
    /// `[b, s, k·h]`.
    pub k: Rows<'a, T>,
    /// `[b, s, k·h]`.
    pub v: Rows<'a, T>,
}

impl<'a, T> Operands<'a, T> {
    /// The three parts of fused rows `[b, t, (n + 2k)·h]`; panics when the slice has another length.
    pub fn fused(qkv: &'a [T], problem: &Problem) -> Self {
        let (heads, width) = (problem.heads, problem.heads.width());
        let want = problem.b * problem.t * width;
        assert!(
            qkv.len() == want && problem.s == problem.t,
            "attention: fused rows need {want} elements and as many keys as queries, got {} elements, {} keys, {} queries",
            qkv.len(),
            problem.s,
            problem.t
        );
        let part =
            |offset: usize| Rows { data: &qkv[offset.min(want)..], batch_stride: problem.t * width, row_stride: width };
        let k = heads.q_width();
        Self { q: part(0), k: part(k), v: part(k + heads.kv_width()) }
    }

    /// Panics with the values when a part is shorter than the shapes ask for.
    pub(crate) fn check(&self, problem: &Problem) {
        problem.check();
        let heads = problem.heads;
        self.q.check("q", problem.b, problem.t, heads.q_width());
        self.k.check("k", problem.b, problem.s, heads.kv_width());
        self.v.check("v", problem.b, problem.s, heads.kv_width());
    }
}
