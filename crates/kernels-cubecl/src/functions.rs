//! The ops on burn tensors: shape checks, then the backend's method.

use burn::tensor::{DType, Int, Tensor, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor};

use crate::ops::adamw::packed;
use crate::ops::sum_squares::SUM_PARTS;
use crate::{
    AdamW, Fp8, Fp8Known, Gathered, HeadLayout, Leaf, LmBackend, Master, Moments, PackedMoments, Rotation, Spans,
    Stepped,
};

pub(crate) fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// `y = x · weightᵀ`.
///
/// # Shapes
/// `x [.., i]`, `weight [o, i]`, result `[.., o]`.
///
/// # Numerics
/// Products and sums in f32 on the CPU.
pub fn linear<B: LmBackend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 2>) -> Tensor<B, D> {
    let (x_dims, w_dims) = (x.dims(), weight.dims());
    assert_eq!(x_dims[D - 1], w_dims[1], "linear: last axis of x {x_dims:?} must match weight [out, in] {w_dims:?}");
    wrap(B::lm_linear(unwrap(x), unwrap(weight)))
}

/// [`linear`] with its sums as they are: the result is f32 also where `x` and `weight` are bf16. For logits that are compared
/// with each other, where rounding to 8 bits would make ties; it has no gradient of its own.
///
/// # Shapes
/// `x [.., i]`, `weight [o, i]`, result `[.., o]`.
pub fn linear_f32<B: LmBackend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 2>) -> Tensor<B, D> {
    let (x_dims, w_dims) = (x.dims(), weight.dims());
    assert_eq!(
        x_dims[D - 1],
        w_dims[1],
        "linear_f32: last axis of x {x_dims:?} must match weight [out, in] {w_dims:?}"
    );
    wrap(B::lm_linear_f32(unwrap(x), unwrap(weight)))
}

/// `y = x · weightᵀ + bias`.
///
/// # Shapes
/// `x [.., i]`, `weight [o, i]`, `bias [o]`, result `[.., o]`.
///
/// # Numerics
/// As [`linear`]; the bias is added before the result is rounded. Its gradient is summed in f32 in a fixed order.
pub fn linear_bias<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Tensor<B, 1>,
) -> Tensor<B, D> {
    check_bias("linear_bias", &x, &weight, &bias);
    wrap(B::lm_linear_bias(unwrap(x), unwrap(weight), unwrap(bias)))
}

/// [`linear_bias`] with the result in f32, whatever the operands' type: for a router, whose logits are compared.
///
/// # Shapes
/// `x [.., i]`, `weight [o, i]`, `bias [o]`, result `[.., o]`.
///
/// # Numerics
/// The gradient is rounded to the type of `x` before it meets `weight` and `x`; that of the bias is not.
pub fn linear_bias_f32<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Tensor<B, 1>,
) -> Tensor<B, D> {
    check_bias("linear_bias_f32", &x, &weight, &bias);
    wrap(B::lm_linear_bias_f32(unwrap(x), unwrap(weight), unwrap(bias)))
}

fn check_bias<B: Backend, const D: usize>(op: &str, x: &Tensor<B, D>, weight: &Tensor<B, 2>, bias: &Tensor<B, 1>) {
    let (x_dims, w_dims) = (x.dims(), weight.dims());
    assert_eq!(x_dims[D - 1], w_dims[1], "{op}: last axis of x {x_dims:?} must match weight [out, in] {w_dims:?}");
    assert_eq!(bias.dims(), [w_dims[0]], "{op}: bias must have one entry per row of the weight {w_dims:?}");
}

