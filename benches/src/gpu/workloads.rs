//! What is timed: each op at 8192 tokens of a model with width 4096, 32/8 heads of 128, hidden width 14336, vocabulary 32000.

use std::collections::HashMap;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Element as _, FloatDType, Int, Tensor, TensorData};
use kernels_cubecl::cuda::{CudaDevice, Element, Gemm, Peaks, Types, gemm, gemm_fp8, round_fp8};
use kernels_cubecl::{
    AdamW, Cuda, CudaBf16, Fp8, Fp8Known, Gathered, HeadLayout, Leaf, LmBackend, Master, Moments, PackedMoments,
    Rotation, Spans, Tracked, adamw_step, add_assign, clip_scale, embedding, embedding_backward_acc, linear, sum_parts,
    sum_squares, sum_squares_into, sum_squares_parts, swiglu, swiglu_gathered, token_logprobs,
};

use super::experts;
use super::measure::{Bench, Work};

type B = CudaBf16;

pub(super) const TOKENS: usize = 8192;
const D_MODEL: usize = 4096;
const D_FF: usize = 14336;
const VOCABULARY: usize = 32_000;
const HEADS: HeadLayout = HeadLayout { n_heads: 32, n_kv_heads: 8, d_head: 128 };
/// Output and input widths of the linear layers of a 7B model: q, k and v; o; gate and up; down. The last two in both widths of
/// the hidden layer.
const LINEARS: [(usize, usize); 6] = [
    (HEADS.width(), D_MODEL),
    (D_MODEL, D_MODEL),
    (22_016, D_MODEL),
    (2 * D_FF, D_MODEL),
    (D_MODEL, 11_008),
    (D_MODEL, D_FF),
];
/// Rows of its output head.
const HEAD_ROWS: usize = 50_304;
/// Bytes of a bf16 and of an f32 number.
pub(super) const BF16: f64 = 2.0;
pub(super) const F32: f64 = 4.0;

/// Times everything.
pub(super) fn run(device: &CudaDevice, only: &str, rival: &HashMap<String, f64>) {
    let bench = Bench::new(device, only, rival);
    let groups: [fn(&Bench, &CudaDevice); 9] =
        [copies, products, fp8, rows, attention, head, optimizer, experts::around, experts::products];
    for group in groups {
        let group = || kernels_cubecl::cuda::guarded(|| group(&bench, device));
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(group)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => println!("failed: {error}"),
            Err(_) => println!("failed: a panic, see above"),
        }
    }
    bench.summary();
    // A process that ends before its device is idle crashes in the driver.
    if let Err(error) = B::sync(device) {
        println!("failed: {error:?}");
    }
}

/// Random numbers about zero.
pub(super) fn random<L: LmBackend<Device = CudaDevice>, const D: usize>(
    dims: [usize; D],
    device: &CudaDevice,
) -> Tensor<L, D> {
    // Random tensors come in the device's default type, whatever the backend's is.
    let dtype: FloatDType = L::FloatElem::dtype().into();
    // As a line, so that there are no gaps between its rows, as in the tensors of the ops.
    let n: usize = dims.iter().product();
    Tensor::<L, 1>::random([n], Distribution::Normal(0.0, 0.5), device).cast::<FloatDType>(dtype).reshape(dims)
}

/// The tensor's primitive.
pub(super) fn raw<L: LmBackend, const D: usize>(tensor: &Tensor<L, D>) -> FloatTensor<L> {
    tensor.clone().into_primitive().tensor()
}

fn ints<const D: usize>(dims: [usize; D], limit: usize, device: &CudaDevice) -> Tensor<B, D, Int> {
    let n = dims.iter().product();
    Tensor::from_data(TensorData::new(kernels_cubecl::cases::whole_numbers(1, n, limit), dims), device)
}

/// The ceiling of everything that moves memory.
fn copies(bench: &Bench, device: &CudaDevice) {
    // What short kernels can reach: their start and end are a part of it.
    let (few, short) = ((TOKENS * D_MODEL) as f64, random::<B, 2>([TOKENS, D_MODEL], device));
    bench.time("copy 8192x4096 bf16", Work::Bytes(2.0 * few * BF16), || drop(short.clone().mul_scalar(1.0)));
    let (n, x) = ((1usize << 28) as f64, random::<Cuda, 1>([1 << 28], device));
    bench.time("copy 1 GiB f32", Work::Bytes(2.0 * n * F32), || drop(x.clone().mul_scalar(1.0)));
    let mut acc = Some(random::<Cuda, 1>([1 << 28], device));
    bench.time("add_assign 1 GiB f32", Work::Bytes(3.0 * n * F32), || {
        acc = acc.take().map(|acc| add_assign(acc, x.clone()));
    });
}

