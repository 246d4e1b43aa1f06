//! The backend extension: every op on primitives, with a portable body made of burn ops.
//!
//! Methods come in pairs. The plain ones (`lm_linear`) are what models call and what `Autodiff` gives a graph node; the
//! `_fwd`, `_bwd`, `_dx`, `_dw` ones are the pieces that node is made of and run on the inner backend only. All names start
//! with `lm_`, because burn's own traits already own `linear`, `attention` and `embedding`.

use std::fmt::Debug;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, TensorData, TensorMetadata, read_sync};

use crate::parking::{self, Parked};
use crate::{
    AdamW, Dispatch, ExpertWeight, Fp8, Fp8Gradients, Fp8Known, Fp8Rows, Fp8Saved, Gathered, HeadLayout, HostCopy,
    HostReserve, LoraParts, Master, Moments, Mxfp4, Stepped, portable,
};

/// Direction of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The embedding itself.
    Forward,
    /// Its transpose, which is its inverse: the backward pass.
    Backward,
}

/// Which of the two operands of a head op want a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The activations.
    pub x: bool,
    /// The weight.
    pub weight: bool,
}

/// Result of the fused head: both sums, and the gradients of `loss` that were asked for.
#[derive(Clone, Debug)]
pub struct CrossEntropyParts<B: Backend> {
    /// `[1]`: Σ w·(nll + z_loss·lse²).
    pub loss: FloatTensor<B>,
    /// `[1]`: Σ w·nll.
    pub nll: FloatTensor<B>,
    /// `[m, d]`, when asked for.
    pub dx: Option<FloatTensor<B>>,
    /// `[v, d]`, when asked for.
    pub dw: Option<FloatTensor<B>>,
}

/// Result of the head statistics on primitives: log-probability, log-sum-exp and arg-max of every row.
pub type StatsParts<B> = (FloatTensor<B>, FloatTensor<B>, IntTensor<B>);

/// A burn backend with the ops of a language model.
///
/// Shapes use the crate's legend: b batch, t query token, s key token, d model, n heads, k kv-heads, h head dim, f ff,
/// v vocab, m rows. `..` stands for any leading axes. Every body here is the portable one.
pub trait LmBackend: Backend {
    /// A slot in which a kernel leaves abs-maxima of the tensor that it writes, for the FP8 layer that reads it; see [`Gathered`].
    /// An empty slot is one that nothing has been left in.
    type Peaks: Clone + Default + Debug + Send + Sync + 'static;

    /// Whether the kernels of this device leave anything in slots.
    fn lm_gathers(_device: &Self::Device) -> bool {
        false
    }
    /// Takes the abs-maxima of parts of a tensor, `[n]` in f32, out of a slot.
    fn lm_take_peaks(_peaks: &Self::Peaks) -> Option<FloatTensor<Self>> {
        None
    }