/// [`linear`] with operands rounded to FP8, one scale per tensor; see [`crate::ops::linear_fp8`].
///
/// Without a history the scales are those of the tensors now. With one, a tracked leaf, they come from its largest entries, and
/// its gradient is the next history, for the pass after this one; zeros are a history that knows nothing yet. What two passes
/// with the same history give must be joined by the elementwise maximum, not by the sum.
///
/// # Shapes
/// `x [.., i]`, `weight [o, i]`, `history [3, n]` in f32 for x, weight and gradient, result `[.., o]`. A plain linear layer
/// where the rows, `i` or `o` are no multiple of 16.
///
/// # Numerics
/// `x` and `weight` in e4m3, the gradient in e5m2, sums as `mode` says, results in the type of `x`.
pub fn linear_fp8<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    history: Option<Tensor<B, 2>>,
    mode: Fp8,
) -> Tensor<B, D> {
    let (x_dims, w_dims) = (x.dims(), weight.dims());
    assert_eq!(
        x_dims[D - 1],
        w_dims[1],
        "linear_fp8: last axis of x {x_dims:?} must match weight [out, in] {w_dims:?}"
    );
    if let Some(history) = &history {
        let [rows, n] = history.dims();
        assert!(rows == 3 && n > 0, "linear_fp8: history must be [3, n] with n > 0, got [{rows}, {n}]");
    }
    let known = Fp8Known { history: history.map(unwrap), weight: None };
    wrap(B::lm_linear_fp8(unwrap(x), unwrap(weight), known, mode, Gathered::default()))
}

/// [`linear_fp8`] with scales of now, whose peaks of `x` and of the gradient of the result are taken from slots where the ops
/// beside this one left them, and those of the weight from `weight_peaks`, where [`adamw_step_gathered`] gave them with this
/// weight; the numbers are the same.
///
/// # Shapes
/// As [`linear_fp8`]; `weight_peaks [n]`.
pub fn linear_fp8_gathered<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    weight_peaks: Option<Tensor<B, 1>>,
    mode: Fp8,
    peaks: Gathered<B::Peaks>,
) -> Tensor<B, D> {
    let (x_dims, w_dims) = (x.dims(), weight.dims());
    assert_eq!(
        x_dims[D - 1],
        w_dims[1],
        "linear_fp8: last axis of x {x_dims:?} must match weight [out, in] {w_dims:?}"
    );
    let known = Fp8Known { history: None, weight: weight_peaks.map(unwrap) };
    wrap(B::lm_linear_fp8(unwrap(x), unwrap(weight), known, mode, peaks))
}

/// Root-mean-square norm over the last axis: `y = x / √(mean(x²) + eps) · gamma`.
///
/// # Shapes
/// `x [.., d]`, `gamma [d]`, result `[.., d]`.
pub fn rms_norm<B: LmBackend, const D: usize>(x: Tensor<B, D>, gamma: Tensor<B, 1>, eps: f32) -> Tensor<B, D> {
    rms_norm_gathered(x, gamma, eps, None)
}

/// [`rms_norm`] that leaves peaks of its result in a slot, see [`Gathered`].
///
/// # Shapes
/// As [`rms_norm`].
pub fn rms_norm_gathered<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    eps: f32,
    peaks: Option<&B::Peaks>,
) -> Tensor<B, D> {
    check_gamma("rms_norm", &x, &gamma);
    wrap(B::lm_rms_norm(unwrap(x), unwrap(gamma), eps, peaks))
}

/// Residual add and norm in one pass: `(x + residual, rms_norm(x + residual))`.
///
/// # Shapes
/// `x` and `residual` `[.., d]`, `gamma [d]`, results `[.., d]`.
pub fn add_rms_norm<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    residual: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    eps: f32,
) -> (Tensor<B, D>, Tensor<B, D>) {
    add_rms_norm_gathered(x, residual, gamma, eps, Gathered::default())
}

/// [`add_rms_norm`] that leaves peaks of the norm and of the gradient of `x` in slots, see [`Gathered`].
///
/// The gradient is that of the sum. So everything else that uses the sum must come after the norm in the graph, as in a block
/// whose next sum needs what became of the norm.
///
/// # Shapes
/// As [`add_rms_norm`].
pub fn add_rms_norm_gathered<B: LmBackend, const D: usize>(
    x: Tensor<B, D>,
    residual: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    eps: f32,
    peaks: Gathered<B::Peaks>,
) -> (Tensor<B, D>, Tensor<B, D>) {
    check_gamma("add_rms_norm", &x, &gamma);
    assert_eq!(x.dims(), residual.dims(), "add_rms_norm: x and residual must have one shape");
    let (sum, y) = B::lm_add_rms_norm(unwrap(x), unwrap(residual), unwrap(gamma), eps, peaks);
    (wrap(sum), wrap(y))
}

