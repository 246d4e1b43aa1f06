//! Causal self-attention with shared key and value heads: one fused projection, rotation, attention, projection back.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{HeadLayout, LmBackend, Spans, attention, rope_qkv};

use super::linear::Linear;

/// Grouped-query self-attention.
#[derive(Clone, Debug)]
pub struct Attention<B: Backend> {
    /// Query, key and value rows, `[(n_heads + 2 · n_kv_heads) · d_head, d_model]`.
    pub qkv: Linear<B>,
    /// `[d_model, n_heads · d_head]`.
    pub output: Linear<B>,
    /// One more logit per query head, `[n_heads]`, that takes part in the softmax and carries no value.
    pub sinks: Option<Tensor<B, 1>>,
    /// Keys that a query sees, its own included; `None` for all of its document.
    pub window: Option<usize>,
    /// How one row of the fused projection is laid out.
    pub heads: HeadLayout,
    /// Factor on the scores.
    pub scale: f32,
}

impl<B: LmBackend> Attention<B> {
    /// Projects to queries, keys and values and rotates queries and keys.
    ///
    /// # Shapes
    /// `x` is `[b, t, d_model]`, `cos` and `sin` are `[b, t, d_head / 2]`, the result is `[b, t, heads.width()]`.
    pub fn project(&self, x: Tensor<B, 3>, cos: Tensor<B, 3>, sin: Tensor<B, 3>) -> Tensor<B, 3> {
        rope_qkv(self.qkv.forward(x), cos, sin, self.heads)
    }

    /// Attention over whole rows; `spans` are those of the window where there is one.
    ///
    /// # Shapes
    /// `x` and the result are `[b, t, d_model]`.
    pub fn forward(&self, x: Tensor<B, 3>, cos: Tensor<B, 3>, sin: Tensor<B, 3>, spans: &Spans<B>) -> Tensor<B, 3> {
        let qkv = self.project(x, cos, sin);
        self.output.forward(attention(qkv, spans, self.sinks.clone(), self.heads, self.scale))
    }
}