fn products(bench: &Bench, device: &CudaDevice) {
    for (m, (n, k)) in LINEARS.into_iter().flat_map(|shape| [(TOKENS / 2, shape), (TOKENS, shape)]) {
        product(bench, device, [m, n, k]);
    }
    // The head works on a few rows at a time.
    product(bench, device, [TOKENS / 4, HEAD_ROWS, D_MODEL]);
    let [x, w] = [0, 1].map(|_| random::<Cuda, 2>([4096, 4096], device));
    let work = Work::F32(2.0 * 4096f64.powi(3));
    bench.time("linear f32 4096x4096 to 4096", work, || drop(linear(x.clone(), w.clone())));
}

/// The linear layer of `m` rows from width `k` to `n`, and its gradients.
fn product(bench: &Bench, device: &CudaDevice, [m, n, k]: [usize; 3]) {
    let name = |what: &str| format!("linear {what} {m}x{k} to {n}");
    if !["y", "dx", "dw", "dw +="].iter().any(|what| bench.wants(&name(what))) {
        return;
    }
    let (x, w, dy) = (random::<B, 2>([m, k], device), random::<B, 2>([n, k], device), random::<B, 2>([m, n], device));
    let work = Work::Bf16(2.0 * (m * n * k) as f64);
    bench.time(&name("y"), work, || drop(linear(x.clone(), w.clone())));
    bench.time(&name("dx"), work, || drop(B::lm_linear_dx(raw(&dy), raw(&w))));
    bench.time(&name("dw"), work, || drop(B::lm_linear_dw(raw(&dy), raw(&x))));
    let sum = raw(&random::<B, 2>([n, k], device));
    let problem = Gemm { m: n, n: k, k: m, a_transposed: true, b_transposed: false, accumulate: true };
    bench.time(&name("dw +="), work, || gemm("linear backward by weight", &raw(&dy), &raw(&x), &sum, problem));
}

/// FP8 products alone, the rounding before them, and whole layers beside those in bf16.
fn fp8(bench: &Bench, device: &CudaDevice) {
    let types = |fast_sums| Types { a: Element::E4m3, b: Element::E4m3, c: Element::Bf16, fast_sums };
    for (m, (n, k)) in LINEARS.into_iter().flat_map(|shape| [(TOKENS / 2, shape), (TOKENS, shape)]) {
        let name = format!("fp8 {m}x{k} to {n}");
        if !["", " fast", " layer", " layer in bf16"].iter().any(|what| bench.wants(&format!("{name}{what}"))) {
            continue;
        }
        let (x, w, dy) = (random::<B, 2>([m, k], device), random::<B, 2>([n, k], device), random([m, n], device));
        let ([x8, _], x_factor) = round_fp8(&raw(&x), false, [true, false]);
        let ([w8, _], w_factor) = round_fp8(&raw(&w), false, [true, false]);
        let y = raw(&dy);
        let problem = Gemm { m, n, k, a_transposed: false, b_transposed: true, accumulate: false };
        let work = |passes: usize| Work::Fp8(2.0 * (passes * m * n * k) as f64);
        if let (Some(x8), Some(w8)) = (x8, w8) {
            for (what, fast) in [(" fast", true), ("", false)] {
                bench.time(&format!("{name}{what}"), work(1), || {
                    gemm_fp8("fp8", [&x8, &w8, &y], [&x_factor, &w_factor], problem, types(fast));
                });
            }
        }
        fp8_layer(bench, &name, [&x, &w, &dy], work(3));
    }
    for (m, k) in [(TOKENS, D_MODEL), (TOKENS, D_FF)] {
        let x = raw(&random::<B, 2>([m, k], device));
        for (what, copies, bytes) in
            [("rows", [true, false], 5.0), ("columns", [false, true], 5.0), ("rows and columns", [true, true], 6.0)]
        {
            let work = Work::Bytes(bytes * (m * k) as f64);
            bench.time(&format!("fp8 rounding {m}x{k}, {what}"), work, || drop(round_fp8(&x, false, copies)));
        }
    }
}