fn check_gamma<B: Backend, const D: usize>(op: &str, x: &Tensor<B, D>, gamma: &Tensor<B, 1>) {
    let (x_dims, g_dims) = (x.dims(), gamma.dims());
    assert_eq!(x_dims[D - 1], g_dims[0], "{op}: gamma {g_dims:?} must match the last axis of x {x_dims:?}");
}

/// Rotary embedding on the query and key parts of a fused row, rotate-half convention.
///
/// # Shapes
/// `qkv [b, t, (n + 2k)·h]`, `cos` and `sin` `[b, t, h/2]` (no gradient flows to them), result as `qkv`.
pub fn rope_qkv<B: LmBackend>(
    qkv: Tensor<B, 3>,
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
    heads: HeadLayout,
) -> Tensor<B, 3> {
    rope_qkv_gathered(qkv, cos, sin, heads, None)
}

/// [`rope_qkv`] that leaves peaks of the gradient of `qkv` in a slot, see [`Gathered`]; nothing else may use `qkv`.
///
/// # Shapes
/// As [`rope_qkv`].
pub fn rope_qkv_gathered<B: LmBackend>(
    qkv: Tensor<B, 3>,
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
    heads: HeadLayout,
    peaks: Option<&B::Peaks>,
) -> Tensor<B, 3> {
    let [b, t, width] = qkv.dims();
    heads.check();
    assert!(heads.d_head.is_multiple_of(2), "rope_qkv: d_head must be even, got {heads:?}");
    assert_eq!(width, heads.width(), "rope_qkv: width of qkv must match {heads:?}");
    assert_eq!(cos.dims(), [b, t, heads.d_head / 2], "rope_qkv: cos must be [b, t, d_head/2]");
    assert_eq!(sin.dims(), cos.dims(), "rope_qkv: sin must have the shape of cos");
    wrap(B::lm_rope_qkv(unwrap(qkv), unwrap(cos), unwrap(sin), heads, Rotation::Forward, peaks))
}

/// Grouped-query attention over a fused row; `spans` says which keys each query sees.
///
/// # Shapes
/// `qkv [b, t, (n + 2k)·h]`, `spans [b, t]`, `sinks [n]` (one extra logit per head without a value), result `[b, t, n·h]`.
pub fn attention<B: LmBackend>(
    qkv: Tensor<B, 3>,
    spans: &Spans<B>,
    sinks: Option<Tensor<B, 1>>,
    heads: HeadLayout,
    scale: f32,
) -> Tensor<B, 3> {
    attention_gathered(qkv, spans, sinks, heads, scale, None)
}

/// [`attention`] that leaves peaks of its result in a slot, see [`Gathered`], where the device's kernel for these heads gathers.
///
/// # Shapes
/// As [`attention`].
pub fn attention_gathered<B: LmBackend>(
    qkv: Tensor<B, 3>,
    spans: &Spans<B>,
    sinks: Option<Tensor<B, 1>>,
    heads: HeadLayout,
    scale: f32,
    peaks: Option<&B::Peaks>,
) -> Tensor<B, 3> {
    let [b, t, width] = qkv.dims();
    heads.check();
    assert_eq!(width, heads.width(), "attention: width of qkv must match {heads:?}");
    check_spans("attention", spans, sinks.as_ref(), heads, [b, t]);
    let (start, end) = (spans.start.clone().into_primitive(), spans.end.clone().into_primitive());
    wrap(B::lm_attention(unwrap(qkv), start, end, sinks.map(unwrap), heads, scale, peaks))
}

