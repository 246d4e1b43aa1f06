//! The overrides of the CUDA backend: every op of the trait.

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor, IntTensorOps};
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, read_sync};
use burn_cubecl::{BoolElement, CubeBackend, FloatElement, IntElement};

use super::launch::dense;
use super::{Buffer, Peaks, Runtime, bridge, faults, gemm, has_fp8, parking, snapshot};
use crate::backend::StatsParts;
use crate::functions::unwrap;

use crate::ops::grouped_linear::cuda::{Rows, Weight, Weights};
use crate::ops::{
    accumulate, adamw, attention, dispatch, embedding, grouped_fp8, grouped_mxfp4, linear_bias, linear_cross_entropy,
    linear_fp8, rms_norm, rope_qkv, route, sum_squares, swiglu, swiglu_clamped,
};
use crate::{
    AdamW, CrossEntropyParts, Dispatch, ExpertWeight, Fp8, Fp8Gradients, Fp8Known, Fp8Rows, Fp8Saved, Gathered,
    HeadLayout, HostCopy, HostReserve, LmBackend, Master, Moments, Mxfp4, Packed, Parked, Rotation, Stepped, Tracked,
    portable,
};

/// The product, where the kernels are for it.
fn fast(rows: Rows<'_>, op: &'static str) -> Option<Buffer> {
    rows.fit().then(|| rows.product(op))
}