/// A linear layer forward and backward, with scales of now, scales of a history, and in bf16.
fn fp8_layer(bench: &Bench, name: &str, [x, w, dy]: [&Tensor<B, 2>; 3], work: Work) {
    let want = Tracked { x: true, weight: true };
    let mode = Fp8::default();
    let zeros = Tensor::<B, 2>::from_data(TensorData::new(vec![4f32; 48], [3, 16]), (&x.device(), DType::F32));
    for (what, history) in [("layer", None), ("layer with history", Some(raw(&zeros)))] {
        bench.time(&format!("{name} {what}"), work, || {
            let known = Fp8Known { history: history.clone(), weight: None };
            let (y, saved) = B::lm_linear_fp8_fwd(raw(x), raw(w), known, mode, want, None);
            drop((y, B::lm_linear_fp8_bwd(raw(dy), raw(w), saved, mode, want, None, None)));
        });
    }
    bench.time(&format!("{name} layer in bf16"), work, || {
        let y = B::lm_linear(raw(x), raw(w));
        drop((y, B::lm_linear_dx(raw(dy), raw(w)), B::lm_linear_dw(raw(dy), raw(x))));
    });
}

fn rows(bench: &Bench, device: &CudaDevice) {
    let [x, residual, dy] = [0, 1, 2].map(|_| random::<B, 2>([TOKENS, D_MODEL], device));
    let gamma = random::<B, 1>([D_MODEL], device);
    let bytes = (TOKENS * D_MODEL) as f64 * BF16;
    bench.time("rms_norm", Work::Bytes(2.0 * bytes), || drop(B::lm_rms_norm_fwd(raw(&x), raw(&gamma), 1e-5, None)));
    let slot = Peaks::default();
    bench.time("rms_norm, peaks gathered", Work::Bytes(2.0 * bytes), || {
        drop(B::lm_rms_norm_fwd(raw(&x), raw(&gamma), 1e-5, Some(&slot)));
    });
    bench.time("add_rms_norm", Work::Bytes(4.0 * bytes), || {
        drop(B::lm_add_rms_norm_fwd(raw(&x), raw(&residual), raw(&gamma), 1e-5, None));
    });
    let rstd = B::lm_rms_norm_fwd(raw(&x), raw(&gamma), 1e-5, None).1;
    bench.time("rms_norm backward with carry", Work::Bytes(4.0 * bytes), || {
        drop(B::lm_rms_norm_bwd(raw(&dy), raw(&x), raw(&gamma), rstd.clone(), Some(raw(&residual)), None));
    });
    bench.time("rms_norm backward with carry, peaks gathered", Work::Bytes(4.0 * bytes), || {
        drop(B::lm_rms_norm_bwd(raw(&dy), raw(&x), raw(&gamma), rstd.clone(), Some(raw(&residual)), Some(&slot)));
    });
    let gate_up = random::<B, 2>([TOKENS, 2 * D_FF], device);
    let dy = random::<B, 2>([TOKENS, D_FF], device);
    let bytes = (TOKENS * D_FF) as f64 * BF16;
    bench.time("swiglu", Work::Bytes(3.0 * bytes), || drop(swiglu(gate_up.clone())));
    bench.time("swiglu backward", Work::Bytes(5.0 * bytes), || drop(B::lm_swiglu_bwd(raw(&dy), raw(&gate_up), None)));
    bench.time("swiglu, peaks gathered", Work::Bytes(3.0 * bytes), || {
        drop(swiglu_gathered(gate_up.clone(), Gathered { forward: Some(slot.clone()), backward: None }));
    });
    bench.time("swiglu backward, peaks gathered", Work::Bytes(5.0 * bytes), || {
        drop(B::lm_swiglu_bwd(raw(&dy), raw(&gate_up), Some(&slot)));
    });
    drop((gate_up, dy));
    let mut qkv = Some(raw(&random::<B, 3>([4, TOKENS / 4, HEADS.width()], device)));
    let [cos, sin] = [0, 1].map(|_| random::<B, 3>([4, TOKENS / 4, HEADS.d_head / 2], device));
    let bytes = (TOKENS * (HEADS.n_heads + HEADS.n_kv_heads) * HEADS.d_head) as f64 * BF16;
    bench.time("rope_qkv in place", Work::Bytes(2.0 * bytes), || {
        qkv = qkv.take().map(|qkv| B::lm_rope_qkv(qkv, raw(&cos), raw(&sin), HEADS, Rotation::Forward, None));
    });
    bench.time("rope_qkv backward in place, peaks gathered", Work::Bytes(2.0 * bytes), || {
        // An emptied slot lets the rows be turned in place again.
        drop(B::lm_take_peaks(&slot));
        qkv = qkv.take().map(|qkv| B::lm_rope_qkv(qkv, raw(&cos), raw(&sin), HEADS, Rotation::Backward, Some(&slot)));
    });
    drop(B::lm_take_peaks(&slot));
    let (table, ids) = (random::<B, 2>([VOCABULARY, D_MODEL], device), ints([4, TOKENS / 4], VOCABULARY, device));
    let dy = random::<B, 3>([4, TOKENS / 4, D_MODEL], device);
    let bytes = (TOKENS * D_MODEL) as f64 * BF16;
    bench.time("embedding", Work::Bytes(2.0 * bytes), || drop(embedding(table.clone(), ids.clone())));
    let table_bytes = (VOCABULARY * D_MODEL) as f64 * BF16;
    bench.time("embedding backward", Work::Bytes(bytes + table_bytes), || {
        drop(B::lm_embedding_bwd(raw(&dy), ids.clone().into_primitive(), VOCABULARY));
    });
    let mut seen = ids.clone().into_data().to_vec::<i32>().expect("ids are i32");
    seen.sort_unstable();
    seen.dedup();
    let touched = (seen.len() * D_MODEL) as f64 * BF16;
    let mut acc = Some(table);
    bench.time("embedding backward onto a gradient", Work::Bytes(bytes + 2.0 * touched), || {
        acc = acc.take().map(|acc| embedding_backward_acc(dy.clone(), ids.clone(), acc));
    });
}