/// Attention of new queries over cached keys and values; inference only, no gradient flows.
///
/// # Shapes
/// `q [b, t, n·h]`, `k` and `v` `[b, s, k·h]`, `spans [b, t]` counted in cache positions, result `[b, t, n·h]`.
pub fn attention_cached<B: LmBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    spans: &Spans<B>,
    sinks: Option<Tensor<B, 1>>,
    heads: HeadLayout,
    scale: f32,
) -> Tensor<B, 3> {
    let ([b, t, q_width], [k_b, _, k_width]) = (q.dims(), k.dims());
    heads.check();
    assert_eq!(q_width, heads.q_width(), "attention_cached: width of q must match {heads:?}");
    assert_eq!((k_b, k_width), (b, heads.kv_width()), "attention_cached: batch and width of k must match {heads:?}");
    assert_eq!(k.dims(), v.dims(), "attention_cached: k and v must have one shape");
    check_spans("attention_cached", spans, sinks.as_ref(), heads, [b, t]);
    let (start, end) = (spans.start.clone().into_primitive(), spans.end.clone().into_primitive());
    wrap(B::lm_attention_cached(unwrap(q), unwrap(k), unwrap(v), start, end, sinks.map(unwrap), heads, scale))
}

fn check_spans<B: Backend>(
    op: &str,
    spans: &Spans<B>,
    sinks: Option<&Tensor<B, 1>>,
    heads: HeadLayout,
    rows: [usize; 2],
) {
    assert_eq!(spans.start.dims(), rows, "{op}: spans.start must be [b, t]");
    assert_eq!(spans.end.dims(), rows, "{op}: spans.end must be [b, t]");
    if let Some(sinks) = sinks {
        assert_eq!(sinks.dims(), [heads.n_heads], "{op}: sinks must be [n_heads]");
    }
}

/// Gated unit: `silu(gate) · up`, where a row of `gate_up` is `[gate | up]`.
///
/// # Shapes
/// `gate_up [.., 2f]`, result `[.., f]`.
pub fn swiglu<B: LmBackend, const D: usize>(gate_up: Tensor<B, D>) -> Tensor<B, D> {
    swiglu_gathered(gate_up, Gathered::default())
}

/// [`swiglu`] that leaves peaks of its result and of the gradient of `gate_up` in slots, see [`Gathered`]; nothing else may use
/// `gate_up`.
///
/// # Shapes
/// As [`swiglu`].
pub fn swiglu_gathered<B: LmBackend, const D: usize>(gate_up: Tensor<B, D>, peaks: Gathered<B::Peaks>) -> Tensor<B, D> {
    let dims = gate_up.dims();
    assert!(dims[D - 1].is_multiple_of(2), "swiglu: last axis must hold gate and up of one width, got {dims:?}");
    wrap(B::lm_swiglu(unwrap(gate_up), peaks))
}

/// Rows of the table by id. The gradient is summed in a fixed order.
///
/// # Shapes
/// `weight [v, d]`, `ids [b, t]` with values in `0..v`, result `[b, t, d]`.
pub fn embedding<B: LmBackend>(weight: Tensor<B, 2>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    wrap(B::lm_embedding(unwrap(weight), ids.into_primitive()))
}

/// `acc` with the gradient of [`embedding`]'s table added, in place when it is owned alone; only rows that occur are touched.
///
/// # Shapes
/// `dy [b, t, d]`, `ids [b, t]`, `acc [v, d]`.
pub fn embedding_backward_acc<B: LmBackend>(
    dy: Tensor<B, 3>,
    ids: Tensor<B, 2, Int>,
    acc: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([b, t, d], [_, width]) = (dy.dims(), acc.dims());
    assert_eq!(ids.dims(), [b, t], "embedding_backward_acc: an id for each row of dy");
    assert_eq!(d, width, "embedding_backward_acc: acc must be as wide as dy");
    wrap(B::lm_embedding_bwd_acc(unwrap(dy), ids.into_primitive(), unwrap(acc)))
}

/// Sums of the fused head and cross-entropy.
#[derive(Clone, Debug)]
pub struct CrossEntropy<B: Backend> {
    /// `[1]`: Σ w·(nll + z_loss·lse²), differentiable.
    pub loss: Tensor<B, 1>,
    /// `[1]`: Σ w·nll, detached.
    pub nll: Tensor<B, 1>,
}

