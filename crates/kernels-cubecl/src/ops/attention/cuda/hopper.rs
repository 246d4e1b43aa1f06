//! Attention on Hopper: bf16, head sizes 64 and 128, any length, spans and sinks; three kernels in CUDA C++.
//!
//! The backward pass makes the scores twice, for queries and for keys, so that every sum has a fixed order and no workspace is
//! needed. The kernel of the queries also makes `delta`, which the kernel of the keys reads.

use burn::tensor::{DType, Shape, TensorMetadata};
use half::bf16;

use super::Call;
use crate::cuda::launch::empty;
use crate::cuda::peaks::words;
use crate::cuda::{Argument, Buffer, Grid, Peaks, RawKernel, capability};

/// Compute capability of the only architecture that has these instructions.
const HOPPER: i32 = 90;
/// Rows of a block's tile: queries, or keys in the kernel of the keys.
const TILE: usize = 128;
/// Two warpgroups that compute and one that loads.
const THREADS: usize = 3 * 128;

/// A kernel for both head sizes.
struct Kernel {
    name: &'static str,
    source: &'static str,
    /// Rows of one head in shared memory, for heads of 64 and of 128.
    rows: [u32; 2],
    /// Bytes behind them for barriers, spans, and numbers of queries.
    record_bytes: u32,
}

const FORWARD: Kernel = Kernel {
    name: "attention_forward",
    source: concat!(include_str!("../../../cuda/hopper.cuh"), include_str!("hopper.cuh"), include_str!("forward.cu")),
    rows: [768, 768],
    record_bytes: 3072,
};
const QUERIES: Kernel = Kernel {
    name: "attention_queries",
    source: concat!(include_str!("../../../cuda/hopper.cuh"), include_str!("hopper.cuh"), include_str!("queries.cu")),
    rows: [1152, 896],
    record_bytes: 2560,
};
const KEYS: Kernel = Kernel {
    name: "attention_keys",
    source: concat!(include_str!("../../../cuda/hopper.cuh"), include_str!("hopper.cuh"), include_str!("keys.cu")),
    rows: [768, 640],
    record_bytes: 5120,
};

impl Kernel {
    /// Enqueues the kernel for the heads of the call.
    fn launch(self, op: &'static str, call: &Call, grid: Grid, arguments: &[Argument<'_>]) {
        let Self { name, source, rows: [narrow, wide], record_bytes } = self;
        let (defines, rows): (&[&str], u32) =
            if call.heads.d_head == 64 { (&["D=64"], narrow) } else { (&["D=128"], wide) };
        let shared_bytes = rows * (call.heads.d_head * size_of::<bf16>()) as u32 + record_bytes;
        RawKernel { name, source, defines, shared_bytes, one_architecture: true }.launch(op, grid, arguments);
    }
}

/// True where the device of the tensor can run these kernels.
pub(super) fn applies(x: &Buffer) -> bool {
    capability(&x.device) == Some(HOPPER)
}

/// The arguments that all kernels end with.
fn sizes(call: &Call) -> [Argument<'static>; 5] {
    let int = |x: usize| Argument::I32(x as i32);
    let heads = call.heads;
    [int(call.b), int(call.t), int(heads.n_heads), int(heads.n_kv_heads), Argument::F32(call.scale)]
}

/// Blocks that stay and take tiles of queries until there are none.
fn staying(call: &Call, x: &Buffer) -> Grid {
    let tiles = call.b * call.heads.n_heads * call.t.div_ceil(TILE);
    let processors = x.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
    Grid { blocks: [tiles.min(processors), 1, 1], threads: THREADS }
}

/// Panics when a buffer is not as long as the shapes of the call ask for: the kernels check no index.
fn check(call: &Call, buffers: &[(&Buffer, usize)]) {
    let rows = call.b * call.t;
    let sinks = if call.sunk { call.heads.n_heads } else { 1 };
    for (buffer, want) in [(&call.start, rows), (&call.end, rows), (&call.sinks, sinks)].iter().chain(buffers) {
        let got = buffer.shape().num_elements();
        assert!(got == *want && buffer.is_contiguous(), "attention: a buffer needs {want} elements, got {got}");
    }
}

/// `(out, lse)` of fused rows, with the peaks of `out` in the slot.
pub(super) fn forward(call: &Call, qkv: &Buffer, peaks: Option<&Peaks>) -> (Buffer, Buffer) {
    let (heads, b, t) = (call.heads, call.b, call.t);
    let out = empty(qkv, Shape::new([b, t, heads.q_width()]), DType::BF16);
    let lse = empty(qkv, Shape::new([b, heads.n_heads, t]), DType::F32);
    check(call, &[(qkv, b * t * heads.width())]);
    let gathered = words(peaks, qkv);
    let n_words = if peaks.is_some() { gathered.shape().num_elements() } else { 0 };
    let own = [
        Argument::Map(qkv, [b, t, heads.width()]),
        Argument::Map(&out, [b, t, heads.q_width()]),
        Argument::Buffer(&call.start),
        Argument::Buffer(&call.end),
        Argument::Buffer(&call.sinks),
        Argument::Buffer(&lse),
    ];
    let rest = [Argument::I32(call.sunk.into()), Argument::Buffer(&gathered), Argument::I32(n_words as i32)];
    let arguments = [own.as_slice(), &sizes(call), &rest].concat();
    FORWARD.launch("attention", call, staying(call, qkv), &arguments);
    if let Some(slot) = peaks {
        slot.leave(out.clone(), gathered);
    }
    (out, lse)
}

/// `(dqkv, delta)` of fused rows, where `delta` is `[b, n, t]`.
pub(super) fn backward(call: &Call, qkv: &Buffer, dout: &Buffer, out: &Buffer, lse: &Buffer) -> (Buffer, Buffer) {
    let (heads, b, t) = (call.heads, call.b, call.t);
    let dqkv = empty(qkv, qkv.shape(), DType::BF16);
    let delta = empty(qkv, Shape::new([b, heads.n_heads, t]), DType::F32);
    let (rows, width) = (b * t, heads.q_width());
    check(call, &[(qkv, rows * heads.width()), (dout, rows * width), (out, rows * width), (lse, rows * heads.n_heads)]);
    let all = Argument::Map(qkv, [b, t, heads.width()]);
    let gradient = Argument::Map(&dqkv, [b, t, heads.width()]);
    let upstream = Argument::Map(dout, [b, t, width]);
    let numbers = [&call.start, &call.end, lse, &delta].map(Argument::Buffer);
    let result = Argument::Map(out, [b, t, width]);
    let arguments = [[all, upstream, result, gradient].as_slice(), &numbers, &sizes(call)].concat();
    QUERIES.launch("attention backward", call, staying(call, qkv), &arguments);
    let arguments = [[all, upstream, gradient].as_slice(), &numbers, &sizes(call)].concat();
    let grid = Grid { blocks: [b * heads.n_kv_heads * t.div_ceil(TILE), 1, 1], threads: THREADS };
    KEYS.launch("attention backward", call, grid, &arguments);
    (dqkv, delta)
}