/// Every query sees all keys of its document of this length up to itself.
fn causal<L: LmBackend<Device = CudaDevice>>([b, t]: [usize; 2], document: usize, device: &CudaDevice) -> Spans<L> {
    let start = (0..b * t).map(|i| (i % t / document * document) as i32).collect::<Vec<_>>();
    let end = (0..b * t).map(|i| (i % t + 1) as i32).collect::<Vec<_>>();
    let tensor = |values: Vec<i32>| Tensor::from_data(TensorData::new(values, [b, t]), device);
    Spans { start: tensor(start), end: tensor(end) }
}

fn attention(bench: &Bench, device: &CudaDevice) {
    let half = HeadLayout { d_head: 64, ..HEADS };
    for (name, rows, document, heads) in [
        ("attention 4x2048", [4, 2048], 2048, HEADS),
        ("attention 1x8192", [1, 8192], 8192, HEADS),
        ("attention 4x2048, head of 64", [4, 2048], 2048, half),
        ("attention 4x2047", [4, 2047], 2047, HEADS),
        ("attention 1x8192 in documents of 1024", [1, 8192], 1024, HEADS),
    ] {
        attention_case::<B>(bench, name, rows, document, heads, Work::Bf16, device);
    }
    attention_case::<Cuda>(bench, "attention f32 4x1024", [4, 1024], 1024, half, Work::F32, device);
}

fn attention_case<L: LmBackend<Device = CudaDevice>>(
    bench: &Bench,
    name: &str,
    [b, t]: [usize; 2],
    document: usize,
    heads: HeadLayout,
    work: fn(f64) -> Work,
    device: &CudaDevice,
) {
    if !bench.wants(name) && !bench.wants(&format!("{name} backward")) {
        return;
    }
    let qkv = random::<L, 3>([b, t, heads.width()], device);
    let dout = random::<L, 3>([b, t, heads.q_width()], device);
    let spans = causal::<L>([b, t], document, device);
    let scale = 1.0 / (heads.d_head as f32).sqrt();
    let (start, end) = (spans.start.into_primitive(), spans.end.into_primitive());
    let forward = || L::lm_attention_fwd(raw(&qkv), start.clone(), end.clone(), None, heads, scale, None);
    // Two products of which half is seen; the backward pass counts five.
    let flops = 2.0 * 2.0 * (b * heads.n_heads * t * document * heads.d_head) as f64 / 2.0;
    bench.time(name, work(flops), || drop(forward()));
    let (out, lse) = forward();
    bench.time(&format!("{name} backward"), work(2.5 * flops), || {
        let (out, lse, start, end) = (out.clone(), lse.clone(), start.clone(), end.clone());
        drop(L::lm_attention_bwd(raw(&dout), raw(&qkv), out, lse, start, end, None, heads, scale));
    });
}

