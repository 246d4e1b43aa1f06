//! The ops of a mixture of experts on burn tensors: shape checks, then the backend's method.

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::functions::{unwrap, wrap};
use crate::{LmBackend, Mxfp4, Packed};

/// Which experts a router chose, and with which weights.
#[derive(Clone, Debug)]
pub struct Routed<B: Backend> {
    /// `[n, k]` f32: softmax over the chosen logits, the largest first.
    pub weights: Tensor<B, 2>,
    /// `[n, k]`: the chosen experts, in the order of the weights. To leave tokens out, fill their rows with −1.
    pub experts: Tensor<B, 2, Int>,
}

/// The `n·k` slots of a routing, sorted by expert; slot `token·k + j` is the `j`-th choice of a token.
///
/// Slots whose expert is not one of `0..n_experts` (by convention −1) come last and contribute nothing.
#[derive(Clone, Debug)]
pub struct Dispatch<B: Backend> {
    /// `[n·k]`: token of each sorted row.
    pub token: Tensor<B, 1, Int>,
    /// `[n·k]`: slot of each sorted row.
    pub slot: Tensor<B, 1, Int>,
    /// `[n·k]`: sorted row of each slot.
    pub position: Tensor<B, 1, Int>,
    /// `[n_experts + 1]`: expert `e` owns the sorted rows `offsets[e]..offsets[e + 1]`.
    pub offsets: Tensor<B, 1, Int>,
}

impl<B: Backend> Dispatch<B> {
    /// Number of experts.
    pub fn n_experts(&self) -> usize {
        self.offsets.dims()[0] - 1
    }

    /// Number of sorted rows, the masked ones included.
    pub fn n_rows(&self) -> usize {
        self.slot.dims()[0]
    }

    /// The same on another backend, field by field.
    pub(crate) fn map<C: Backend>(self, f: impl Fn(Tensor<B, 1, Int>) -> Tensor<C, 1, Int>) -> Dispatch<C> {
        let Self { token, slot, position, offsets } = self;
        Dispatch { token: f(token), slot: f(slot), position: f(position), offsets: f(offsets) }
    }
}

/// The `top_k` largest logits of each row and the softmax over them alone; see [`crate::ops::route`].
///
/// # Shapes
/// `logits [n, e]`, results `[n, k]` with `1 ≤ k ≤ e`.
///
/// # Numerics
/// Equal logits: the lower index first. NaN counts as +∞, so that it shows in the weights. The softmax runs in f32 and the
/// weights are f32 whatever the logits are.
pub fn route<B: LmBackend>(logits: Tensor<B, 2>, top_k: usize) -> Routed<B> {
    let [n, e] = logits.dims();
    assert!((1..=e).contains(&top_k), "route: top_k must be in 1..={e} for logits [{n}, {e}], got {top_k}");
    let (weights, experts) = B::lm_route(unwrap(logits), top_k);
    Routed { weights: wrap(weights), experts: Tensor::from_primitive(experts) }
}

/// Sorts the slots of a routing by expert, equal ones in their order; everything stays on the device.
///
/// # Shapes
/// `experts [n, k]`; an id outside `0..n_experts`, such as −1 for padding, puts its slot behind the last expert.
pub fn dispatch<B: LmBackend>(experts: Tensor<B, 2, Int>, n_experts: usize) -> Dispatch<B> {
    assert!(n_experts > 0, "dispatch: there must be an expert");
    B::lm_dispatch(experts.into_primitive(), n_experts)
}

/// The row of each sorted slot's token; zeros behind the last expert. The gradient is summed in the order of a token's slots.
///
/// # Shapes
/// `x [n, d]`, result `[n·k, d]`.
pub fn gather_tokens<B: LmBackend>(x: Tensor<B, 2>, dispatch: &Dispatch<B>) -> Tensor<B, 2> {
    let ([n, d], rows) = (x.dims(), dispatch.n_rows());
    let fits = if n == 0 { rows == 0 } else { rows.is_multiple_of(n) };
    assert!(fits, "gather_tokens: x [{n}, {d}] must have a row per token of a dispatch of {rows} slots");
    wrap(B::lm_gather_tokens(unwrap(x), dispatch))
}

/// A linear layer per expert: rows of expert `e` use rows `e·o..(e + 1)·o` of the weight. See [`crate::ops::grouped_linear`].
///
/// # Shapes
/// `x [m, i]` in the order of the dispatch, `weight [e·o, i]`, `bias [e·o]`, result `[m, o]`; rows behind the last expert are
/// zero.
pub fn grouped_linear<B: LmBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    dispatch: &Dispatch<B>,
) -> Tensor<B, 2> {
    check_grouped("grouped_linear", &x, weight.dims(), bias.as_ref(), dispatch);
    let offsets = dispatch.offsets.clone().into_primitive();
    wrap(B::lm_grouped_linear(unwrap(x), unwrap(weight), bias.map(unwrap), offsets))
}