    /// `y[.., o] = x[.., i] · weight[o, i]ᵀ`.
    fn lm_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::linear::<Self>(x, weight)
    }
    /// As [`LmBackend::lm_linear`], with the result in f32 whatever the operands' type; no gradient of its own.
    fn lm_linear_f32(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = Self::lm_linear(x, weight);
        if y.dtype() == DType::F32 { y } else { Self::float_cast(y, FloatDType::F32) }
    }
    /// `dx[.., i] = dy[.., o] · weight[o, i]`.
    fn lm_linear_dx(dy: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::linear_dx::<Self>(dy, weight)
    }
    /// `dw[o, i] = dyᵀ · x`.
    fn lm_linear_dw(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::linear_dw::<Self>(dy, x)
    }
    /// `acc + dyᵀ · x`, into `acc`'s memory where nobody else holds it.
    fn lm_linear_dw_acc(dy: FloatTensor<Self>, x: FloatTensor<Self>, acc: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::lm_add_assign(acc, Self::lm_linear_dw(dy, x))
    }

    /// `y[.., o] = x[.., i] · weight[o, i]ᵀ + bias[o]`.
    fn lm_linear_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = x.dtype();
        portable::linear_bias::<Self>(x, weight, bias, dtype)
    }
    /// As [`LmBackend::lm_linear_bias`], with the result in f32 whatever the operands' type.
    fn lm_linear_bias_f32(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::linear_bias::<Self>(x, weight, bias, DType::F32)
    }
    /// Sums of the columns of `dy [.., o]` in f32, rounded to `dtype`: the gradient of a bias.
    fn lm_bias_grad(dy: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        portable::bias_grad::<Self>(dy, dtype)
    }

    /// RMS norm over the last axis; `peaks` gets those of the result.
    fn lm_rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        Self::lm_rms_norm_fwd(x, gamma, eps, peaks).0
    }
    /// `(y, rstd)`, where `rstd` is `[m]`; `peaks` gets those of `y`.
    fn lm_rms_norm_fwd(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        _peaks: Option<&Self::Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::rms_norm_fwd::<Self>(x, gamma, eps)
    }
    /// `(dx, dgamma)`; `carry`, where given, is added to `dx` (the gradient that reached `x` on another way). `peaks` gets those of
    /// `dx`.
    fn lm_rms_norm_bwd(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        carry: Option<FloatTensor<Self>>,
        _peaks: Option<&Self::Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::rms_norm_bwd::<Self>(dy, x, gamma, rstd, carry)
    }
    /// `(x + residual, rms_norm(x + residual))`; `peaks` gets those of the norm and of the gradient of `x`.
    fn lm_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Gathered<Self::Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (sum, y, _) = Self::lm_add_rms_norm_fwd(x, residual, gamma, eps, peaks.forward.as_ref());
        (sum, y)
    }
    /// `(sum, y, rstd)`; `peaks` gets those of `y`.
    fn lm_add_rms_norm_fwd(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Option<&Self::Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let sum = Self::float_add(x, residual);
        let (y, rstd) = Self::lm_rms_norm_fwd(sum.clone(), gamma, eps, peaks);
        (sum, y, rstd)
    }

    /// Rotary embedding on the q and k parts of a fused row; `cos` and `sin` are `[b, t, h/2]`. `peaks` gets those of what the
    /// backward rotation makes, v part included.
    fn lm_rope_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: HeadLayout,
        rotation: Rotation,
        _peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        portable::rope_qkv::<Self>(qkv, cos, sin, heads, rotation)
    }

    /// Attention over a fused row `[b, t, (n + 2k)·h]`, output `[b, t, n·h]`; `peaks` gets those of the output, where the kernel
    /// that the device has for these heads gathers them.
    fn lm_attention(
        qkv: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
        peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        Self::lm_attention_fwd(qkv, start, end, sinks, heads, scale, peaks).0
    }
    /// `(out, lse)`, where `lse` is `[b, n, t]` and includes the sink; `peaks` gets those of `out`.
    fn lm_attention_fwd(
        qkv: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
        _peaks: Option<&Self::Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::attention_fwd::<Self>(qkv, start, end, sinks, heads, scale)
    }
    /// `(dqkv, dsinks)`; `dsinks` is there when `sinks` is.
    #[expect(clippy::too_many_arguments, reason = "everything the forward pass saved")]
    fn lm_attention_bwd(
        dout: FloatTensor<Self>,
        qkv: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        portable::attention_bwd::<Self>(dout, qkv, out, lse, start, end, sinks, heads, scale)
    }
    /// Attention of new queries `[b, t, n·h]` over cached keys and values `[b, s, k·h]`; inference only.
    #[expect(clippy::too_many_arguments, reason = "queries, keys and values come apart")]
    fn lm_attention_cached(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
    ) -> FloatTensor<Self> {
        portable::attention_cached::<Self>(q, k, v, start, end, sinks, heads, scale)
    }

    /// `silu(gate_up[.., ..f]) · gate_up[.., f..]`; `peaks` gets those of the result and of the gradient.
    fn lm_swiglu(gate_up: FloatTensor<Self>, _peaks: Gathered<Self::Peaks>) -> FloatTensor<Self> {
        portable::swiglu::<Self>(gate_up)
    }
    /// Gradient of [`LmBackend::lm_swiglu`]; `peaks` gets those of it.
    fn lm_swiglu_bwd(
        dy: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        _peaks: Option<&Self::Peaks>,
    ) -> FloatTensor<Self> {
        portable::swiglu_bwd::<Self>(dy, gate_up)
    }

    /// Rows of `weight[v, d]` by `ids[b, t]`, output `[b, t, d]`.
    fn lm_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        portable::embedding::<Self>(weight, ids)
    }
    /// Gradient of the table with `n_rows` rows, summed in a fixed order.
    fn lm_embedding_bwd(dy: FloatTensor<Self>, ids: IntTensor<Self>, n_rows: usize) -> FloatTensor<Self> {
        portable::embedding_bwd::<Self>(dy, ids, n_rows)
    }
    /// `acc` with [`LmBackend::lm_embedding_bwd`] added, into `acc`'s memory where nobody else holds it; rows of the table that
    /// no id names are not touched.
    fn lm_embedding_bwd_acc(dy: FloatTensor<Self>, ids: IntTensor<Self>, acc: FloatTensor<Self>) -> FloatTensor<Self> {
        let n_rows = acc.shape()[0];
        Self::lm_add_assign(acc, Self::lm_embedding_bwd(dy, ids, n_rows))
    }

    /// `(loss, nll)` of the fused head and cross-entropy; see [`CrossEntropyParts`].
    fn lm_linear_cross_entropy(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: FloatTensor<Self>,
        z_loss: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nothing = Tracked { x: false, weight: false };
        let parts = Self::lm_linear_cross_entropy_fwd(x, weight, targets, weights, z_loss, nothing);
        (parts.loss, parts.nll)
    }
    /// Sums and the gradients that `want` asks for, in one pass over chunks of rows.
    fn lm_linear_cross_entropy_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: FloatTensor<Self>,
        z_loss: f32,
        want: Tracked,
    ) -> CrossEntropyParts<Self> {
        portable::linear_cross_entropy_fwd::<Self>(x, weight, targets, weights, z_loss, want)
    }

    /// Log-probability of each row's target, `[m]`; 0 where the target is negative.
    fn lm_token_logprobs(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::lm_token_logprobs_fwd(x, weight, targets).0
    }
    /// `(logprob, lse)`, both `[m]`.
    fn lm_token_logprobs_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (logprob, lse, _) = Self::lm_token_stats(x, weight, targets);
        (logprob, lse)
    }
    /// `(dx, dw)` as far as `want` asks for them; the logits are made again, chunk by chunk.
    fn lm_token_logprobs_bwd(
        dlogprob: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        lse: FloatTensor<Self>,
        want: Tracked,
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        portable::token_logprobs_bwd::<Self>(dlogprob, x, weight, targets, lse, want)
    }
    /// `(logprob, lse, argmax)`, all `[m]`; inference only.
    fn lm_token_stats(x: FloatTensor<Self>, weight: FloatTensor<Self>, targets: IntTensor<Self>) -> StatsParts<Self> {
        portable::token_stats::<Self>(x, weight, targets)
    }

    /// Sum of the squares of all elements, `[1]`.
    fn lm_sum_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::sum_squares::<Self>(x)
    }
    /// Writes partial sums of the squares of `x` into row `index` of `parts [k, SUM_PARTS]`.
    fn lm_sum_squares_into(parts: FloatTensor<Self>, index: usize, x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::sum_squares_into::<Self>(parts, index, Self::lm_sum_squares(x))
    }
    /// Sum of all elements of f32 partial sums in a fixed order, `[1]`.
    fn lm_sum_parts(parts: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::sum_parts::<Self>(parts)
    }
    /// Factor `[1]` of a summed gradient with this sum of squares `[1]`; see [`crate::clip_scale`].
    fn lm_clip_scale(squares: FloatTensor<Self>, units: f64, max_norm: f64) -> FloatTensor<Self> {
        portable::clip_scale::<Self>(squares, units, max_norm)
    }
    /// One optimizer step, into the memory of the parameter and its state where nobody else holds it; with peaks of parts of the
    /// new parameter where `gather` asks for them and the device gathers.
    fn lm_adamw_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        state: (Master<Self>, Moments<Self>),
        scale: FloatTensor<Self>,
        hyper: &AdamW,
        _gather: bool,
    ) -> Stepped<Self> {
        let (master, moments) = state;
        let (param, master, moments) = portable::adamw_step::<Self>(param, grad, master, moments, scale, hyper);
        Stepped { param, master, moments, peaks: None }
    }
    /// `acc + x`, into `acc`'s memory where nobody else holds it.
    fn lm_add_assign(acc: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(acc, x)
    }
    /// `x · factor[1]`, into `x`'s memory where nobody else holds it; the backward of the fused head.
    fn lm_scale(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::scale::<Self>(x, factor)
    }
    /// [`LmBackend::lm_linear`] with operands in FP8; see [`crate::ops::linear_fp8`]. `known` is where the scales come from; `peaks`
    /// has those of `x` and, in the backward pass, of the gradient of `y`, where the kernels before left some.
    fn lm_linear_fp8(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        known: Fp8Known<Self>,
        mode: Fp8,
        peaks: Gathered<Self::Peaks>,
    ) -> FloatTensor<Self> {
        let nothing = Tracked { x: false, weight: false };
        Self::lm_linear_fp8_fwd(x, weight, known, mode, nothing, peaks.forward.as_ref()).0
    }
    /// `y` and what the gradients that `want` asks for need; `peaks` has those of `x`.
    fn lm_linear_fp8_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        known: Fp8Known<Self>,
        _mode: Fp8,
        want: Tracked,
        _peaks: Option<&Self::Peaks>,
    ) -> (FloatTensor<Self>, Fp8Saved<Self>) {
        portable::linear_fp8_fwd::<Self>(x, weight, known.history, want)
    }
    /// The gradients that `want` asks for; `dw` is added to `acc` where that is given, into its memory where nobody else holds it.
    /// `peaks` has those of `dy`.
    fn lm_linear_fp8_bwd(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        saved: Fp8Saved<Self>,
        _mode: Fp8,
        want: Tracked,
        acc: Option<FloatTensor<Self>>,
        _peaks: Option<&Self::Peaks>,
    ) -> Fp8Gradients<Self> {
        portable::linear_fp8_bwd::<Self>(dy, weight, saved, want, acc)
    }

    /// `(weights, experts)`, both `[n, k]`: softmax in f32 over the `top_k` largest of `logits [n, e]`; see [`crate::route`].
    fn lm_route(logits: FloatTensor<Self>, top_k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        portable::route::<Self>(logits, top_k)
    }
    /// Gradient of the logits `[n, n_experts]` in `dtype`; 0 where an expert was not chosen.
    fn lm_route_bwd(
        dweights: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        experts: IntTensor<Self>,
        n_experts: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        portable::route_bwd::<Self>(dweights, weights, experts, n_experts, dtype)
    }
    /// Slots of `experts [n, k]` sorted by expert.
    fn lm_dispatch(experts: IntTensor<Self>, n_experts: usize) -> Dispatch<Self> {
        portable::dispatch::<Self>(experts, n_experts)
    }
    /// Rows of `x [n, d]` in the order of the dispatch, `[n·k, d]`; zeros behind the last expert.
    fn lm_gather_tokens(x: FloatTensor<Self>, at: &Dispatch<Self>) -> FloatTensor<Self> {
        portable::gather_tokens::<Self>(x, at)
    }
    /// Gradient of [`LmBackend::lm_gather_tokens`] by its `n` rows, summed in f32 in the order of a token's slots.
    fn lm_gather_tokens_bwd(dy: FloatTensor<Self>, at: &Dispatch<Self>, n: usize) -> FloatTensor<Self> {
        portable::gather_tokens_bwd::<Self>(dy, at, n)
    }
    /// `out[n] = Σ_j weights[n, j] · y[position(n, j)]`, over the slots that have an expert.
    fn lm_combine(y: FloatTensor<Self>, weights: FloatTensor<Self>, at: &Dispatch<Self>) -> FloatTensor<Self> {
        portable::combine::<Self>(y, weights, at)
    }
    /// `(dy, dweights)` as far as `want` asks for them (`x` is `y`, `weight` the weights).
    fn lm_combine_bwd(
        dout: FloatTensor<Self>,
        y: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        at: &Dispatch<Self>,
        want: Tracked,
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        portable::combine_bwd::<Self>(dout, y, weights, at, want)
    }
    /// GPT-OSS's gated unit on interleaved rows; see [`crate::swiglu_clamped`].
    fn lm_swiglu_clamped(gate_up: FloatTensor<Self>, alpha: f32, limit: f32) -> FloatTensor<Self> {
        portable::swiglu_clamped::<Self>(gate_up, alpha, limit)
    }
    /// Gradient of [`LmBackend::lm_swiglu_clamped`].
    fn lm_swiglu_clamped_bwd(
        dy: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        alpha: f32,
        limit: f32,
    ) -> FloatTensor<Self> {
        portable::swiglu_clamped_bwd::<Self>(dy, gate_up, alpha, limit)
    }

    /// A linear layer per expert over sorted rows: `x [m, i]`, `weight [e·o, i]`, `bias [e·o]`, `offsets [e + 1]`, result
    /// `[m, o]`, zero behind the last expert.
    fn lm_grouped_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_linear::<Self>(x, weight, bias, offsets)
    }
    /// `dx [m, i]`, zero behind the last expert.
    fn lm_grouped_linear_dx(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_linear_dx::<Self>(dy, weight, offsets)
    }
    /// `dw [e·o, i]`, zero for experts without rows.
    fn lm_grouped_linear_dw(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_linear_dw::<Self>(dy, x, offsets)
    }
    /// `acc` with [`LmBackend::lm_grouped_linear_dw`] added, into `acc`'s memory where nobody else holds it.
    fn lm_grouped_linear_dw_acc(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        offsets: IntTensor<Self>,
        acc: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::lm_add_assign(acc, Self::lm_grouped_linear_dw(dy, x, offsets))
    }
    /// Sums of the columns of each expert's rows of `dy [m, o]` in f32, `[e·o]` rounded to `dtype`.
    fn lm_grouped_bias_grad(dy: FloatTensor<Self>, offsets: IntTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        portable::grouped_bias_grad::<Self>(dy, offsets, dtype)
    }

    /// The numbers of an MXFP4 matrix in `dtype`, `[rows, i]`.
    fn lm_mxfp4_decode(matrix: &Mxfp4<Self>, dtype: DType) -> FloatTensor<Self> {
        portable::mxfp4_decode::<Self>(matrix, dtype)
    }
    /// [`LmBackend::lm_grouped_linear`] with a weight in MXFP4.
    fn lm_grouped_mxfp4(
        x: FloatTensor<Self>,
        weight: &Mxfp4<Self>,
        bias: Option<FloatTensor<Self>>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_mxfp4::<Self>(x, weight, bias, offsets)
    }
    /// [`LmBackend::lm_grouped_linear_dx`] with a weight in MXFP4.
    fn lm_grouped_mxfp4_dx(dy: FloatTensor<Self>, weight: &Mxfp4<Self>, offsets: IntTensor<Self>) -> FloatTensor<Self> {
        portable::grouped_mxfp4_dx::<Self>(dy, weight, offsets)
    }
    /// A linear layer per expert with a low-rank update of each: [`LmBackend::lm_grouped_sum`] of `scale·x·aᵀ`.
    fn lm_grouped_lora(
        x: FloatTensor<Self>,
        weight: &ExpertWeight<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: LoraParts<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let low =
            portable::scaled::<Self>(Self::lm_grouped_linear(x.clone(), lora.a, None, offsets.clone()), lora.scale);
        Self::lm_grouped_sum(x, weight, bias, [low, lora.b], offsets)
    }
    /// The product of each expert's rows with its weight, plus its bias, plus `low [m, r]` times `up [e·o, r]`, `[m, o]`.
    fn lm_grouped_sum(
        x: FloatTensor<Self>,
        weight: &ExpertWeight<Self>,
        bias: Option<FloatTensor<Self>>,
        low_up: [FloatTensor<Self>; 2],
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_sum::<Self>(x, weight, bias, low_up, offsets)
    }
    /// `dy [m, o]` times each expert's weight, plus `dlow [m, r]` times `down [e·r, i]`, `[m, i]`.
    fn lm_grouped_sum_dx(
        dy: FloatTensor<Self>,
        weight: &ExpertWeight<Self>,
        dlow_down: [FloatTensor<Self>; 2],
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_sum_dx::<Self>(dy, weight, dlow_down, offsets)
    }
    /// The numbers of an FP8 matrix in `dtype`, `[rows, i]`.
    fn lm_fp8_decode(matrix: &Fp8Rows<Self>, dtype: DType) -> FloatTensor<Self> {
        portable::fp8_decode::<Self>(matrix, dtype)
    }
    /// [`LmBackend::lm_grouped_linear`] with a weight in FP8.
    fn lm_grouped_fp8(
        x: FloatTensor<Self>,
        weight: &Fp8Rows<Self>,
        bias: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_fp8::<Self>(x, weight, bias, offsets)
    }
    /// [`LmBackend::lm_grouped_linear_dx`] with a weight in FP8.
    fn lm_grouped_fp8_dx(dy: FloatTensor<Self>, weight: &Fp8Rows<Self>, offsets: IntTensor<Self>) -> FloatTensor<Self> {
        portable::grouped_fp8_dx::<Self>(dy, weight, offsets)
    }
    /// Runs `f` so that an autodiff backend keeps none of its activations; see [`crate::recompute`].
    fn lm_recompute(
        x: burn::tensor::Tensor<Self, 3>,
        leaves: Vec<crate::Leaf<Self>>,
        _shelf: Option<&crate::Shelf>,
        f: crate::autodiff::Block<Self>,
    ) -> burn::tensor::Tensor<Self, 3> {
        f(x, leaves)
    }
    /// Begins to read a tensor of f32, after everything enqueued so far; the closure waits for that and not for later work.
    ///
    /// # Panics
    /// The closure, when the device failed meanwhile.
    fn lm_begin_read(x: FloatTensor<Self>) -> Box<dyn FnOnce() -> TensorData> {
        let data = read_sync(Self::float_into_data(x));
        Box::new(move || data.unwrap_or_else(|error| panic!("read from the device: {error:?}")))
    }
    /// Begins to move a tensor to the host's memory; see [`Parked`].
    fn lm_park(x: burn::tensor::Tensor<Self, 3>) -> Box<dyn Parked<Self>> {
        parking::park(x)
    }
    /// Begins to copy a tensor to the host; see [`HostCopy`].
    fn lm_copy_float(x: FloatTensor<Self>) -> HostCopy {
        HostCopy::here(read_sync(Self::float_into_data(x)))
    }
    /// As [`LmBackend::lm_copy_float`].
    fn lm_copy_int(x: IntTensor<Self>) -> HostCopy {
        HostCopy::here(read_sync(Self::int_into_data(x)))
    }
    /// Lets everything that is enqueued later come after the copies that are begun; nothing waits on the host.
    fn lm_end_copies(_device: &Self::Device) {}
    /// Begins to take memory of the host for as many copies at a time, of these bytes each, in a thread of its own; it stays
    /// taken. Where that would be more than `limit` bytes nothing is taken, and beginning a copy waits for it.
    fn lm_reserve_host(_device: &Self::Device, _sizes: &[usize], _limit: u64) -> HostReserve {
        HostReserve::Unneeded
    }
}