/// Output head and cross-entropy in one op: the logits exist only in chunks.
///
/// The gradients are made in the forward pass where they are tracked, so that nothing is computed twice.
///
/// # Shapes
/// `x [m, d]`, `weight [v, d]`, `targets [m]` (−100 is ignored), `weights [m]`.
pub fn linear_cross_entropy<B: LmBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    weights: Tensor<B, 1>,
    z_loss: f32,
) -> CrossEntropy<B> {
    check_head("linear_cross_entropy", &x, &weight, &targets);
    assert_eq!(weights.dims()[0], x.dims()[0], "linear_cross_entropy: weights must have one entry per row of x");
    let (loss, nll) =
        B::lm_linear_cross_entropy(unwrap(x), unwrap(weight), targets.into_primitive(), unwrap(weights), z_loss);
    CrossEntropy { loss: wrap(loss), nll: wrap(nll) }
}

/// Log-probability of each row's target, without the full logits; 0 where the target is −100.
///
/// # Shapes
/// `x [m, d]`, `weight [v, d]`, `targets [m]`, result `[m]`.
pub fn token_logprobs<B: LmBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    check_head("token_logprobs", &x, &weight, &targets);
    wrap(B::lm_token_logprobs(unwrap(x), unwrap(weight), targets.into_primitive()))
}

/// What the head says about each row.
#[derive(Clone, Debug)]
pub struct TokenStats<B: Backend> {
    /// `[m]`: log-probability of the target, 0 where the target is −100.
    pub logprob: Tensor<B, 1>,
    /// `[m]`: log-sum-exp of the logits.
    pub lse: Tensor<B, 1>,
    /// `[m]`: id of the largest logit, the lowest id among equals.
    pub argmax: Tensor<B, 1, Int>,
}

/// Log-probability, log-sum-exp and arg-max of each row, without the full logits; inference only.
///
/// # Shapes
/// `x [m, d]`, `weight [v, d]`, `targets [m]`.
pub fn token_stats<B: LmBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> TokenStats<B> {
    check_head("token_stats", &x, &weight, &targets);
    let (logprob, lse, argmax) = B::lm_token_stats(unwrap(x), unwrap(weight), targets.into_primitive());
    TokenStats { logprob: wrap(logprob), lse: wrap(lse), argmax: Tensor::from_primitive(argmax) }
}

fn check_head<B: Backend>(op: &str, x: &Tensor<B, 2>, weight: &Tensor<B, 2>, targets: &Tensor<B, 1, Int>) {
    let ([m, d], [v, w_d]) = (x.dims(), weight.dims());
    assert_eq!(d, w_d, "{op}: last axis of x [{m}, {d}] must match weight [{v}, {w_d}]");
    assert_eq!(targets.dims()[0], m, "{op}: targets must have one entry per row of x");
}

/// Sum of the squares of all elements, `[1]`.
///
/// # Numerics
/// Accumulated in f64 over a fixed tree on the CPU; the result is rounded to f32 once.
pub fn sum_squares<B: LmBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    wrap(B::lm_sum_squares(unwrap(x)))
}

/// Room for the partial sums of `n` tensors, zeros `[n, SUM_PARTS]`; see [`sum_squares_into`].
pub fn sum_squares_parts<B: Backend>(n: usize, device: &B::Device) -> Tensor<B, 2> {
    Tensor::zeros([n, SUM_PARTS], (device, DType::F32))
}

/// Adds a tensor to a sum of squares over many: writes its partial sums into row `index` of `parts`, in place when `parts` is
/// owned alone. [`sum_parts`] gives the sum; nothing is read back in between.
///
/// # Shapes
/// `parts [n, SUM_PARTS]` from [`sum_squares_parts`], `x` any.
///
/// # Numerics
/// Partial sums in f32, each over a share of the elements, in an order that only the shapes decide.
pub fn sum_squares_into<B: LmBackend>(parts: Tensor<B, 2>, index: usize, x: Leaf<B>) -> Tensor<B, 2> {
    let [n, width] = parts.dims();
    assert!(width == SUM_PARTS && index < n, "sum_squares_into: row {index} of parts [{n}, {width}], {SUM_PARTS} wide");
    wrap(B::lm_sum_squares_into(unwrap(parts), index, x.into_primitive()))
}

/// Sum of partial sums in a fixed order, `[1]`.
pub fn sum_parts<B: LmBackend>(parts: Tensor<B, 2>) -> Tensor<B, 1> {
    wrap(B::lm_sum_parts(unwrap(parts)))
}