fn head(bench: &Bench, device: &CudaDevice) {
    let x = random::<B, 2>([TOKENS, D_MODEL], device) * 0.1;
    let w = random::<B, 2>([VOCABULARY, D_MODEL], device) * 0.1;
    let targets = ints([TOKENS], VOCABULARY, device);
    let weights = random::<B, 1>([TOKENS], device).abs();
    let flops = 2.0 * (TOKENS * D_MODEL * VOCABULARY) as f64;
    for (name, factor, want) in [("cross-entropy", 1.0, false), ("cross-entropy with gradients", 3.0, true)] {
        let want = Tracked { x: want, weight: want };
        bench.time(name, Work::Bf16(factor * flops), || {
            let (x, w, targets) = (raw(&x), raw(&w), targets.clone().into_primitive());
            drop(B::lm_linear_cross_entropy_fwd(x, w, targets, raw(&weights), 1e-4, want));
        });
    }
    bench.time("token_logprobs", Work::Bf16(flops), || drop(token_logprobs(x.clone(), w.clone(), targets.clone())));
}

fn optimizer(bench: &Bench, device: &CudaDevice) {
    let n = 1usize << 28;
    let grad = random::<Cuda, 1>([n], device);
    bench.time("sum_squares 1 GiB f32", Work::Bytes(n as f64 * F32), || drop(sum_squares(grad.clone())));
    let half = random::<B, 1>([n], device);
    bench.time("sum_squares 0.5 GiB bf16", Work::Bytes(n as f64 * BF16), || drop(sum_squares(half.clone())));
    let mut parts = Some(sum_squares_parts::<B>(300, device));
    bench.time("sum_squares_into 0.5 GiB bf16", Work::Bytes(n as f64 * BF16), || {
        parts = parts.take().map(|parts| sum_squares_into(parts, 7, Leaf::Vector(half.clone())));
    });
    let parts = sum_squares_parts::<B>(300, device);
    bench.time("sum_parts and clip_scale of 300", Work::Bytes((300 * 1024) as f64 * F32), || {
        drop(clip_scale(sum_parts(parts.clone()), 8192.0, 1.0));
    });
    let full = || {
        let [m, v] = [0, 1].map(|_| Leaf::Vector(random::<Cuda, 1>([n], device).abs()));
        Moments::Full { m, v }
    };
    adamw(bench, "adamw 268M f32", 28.0, random::<Cuda, 1>([n], device), grad.clone(), Master::Nearest, full);
    let packed = || Moments::Packed(PackedMoments::zeros(n, device));
    let param = random::<Cuda, 1>([n], device);
    adamw(bench, "adamw 268M f32, packed moments", 16.0, param, grad, Master::Nearest, packed);
    // Moments of f32 numbers beside bf16 parameters.
    let full = || {
        let [m, v] = [0, 1].map(|_| Leaf::Vector(Tensor::zeros([n], (device, DType::F32))));
        Moments::Full { m, v }
    };
    let packed = || Moments::Packed(PackedMoments::zeros(n, device));
    let kept = || Master::zero_remainder(n, device);
    adamw(bench, "adamw 268M bf16 + remainder", 26.0, half.clone(), half.clone(), kept(), full);
    adamw(bench, "adamw 268M bf16 + remainder, packed moments", 14.0, half.clone(), half.clone(), kept(), packed);
    adamw(bench, "adamw 268M bf16 stochastic, packed moments", 10.0, half.clone(), half, Master::Stochastic, packed);
}

/// Times a step that moves so many bytes for each element.
fn adamw<L: LmBackend<Device = CudaDevice>>(
    bench: &Bench,
    name: &str,
    bytes: f64,
    param: Tensor<L, 1>,
    grad: Tensor<L, 1>,
    master: Master<L>,
    moments: impl FnOnce() -> Moments<L>,
) {
    if !bench.wants(name) {
        return;
    }
    let mut hyper = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1, seed: 1 };
    let n = param.dims()[0] as f64;
    let (grad, scale) = (Leaf::Vector(grad), Tensor::<L, 1>::from_floats([0.5], &param.device()).cast(FloatDType::F32));
    let mut state = Some((Leaf::Vector(param), master, moments()));
    bench.time(name, Work::Bytes(bytes * n), || {
        hyper.step += 1;
        state = state
            .take()
            .map(|(param, master, moments)| adamw_step(param, grad.clone(), master, moments, scale.clone(), &hyper));
    });
}