/// [`grouped_linear`] with a frozen weight in MXFP4; gradients flow to `x` and `bias` only.
///
/// # Shapes
/// `x [m, i]`, `weight` of the dimensions `[e·o, i]`, `bias [e·o]`, result `[m, o]`.
pub fn grouped_linear_mxfp4<B: LmBackend>(
    x: Tensor<B, 2>,
    weight: &Mxfp4<B>,
    bias: Option<Tensor<B, 1>>,
    dispatch: &Dispatch<B>,
) -> Tensor<B, 2> {
    check_grouped("grouped_linear_mxfp4", &x, weight.dims(), bias.as_ref(), dispatch);
    let offsets = dispatch.offsets.clone().into_primitive();
    wrap(B::lm_grouped_mxfp4(unwrap(x), weight, bias.map(unwrap), offsets))
}

/// [`grouped_linear`] with a frozen weight in whichever format; gradients flow to `x` and `bias` only.
///
/// # Shapes
/// `x [m, i]`, `weight` of the dimensions `[e·o, i]`, `bias [e·o]`, result `[m, o]`.
pub fn grouped_linear_packed<B: LmBackend>(
    x: Tensor<B, 2>,
    weight: &Packed<B>,
    bias: Tensor<B, 1>,
    dispatch: &Dispatch<B>,
) -> Tensor<B, 2> {
    match weight {
        Packed::Mxfp4(weight) => grouped_linear_mxfp4(x, weight, Some(bias), dispatch),
        Packed::Fp8(weight) => {
            check_grouped("grouped_linear in FP8", &x, weight.dims(), Some(&bias), dispatch);
            let offsets = dispatch.offsets.clone().into_primitive();
            wrap(B::lm_grouped_fp8(unwrap(x), weight, unwrap(bias), offsets))
        }
    }
}

pub(crate) fn check_grouped<B: Backend>(
    op: &str,
    x: &Tensor<B, 2>,
    weight: [usize; 2],
    bias: Option<&Tensor<B, 1>>,
    dispatch: &Dispatch<B>,
) {
    let ([m, i], [w_rows, w_i], n_experts) = (x.dims(), weight, dispatch.n_experts());
    assert_eq!(m, dispatch.n_rows(), "{op}: x [{m}, {i}] must have a row per slot of the dispatch");
    assert_eq!(i, w_i, "{op}: last axis of x [{m}, {i}] must match the weight [{w_rows}, {w_i}]");
    assert!(
        w_rows.is_multiple_of(n_experts),
        "{op}: {w_rows} rows of the weight must be shared by {n_experts} experts"
    );
    if let Some(bias) = bias {
        assert_eq!(bias.dims(), [w_rows], "{op}: bias must have one entry per row of the weight");
    }
}

/// GPT-OSS's gated unit on interleaved rows: `(clamp(up) + 1) · g·σ(alpha·g)` with `g = min(gate, limit)`.
///
/// # Shapes
/// `gate_up [.., 2f]` with the gate in even columns, result `[.., f]`.
pub fn swiglu_clamped<B: LmBackend, const D: usize>(gate_up: Tensor<B, D>, alpha: f32, limit: f32) -> Tensor<B, D> {
    let dims = gate_up.dims();
    assert!(dims[D - 1].is_multiple_of(2), "swiglu_clamped: last axis must hold pairs of gate and up, got {dims:?}");
    assert!(limit > 0.0, "swiglu_clamped: limit must be positive, got {limit}");
    wrap(B::lm_swiglu_clamped(unwrap(gate_up), alpha, limit))
}

/// Sum of a token's expert outputs with their weights, in the order of its slots; masked slots add nothing.
///
/// # Shapes
/// `y [n·k, d]` in the order of the dispatch, `weights [n, k]`, result `[n, d]`.
///
/// # Numerics
/// Sums in f32, the result in the type of `y`.
pub fn combine<B: LmBackend>(y: Tensor<B, 2>, weights: Tensor<B, 2>, dispatch: &Dispatch<B>) -> Tensor<B, 2> {
    let ([m, d], [n, k], rows) = (y.dims(), weights.dims(), dispatch.n_rows());
    assert!(
        m == rows && n * k == rows,
        "combine: y [{m}, {d}] and weights [{n}, {k}] must have the dispatch's {rows} slots"
    );
    wrap(B::lm_combine(unwrap(y), unwrap(weights), dispatch))
}