/// Factor of a summed gradient: one over `units`, times the factor that clips the norm of the quotient to `max_norm`.
///
/// With `norm = √squares / units` it is `min(1, max_norm / norm) / units`, and 0 where the norm is not finite or `units` is 0,
/// so that [`adamw_step`] skips the step. An infinite `max_norm` clips nothing.
///
/// # Shapes
/// `squares [1]`, result `[1]` f32; nothing is read back.
pub fn clip_scale<B: LmBackend>(squares: Tensor<B, 1>, units: f64, max_norm: f64) -> Tensor<B, 1> {
    assert_eq!(squares.dims(), [1], "clip_scale: the sum of squares is one number");
    wrap(B::lm_clip_scale(unwrap(squares), units, max_norm))
}

/// One AdamW step, in place where a tensor is owned alone: `(param, master, moments)`. See [`crate::ops::adamw`].
///
/// # Shapes
/// `param`, `grad` and full moments have one shape; `scale [1]` multiplies the gradient, and where it is 0, infinite or NaN
/// nothing changes. The element types of `param` and `grad` are f32 or bf16, independently.
pub fn adamw_step<B: LmBackend>(
    param: Leaf<B>,
    grad: Leaf<B>,
    master: Master<B>,
    moments: Moments<B>,
    scale: Tensor<B, 1>,
    hyper: &AdamW,
) -> (Leaf<B>, Master<B>, Moments<B>) {
    let (param, master, moments, _) = adamw_step_gathered(param, grad, (master, moments), scale, hyper, false);
    (param, master, moments)
}

/// [`adamw_step`] that also gives the peaks of parts of the new parameter, `[n]`, where `gather` asks for them and the device
/// gathers: what [`linear_fp8_gathered`] takes with this parameter as its weight. Also of a step that changes nothing.
///
/// # Shapes
/// As [`adamw_step`].
pub fn adamw_step_gathered<B: LmBackend>(
    param: Leaf<B>,
    grad: Leaf<B>,
    (master, moments): (Master<B>, Moments<B>),
    scale: Tensor<B, 1>,
    hyper: &AdamW,
    gather: bool,
) -> (Leaf<B>, Master<B>, Moments<B>, Option<Tensor<B, 1>>) {
    let (dims, n) = (param.dims(), param.n_elements());
    assert!(hyper.step >= 1, "adamw_step: steps are counted from 1");
    assert_eq!(scale.dims(), [1], "adamw_step: scale is one number");
    assert_eq!(grad.dims(), dims, "adamw_step: grad must have the shape of param");
    let param = param.into_primitive();
    if let Master::Remainder(remainder) = &master {
        assert_eq!(remainder.dims(), [n.div_ceil(2)], "adamw_step: two remainders lie in an i32");
    }
    assert!(
        matches!(master, Master::Nearest) || param.dtype() == DType::BF16,
        "adamw_step: a parameter with a remainder or stochastic rounding must be bf16, got {:?}",
        param.dtype()
    );
    match &moments {
        Moments::Full { m, v } => {
            assert_eq!([m.dims(), v.dims()], [dims.clone(), dims], "adamw_step: full moments have the shape of param");
        }
        Moments::Packed(PackedMoments { m, m_scale, v, v_scale }) => {
            let (words, blocks) = packed::lengths(n);
            assert_eq!([m.dims(), v.dims()], [[words]; 2], "adamw_step: codes of the moments of {n} elements");
            assert_eq!([m_scale.dims(), v_scale.dims()], [[blocks]; 2], "adamw_step: scales of the moments");
        }
    }
    let Stepped { param, master, moments, peaks } =
        B::lm_adamw_step(param, grad.into_primitive(), (master, moments), unwrap(scale), hyper, gather);
    (Leaf::from_primitive(param), master, moments, peaks.map(wrap))
}

/// `acc + x`, into `acc`'s memory when it is owned alone.
pub fn add_assign<B: LmBackend, const D: usize>(acc: Tensor<B, D>, x: Tensor<B, D>) -> Tensor<B, D> {
    assert_eq!(acc.dims(), x.dims(), "add_assign: both tensors must have one shape");
    wrap(B::lm_add_assign(unwrap(acc), unwrap(x)))
}