/// Calls `work` with the weight of experts, packed or not.
fn with_weight<B: LmBackend<FloatTensorPrimitive = Buffer>, T>(
    weight: &ExpertWeight<B>,
    work: impl FnOnce(Weight<'_>) -> T,
) -> T {
    match weight {
        ExpertWeight::Dense(weight) => work(Weight::Whole(unwrap(weight.clone()))),
        ExpertWeight::Packed(packed) => with_packed(packed, work),
    }
}

/// As [`with_weight`].
fn with_packed<B: LmBackend<FloatTensorPrimitive = Buffer>, T>(
    packed: &Packed<B>,
    work: impl FnOnce(Weight<'_>) -> T,
) -> T {
    let decode = |at, n| match packed {
        Packed::Mxfp4(weight) => B::lm_mxfp4_decode(&weight.rows(at, n), DType::BF16),
        Packed::Fp8(weight) => B::lm_fp8_decode(&weight.rows(at, n), DType::BF16),
    };
    work(Weight::Parts { dims: packed.dims(), decode: &decode })
}

impl<F: FloatElement, I: IntElement, T: BoolElement> LmBackend for CubeBackend<Runtime, F, I, T> {
    type Peaks = Peaks;

    fn lm_gathers(device: &Self::Device) -> bool {
        Self::FloatElem::dtype() == DType::BF16 && has_fp8(device)
    }

    fn lm_take_peaks(peaks: &Peaks) -> Option<FloatTensor<Self>> {
        peaks.take().map(|seen| seen.peaks)
    }

    fn lm_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("linear");
        gemm::linear(x, weight)
    }

    fn lm_linear_f32(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("linear in f32");
        gemm::linear_into(x, weight, Some(DType::F32))
    }

    fn lm_linear_dx(dy: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("linear backward by x");
        gemm::linear_dx(dy, weight)
    }

    fn lm_linear_dw(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("linear backward by weight");
        gemm::linear_dw(dy, x)
    }

    fn lm_linear_dw_acc(dy: FloatTensor<Self>, x: FloatTensor<Self>, acc: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("linear backward by weight");
        gemm::linear_dw_acc(dy, x, acc)
    }

    fn lm_rms_norm_fwd(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Option<&Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        faults::enter("rms_norm");
        rms_norm::cuda::forward(x, gamma, eps, peaks)
    }

    fn lm_rms_norm_bwd(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        carry: Option<FloatTensor<Self>>,
        peaks: Option<&Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        faults::enter("rms_norm backward");
        rms_norm::cuda::backward(dy, x, gamma, rstd, carry, peaks)
    }

    fn lm_add_rms_norm_fwd(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f32,
        peaks: Option<&Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        faults::enter("add_rms_norm");
        rms_norm::cuda::add_forward(x, residual, gamma, eps, peaks)
    }

    fn lm_rope_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: HeadLayout,
        rotation: Rotation,
        peaks: Option<&Peaks>,
    ) -> FloatTensor<Self> {
        faults::enter("rope_qkv");
        rope_qkv::cuda::rotate(qkv, cos, sin, heads, rotation, peaks)
    }

    fn lm_attention_fwd(
        qkv: FloatTensor<Self>,
        start: IntTensor<Self>,
        end: IntTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        heads: HeadLayout,
        scale: f32,
        peaks: Option<&Peaks>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        faults::enter("attention");
        attention::cuda::forward(qkv, start, end, sinks, heads, scale, peaks)
    }

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
        faults::enter("attention backward");
        attention::cuda::backward(dout, qkv, out, lse, start, end, sinks, heads, scale)
    }

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
        faults::enter("attention_cached");
        attention::cuda::forward_cached(q, k, v, start, end, sinks, heads, scale)
    }

    fn lm_swiglu(gate_up: FloatTensor<Self>, peaks: Gathered<Peaks>) -> FloatTensor<Self> {
        faults::enter("swiglu");
        swiglu::cuda::forward(gate_up, peaks.forward.as_ref())
    }

    fn lm_swiglu_bwd(dy: FloatTensor<Self>, gate_up: FloatTensor<Self>, peaks: Option<&Peaks>) -> FloatTensor<Self> {
        faults::enter("swiglu backward");
        swiglu::cuda::backward(dy, gate_up, peaks)
    }

    fn lm_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        faults::enter("embedding");
        embedding::cuda::forward(weight, ids)
    }

    fn lm_embedding_bwd(dy: FloatTensor<Self>, ids: IntTensor<Self>, n_rows: usize) -> FloatTensor<Self> {
        faults::enter("embedding backward");
        embedding::cuda::backward(dy, ids, n_rows)
    }

    fn lm_embedding_bwd_acc(dy: FloatTensor<Self>, ids: IntTensor<Self>, acc: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("embedding backward onto a gradient");
        embedding::cuda::backward_onto(dy, ids, acc)
    }

    fn lm_linear_cross_entropy_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: FloatTensor<Self>,
        z_loss: f32,
        want: Tracked,
    ) -> CrossEntropyParts<Self> {
        faults::enter("linear_cross_entropy");
        let (loss, nll, dx, dw) = linear_cross_entropy::cuda::cross_entropy(x, weight, targets, weights, z_loss, want);
        CrossEntropyParts { loss, nll, dx, dw }
    }

    fn lm_token_logprobs_bwd(
        dlogprob: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        lse: FloatTensor<Self>,
        want: Tracked,
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        faults::enter("token_logprobs backward");
        linear_cross_entropy::cuda::logprobs_backward(dlogprob, x, weight, targets, lse, want)
    }

    fn lm_token_stats(x: FloatTensor<Self>, weight: FloatTensor<Self>, targets: IntTensor<Self>) -> StatsParts<Self> {
        faults::enter("token_logprobs");
        linear_cross_entropy::cuda::token_stats(x, weight, targets)
    }

    fn lm_sum_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("sum_squares");
        sum_squares::cuda::forward(x)
    }

    fn lm_sum_squares_into(parts: FloatTensor<Self>, index: usize, x: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("sum_squares_into");
        sum_squares::cuda::into(parts, index, x)
    }

    fn lm_sum_parts(parts: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("sum_parts");
        sum_squares::cuda::total(parts)
    }

    fn lm_clip_scale(squares: FloatTensor<Self>, units: f64, max_norm: f64) -> FloatTensor<Self> {
        faults::enter("clip_scale");
        sum_squares::cuda::clip_scale(squares, units, max_norm)
    }

    fn lm_adamw_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        (master, moments): (Master<Self>, Moments<Self>),
        scale: FloatTensor<Self>,
        hyper: &AdamW,
        gather: bool,
    ) -> Stepped<Self> {
        faults::enter("adamw_step");
        let state = adamw::cuda::State::new(master, moments);
        let (param, state, peaks) = adamw::cuda::step(param, grad, state, scale, hyper, gather);
        let (master, moments) = state.into_parts();
        Stepped { param, master, moments, peaks }
    }

    fn lm_add_assign(acc: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("add_assign");
        accumulate::cuda::add_assign(acc, x)
    }

    fn lm_scale(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("scale");
        accumulate::cuda::scale(x, factor)
    }

    fn lm_begin_read(x: FloatTensor<Self>) -> Box<dyn FnOnce() -> TensorData> {
        faults::enter("read");
        let x = dense(x);
        let (shape, dtype) = (x.shape(), x.dtype);
        let read = bridge::begin_read("read", &x, shape.num_elements() * dtype.size());
        Box::new(move || {
            let bytes = read.finish().unwrap_or_else(|error| panic!("read from the device: {error}"));
            TensorData::from_bytes_vec(bytes, shape, dtype)
        })
    }

    fn lm_park(x: Tensor<Self, 3>) -> Box<dyn Parked<Self>> {
        faults::enter("offload");
        Box::new(parking::OnHost::new(x.into_primitive().tensor()))
    }

    fn lm_copy_float(x: FloatTensor<Self>) -> HostCopy {
        faults::enter(snapshot::OP);
        snapshot::begin(x, |x| HostCopy::here(read_sync(Self::float_into_data(x))))
    }

    fn lm_copy_int(x: IntTensor<Self>) -> HostCopy {
        faults::enter(snapshot::OP);
        snapshot::begin(x, |x| HostCopy::here(read_sync(Self::int_into_data(x))))
    }

    /// Not an op that reports faults: it is also called while one is being reported.
    fn lm_end_copies(device: &Self::Device) {
        bridge::finish_snapshots(snapshot::OP, device);
    }

    fn lm_reserve_host(device: &Self::Device, sizes: &[usize], limit: u64) -> HostReserve {
        bridge::reserve(device, sizes, limit)
    }

    fn lm_linear_fp8_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        known: Fp8Known<Self>,
        mode: Fp8,
        want: Tracked,
        peaks: Option<&Peaks>,
    ) -> (FloatTensor<Self>, Fp8Saved<Self>) {
        faults::enter("linear_fp8");
        linear_fp8::cuda::forward(x, weight, known, mode, want, peaks)
    }

    fn lm_linear_fp8_bwd(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        saved: Fp8Saved<Self>,
        mode: Fp8,
        want: Tracked,
        acc: Option<FloatTensor<Self>>,
        peaks: Option<&Peaks>,
    ) -> Fp8Gradients<Self> {
        faults::enter("linear_fp8 backward");
        linear_fp8::cuda::backward(dy, weight, saved, mode, want, acc, peaks)
    }

    fn lm_linear_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        faults::enter("linear_bias");
        gemm::linear_bias(x, weight, bias, None)
    }

    fn lm_linear_bias_f32(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("linear_bias in f32");
        gemm::linear_bias(x, weight, bias, Some(DType::F32))
    }

    fn lm_bias_grad(dy: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        faults::enter("linear_bias backward by bias");
        linear_bias::cuda::column_sums(dy, dtype)
    }

    fn lm_route(logits: FloatTensor<Self>, top_k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        faults::enter("route");
        route::cuda::forward(logits, top_k)
    }

    fn lm_route_bwd(
        dweights: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        experts: IntTensor<Self>,
        n_experts: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        faults::enter("route backward");
        route::cuda::backward(dweights, weights, experts, n_experts, dtype)
    }

    fn lm_dispatch(experts: IntTensor<Self>, n_experts: usize) -> Dispatch<Self> {
        faults::enter("dispatch");
        let [token, slot, position, offsets] = dispatch::cuda::sort(experts, n_experts).map(Tensor::from_primitive);
        Dispatch { token, slot, position, offsets }
    }

    fn lm_gather_tokens(x: FloatTensor<Self>, at: &Dispatch<Self>) -> FloatTensor<Self> {
        faults::enter("gather_tokens");
        dispatch::cuda::gather(x, &at.clone().into())
    }

    fn lm_gather_tokens_bwd(dy: FloatTensor<Self>, at: &Dispatch<Self>, n: usize) -> FloatTensor<Self> {
        faults::enter("gather_tokens backward");
        dispatch::cuda::combine(dy, None, &at.clone().into(), n)
    }

    fn lm_combine(y: FloatTensor<Self>, weights: FloatTensor<Self>, at: &Dispatch<Self>) -> FloatTensor<Self> {
        faults::enter("combine");
        let n = weights.shape()[0];
        dispatch::cuda::combine(y, Some(weights), &at.clone().into(), n)
    }

    fn lm_combine_bwd(
        dout: FloatTensor<Self>,
        y: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        at: &Dispatch<Self>,
        want: Tracked,
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        faults::enter("combine backward");
        dispatch::cuda::combine_backward(dout, y, weights, &at.clone().into(), want)
    }

    fn lm_swiglu_clamped(gate_up: FloatTensor<Self>, alpha: f32, limit: f32) -> FloatTensor<Self> {
        faults::enter("swiglu_clamped");
        swiglu_clamped::cuda::forward(gate_up, alpha, limit)
    }

    fn lm_swiglu_clamped_bwd(
        dy: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        alpha: f32,
        limit: f32,
    ) -> FloatTensor<Self> {
        faults::enter("swiglu_clamped backward");
        swiglu_clamped::cuda::backward(dy, gate_up, alpha, limit)
    }

    fn lm_grouped_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_linear");
        let rows = Rows { x, weight: Weight::Whole(weight.clone()), turned: false, bias, low_rank: None, offsets };
        match rows.fit() {
            true => rows.product("grouped_linear"),
            false => portable::grouped_linear::<Self>(rows.x, weight, rows.bias, rows.offsets),
        }
    }

    fn lm_grouped_linear_dx(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_linear backward by x");
        let whole = Weight::Whole(weight.clone());
        let rows = Rows { x: dy, weight: whole, turned: true, bias: None, low_rank: None, offsets };
        match rows.fit() {
            true => rows.product("grouped_linear backward by x"),
            false => portable::grouped_linear_dx::<Self>(rows.x, weight, rows.offsets),
        }
    }

    fn lm_grouped_linear_dw(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_linear backward by weight");
        let weights = Weights { dy, x, offsets, acc: None };
        match weights.fit() {
            true => weights.gradient("grouped_linear backward by weight"),
            false => portable::grouped_linear_dw::<Self>(weights.dy, weights.x, weights.offsets),
        }
    }

    fn lm_grouped_linear_dw_acc(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        offsets: IntTensor<Self>,
        acc: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_linear backward by weight");
        let weights = Weights { dy, x, offsets, acc: Some(acc) };
        match weights.fit() {
            true => weights.gradient("grouped_linear backward by weight"),
            false => {
                let Weights { dy, x, offsets, acc } = weights;
                let dw = portable::grouped_linear_dw::<Self>(dy, x, offsets);
                acc.map_or_else(|| unreachable!("given above"), |acc| accumulate::cuda::add_assign(acc, dw))
            }
        }
    }

    fn lm_grouped_mxfp4(
        x: FloatTensor<Self>,
        weight: &Mxfp4<Self>,
        bias: Option<FloatTensor<Self>>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_linear in MXFP4");
        let packed = Packed::Mxfp4(weight.clone());
        let fast = with_packed(&packed, |weight| {
            let (x, bias, offsets) = (x.clone(), bias.clone(), offsets.clone());
            fast(Rows { x, weight, turned: false, bias, low_rank: None, offsets }, "grouped_linear in MXFP4")
        });
        fast.unwrap_or_else(|| portable::grouped_mxfp4::<Self>(x, weight, bias, offsets))
    }

    fn lm_grouped_mxfp4_dx(dy: FloatTensor<Self>, weight: &Mxfp4<Self>, offsets: IntTensor<Self>) -> FloatTensor<Self> {
        faults::enter("grouped_linear in MXFP4 backward by x");
        let packed = Packed::Mxfp4(weight.clone());
        let fast = with_packed(&packed, |weight| {
            let (x, offsets) = (dy.clone(), offsets.clone());
            let rows = Rows { x, weight, turned: true, bias: None, low_rank: None, offsets };
            fast(rows, "grouped_linear in MXFP4 backward by x")
        });
        fast.unwrap_or_else(|| portable::grouped_mxfp4_dx::<Self>(dy, weight, offsets))
    }

    fn lm_grouped_fp8(
        x: FloatTensor<Self>,
        weight: &Fp8Rows<Self>,
        bias: FloatTensor<Self>,
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_linear in FP8");
        let packed = Packed::Fp8(weight.clone());
        let fast = with_packed(&packed, |weight| {
            let (x, bias, offsets) = (x.clone(), Some(bias.clone()), offsets.clone());
            fast(Rows { x, weight, turned: false, bias, low_rank: None, offsets }, "grouped_linear in FP8")
        });
        fast.unwrap_or_else(|| portable::grouped_fp8::<Self>(x, weight, bias, offsets))
    }

    fn lm_grouped_fp8_dx(dy: FloatTensor<Self>, weight: &Fp8Rows<Self>, offsets: IntTensor<Self>) -> FloatTensor<Self> {
        faults::enter("grouped_linear in FP8 backward by x");
        let packed = Packed::Fp8(weight.clone());
        let fast = with_packed(&packed, |weight| {
            let (x, offsets) = (dy.clone(), offsets.clone());
            let rows = Rows { x, weight, turned: true, bias: None, low_rank: None, offsets };
            fast(rows, "grouped_linear in FP8 backward by x")
        });
        fast.unwrap_or_else(|| portable::grouped_fp8_dx::<Self>(dy, weight, offsets))
    }

    fn lm_grouped_sum(
        x: FloatTensor<Self>,
        weight: &ExpertWeight<Self>,
        bias: Option<FloatTensor<Self>>,
        low_up: [FloatTensor<Self>; 2],
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_lora");
        let fast = with_weight(weight, |weight| {
            let (x, bias, low_rank, offsets) = (x.clone(), bias.clone(), Some(low_up.clone()), offsets.clone());
            fast(Rows { x, weight, turned: false, bias, low_rank, offsets }, "grouped_lora")
        });
        fast.unwrap_or_else(|| portable::grouped_sum::<Self>(x, weight, bias, low_up, offsets))
    }

    fn lm_grouped_sum_dx(
        dy: FloatTensor<Self>,
        weight: &ExpertWeight<Self>,
        dlow_down: [FloatTensor<Self>; 2],
        offsets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        faults::enter("grouped_lora backward by x");
        let fast = with_weight(weight, |weight| {
            let (x, low_rank, offsets) = (dy.clone(), Some(dlow_down.clone()), offsets.clone());
            fast(Rows { x, weight, turned: true, bias: None, low_rank, offsets }, "grouped_lora backward by x")
        });
        fast.unwrap_or_else(|| portable::grouped_sum_dx::<Self>(dy, weight, dlow_down, offsets))
    }

    fn lm_grouped_bias_grad(dy: FloatTensor<Self>, offsets: IntTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        faults::enter("grouped_linear backward by bias");
        linear_bias::cuda::grouped_column_sums(dy, offsets, dtype)
    }

    fn lm_mxfp4_decode(matrix: &Mxfp4<Self>, dtype: DType) -> FloatTensor<Self> {
        faults::enter("mxfp4 decode");
        let [codes, scales] = [&matrix.codes, &matrix.scales].map(|words| words.clone().into_primitive());
        grouped_mxfp4::cuda::decode(codes, scales, matrix.dims(), dtype)
    }

    fn lm_fp8_decode(matrix: &Fp8Rows<Self>, dtype: DType) -> FloatTensor<Self> {
        faults::enter("fp8 decode");
        let [codes, scales] = [&matrix.codes, &matrix.scales].map(|words| words.clone().into_primitive());
        grouped_fp8::cuda::decode(codes, scales, matrix.dims(), dtype)
    }
}
