//! What is timed of a mixture of experts: 8192 tokens of a model with width 2880, 32 experts of width 2880, four for each token.

use burn::tensor::{DType, Tensor};
use kernels_cubecl::cuda::CudaDevice;
use kernels_cubecl::{
    CudaBf16 as B, LmBackend, Mxfp4, Tracked, combine, dispatch, gather_tokens, grouped_linear, grouped_linear_mxfp4,
    linear_bias, quantise_mxfp4, route, swiglu_clamped,
};

use super::measure::{Bench, Work};
use super::workloads::{BF16, F32, TOKENS, random, raw};

const D_MODEL: usize = 2880;
const N_EXPERTS: usize = 32;
const TOP_K: usize = 4;
/// Sorted rows, and outputs of an expert's first layer.
const ROWS: usize = TOKENS * TOP_K;
const GATE_UP: usize = 2 * D_MODEL;
/// The published slope and limit of the gated unit.
const UNIT: (f32, f32) = (1.702, 7.0);

/// Times everything that surrounds the experts' products.
pub(super) fn around(bench: &Bench, device: &CudaDevice) {
    let logits = random::<B, 2>([TOKENS, N_EXPERTS], device);
    let bytes = (TOKENS * N_EXPERTS) as f64 * BF16;
    bench.time("route", Work::Bytes(bytes), || drop(route(logits.clone(), TOP_K)));
    let routed = route(logits, TOP_K);
    let bytes = 4.0 * ROWS as f64 * 4.0;
    bench.time("dispatch", Work::Bytes(bytes), || drop(dispatch(routed.experts.clone(), N_EXPERTS)));
    let at = dispatch(routed.experts, N_EXPERTS);
    let [x, dout] = [0, 1].map(|_| random::<B, 2>([TOKENS, D_MODEL], device));
    let y = random::<B, 2>([ROWS, D_MODEL], device);
    let (few, many) = ((TOKENS * D_MODEL) as f64 * BF16, (ROWS * D_MODEL) as f64 * BF16);
    bench.time("gather_tokens", Work::Bytes(few + many), || drop(gather_tokens(x.clone(), &at)));
    bench.time("gather_tokens backward", Work::Bytes(few + many), || {
        drop(B::lm_gather_tokens_bwd(raw(&y), &at, TOKENS));
    });
    let weights = routed.weights;
    bench.time("combine", Work::Bytes(few + many), || drop(combine(y.clone(), weights.clone(), &at)));
    let want = Tracked { x: true, weight: true };
    bench.time("combine backward", Work::Bytes(2.0 * (few + many)), || {
        drop(B::lm_combine_bwd(raw(&dout), raw(&y), raw(&weights), &at, want));
    });
    let (gate_up, (alpha, limit)) = (random::<B, 2>([ROWS, GATE_UP], device), UNIT);
    bench.time("swiglu_clamped", Work::Bytes(3.0 * many), || drop(swiglu_clamped(gate_up.clone(), alpha, limit)));
    bench.time("swiglu_clamped backward", Work::Bytes(5.0 * many), || {
        drop(B::lm_swiglu_clamped_bwd(raw(&y), raw(&gate_up), alpha, limit));
    });
    let offsets = at.offsets.into_primitive();
    bench.time("grouped bias gradient", Work::Bytes(2.0 * many), || {
        drop(B::lm_grouped_bias_grad(raw(&gate_up), offsets.clone(), DType::BF16));
    });
    bench.time("bias gradient", Work::Bytes(2.0 * many), || drop(B::lm_bias_grad(raw(&gate_up), DType::BF16)));
    let (w, bias) = (random::<B, 2>([4096, D_MODEL], device), random::<B, 1>([4096], device));
    let work = Work::Bf16(2.0 * (TOKENS * D_MODEL * 4096) as f64);
    bench.time("linear_bias y 8192x2880 to 4096", work, || drop(linear_bias(x.clone(), w.clone(), bias.clone())));
}

/// Times the experts' products, of bf16 weights and of MXFP4 ones.
pub(super) fn products(bench: &Bench, device: &CudaDevice) {
    if !["y", "dx", "dw", "mxfp4 y", "mxfp4 dx", "mxfp4 decode"]
        .iter()
        .any(|what| bench.wants(&format!("grouped {what}")))
    {
        return;
    }
    let routed = route(random::<B, 2>([TOKENS, N_EXPERTS], device), TOP_K);
    let at = dispatch(routed.experts, N_EXPERTS);
    let offsets = || at.offsets.clone().into_primitive();
    let x = random::<B, 2>([ROWS, D_MODEL], device);
    let dy = random::<B, 2>([ROWS, GATE_UP], device);
    let w = random::<B, 2>([N_EXPERTS * GATE_UP, D_MODEL], device);
    let work = Work::Bf16(2.0 * (ROWS * D_MODEL * GATE_UP) as f64);
    bench.time("grouped y", work, || drop(grouped_linear(x.clone(), w.clone(), None, &at)));
    bench.time("grouped dx", work, || drop(B::lm_grouped_linear_dx(raw(&dy), raw(&w), offsets())));
    bench.time("grouped dw", work, || drop(B::lm_grouped_linear_dw(raw(&dy), raw(&x), offsets())));
    drop(w);
    let one: Vec<f32> = random::<B, 2>([GATE_UP, D_MODEL], device).into_data().iter::<f32>().collect();
    let Ok((blocks, scales)) = quantise_mxfp4(&one) else { unreachable!("the width is whole blocks") };
    let (blocks, scales) = (blocks.repeat(N_EXPERTS), scales.repeat(N_EXPERTS));
    let dims = [N_EXPERTS * GATE_UP, D_MODEL];
    let Ok(frozen) = Mxfp4::<B>::from_bytes(&blocks, &scales, dims, device) else { unreachable!("the lengths fit") };
    bench.time("grouped mxfp4 y", work, || drop(grouped_linear_mxfp4(x.clone(), &frozen, None, &at)));
    bench.time("grouped mxfp4 dx", work, || drop(B::lm_grouped_mxfp4_dx(raw(&dy), &frozen, offsets())));
    let bytes = (GATE_UP * D_MODEL) as f64 * (BF16 + F32 / 8.0);
    bench.time("grouped mxfp4 decode of one expert", Work::Bytes(bytes), || {
        drop::<Tensor<B, 2>>(frozen.rows(0, GATE_UP).decode());
    });
}
