//! Causal self-attention with shared key and value heads: one fused projection, rotation, attention, projection back.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Gathered, HeadLayout, LmBackend, Spans, attention_gathered, rope_qkv_gathered};

use super::linear::Linear;

/// Normalised rows on their way into an attention layer.
#[derive(Clone, Debug)]
pub struct Normed<B: LmBackend> {
    /// `[b, t, d_model]`.
    pub x: Tensor<B, 3>,
    /// Slots for what is seen of the rows and of the gradient of the layer's result; see [`Attention::slots`].
    pub peaks: Gathered<B::Peaks>,
}

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
    /// Empty slots for what is seen of the input and of the gradient of the result, where the layer can use them.
    pub fn slots(&self) -> Gathered<B::Peaks> {
        Gathered { forward: self.qkv.slot(), backward: self.output.slot() }
    }

    /// Projects to queries, keys and values and rotates queries and keys.
    ///
    /// # Shapes
    /// `cos` and `sin` are `[b, t, d_head / 2]`, the result is `[b, t, heads.width()]`.
    pub fn project(&self, normed: Normed<B>, cos: Tensor<B, 3>, sin: Tensor<B, 3>) -> Tensor<B, 3> {
        let of_qkv = self.qkv.slot();
        let peaks = Gathered { forward: normed.peaks.forward, backward: of_qkv.clone() };
        rope_qkv_gathered(self.qkv.forward_gathered(normed.x, peaks), cos, sin, self.heads, of_qkv.as_ref())
    }

    /// Attention over whole rows; `spans` are those of the window where there is one.
    ///
    /// # Shapes
    /// The result is `[b, t, d_model]`.
    pub fn forward(&self, normed: Normed<B>, cos: Tensor<B, 3>, sin: Tensor<B, 3>, spans: &Spans<B>) -> Tensor<B, 3> {
        let of_mixed = self.output.slot();
        let peaks = Gathered { forward: of_mixed.clone(), backward: normed.peaks.backward.clone() };
        let qkv = self.project(normed, cos, sin);
        let mixed = attention_gathered(qkv, spans, self.sinks.clone(), self.heads, self.scale, of_mixed.as_ref());
        self.output.forward_gathered(mixed, peaks)
    }
}
