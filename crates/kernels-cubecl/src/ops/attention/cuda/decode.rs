//! Attention of one new query per row over a cache, in CUDA C++: heads of 64 and 128, bf16 and f32, any spans, with sinks.

use burn::tensor::{DType, Shape, TensorMetadata};

use super::{CHUNK_BYTES, Call, Operands};
use crate::cuda::launch::empty;
use crate::cuda::{Argument, Buffer, Grid, RawKernel};

/// Threads of a block of the first kernel.
const THREADS: usize = 128;
/// Fewest keys for which a part is made.
const MIN_KEYS: usize = 64;
/// Blocks that fill the multiprocessors of the largest cards a few times.
const BLOCKS: usize = 528;

/// Definitions for heads of one size, by type and number of query heads of a block.
macro_rules! defines {
    ($d:literal) => {
        [[&[$d, "G=1", "BF16"], &[$d, "G=2", "BF16"], &[$d, "G=4", "BF16"]], [&[$d, "G=1"], &[$d, "G=2"], &[$d, "G=4"]]]
    };
}

/// Definitions of all kernels, by size of the head, type, and number of query heads of a block.
const DEFINES: [[[&[&str]; 3]; 2]; 2] = [defines!("D=64"), defines!("D=128")];
const SOURCE: &str = include_str!("decode.cu");

/// Whether the kernels are for such a call: 16 bytes at a time of queries, keys and values.
pub(super) fn applies(call: &Call, x: &Operands) -> bool {
    let chunk = CHUNK_BYTES / x.q.dtype.size() as u64;
    let aligned = |buffer: &Buffer| buffer.handle.offset_start.unwrap_or(0).is_multiple_of(CHUNK_BYTES);
    let even = [x.kv_stride, x.kv_batch].iter().all(|n| (*n as u64).is_multiple_of(chunk));
    call.t == 1
        && matches!(call.heads.d_head, 64 | 128)
        && matches!(x.q.dtype, DType::BF16 | DType::F32)
        && even
        && [&x.q, &x.k, &x.v].into_iter().all(aligned)
}

/// One query per row; no log-sum-exp, because nobody goes back from here.
pub(super) fn forward(call: &Call, x: &Operands) -> Buffer {
    let (heads, b) = (call.heads, call.b);
    let (d_head, group) = (heads.d_head, heads.group());
    let log_g = (group.trailing_zeros() as usize).min(2);
    let defines = DEFINES[usize::from(d_head == 128)][usize::from(x.q.dtype == DType::F32)][log_g];
    let head_blocks = heads.n_heads >> log_g;
    let n_parts = (BLOCKS / (b * head_blocks)).clamp(1, x.n_keys.div_ceil(MIN_KEYS).max(1));
    let out = empty(&x.q, Shape::new([b, 1, heads.q_width()]), x.q.dtype);
    let records = if n_parts == 1 { 1 } else { b * heads.n_heads * n_parts * (d_head + 2) };
    let parts = empty(&x.q, Shape::new([records]), DType::F32);
    check(call, x);
    let kernel = |name| RawKernel { name, source: SOURCE, defines, shared_bytes: 0, one_architecture: false };
    let int = |n: usize| Argument::I32(n as i32);
    let sunk = Argument::I32(call.sunk.into());
    let buffers = [&x.q, &x.k, &x.v, &call.start, &call.end, &call.sinks, &out, &parts].map(Argument::Buffer);
    let strides = [int(x.n_keys), int(x.kv_stride), int(x.kv_batch), Argument::F32(call.scale)];
    let sizes = [int(heads.n_heads), int(group), int(n_parts), sunk];
    let grid = Grid { blocks: [head_blocks * n_parts, b, 1], threads: THREADS };
    let arguments = [buffers.as_slice(), &strides, &sizes].concat();
    kernel("attention_decode").launch("attention_cached", grid, &arguments);
    if n_parts > 1 {
        let buffers = [&parts, &call.sinks, &out].map(Argument::Buffer);
        let arguments = [buffers.as_slice(), &[int(heads.n_heads), int(n_parts), sunk]].concat();
        let grid = Grid { blocks: [heads.n_heads, b, 1], threads: d_head };
        kernel("attention_decode_parts").launch("attention_cached", grid, &arguments);
    }
    out
}

/// Panics when a buffer is not as long as the shapes of the call ask for: the kernels check no index.
fn check(call: &Call, x: &Operands) {
    let heads = call.heads;
    let sinks = if call.sunk { heads.n_heads } else { 1 };
    let wants = [(&call.start, call.b), (&call.end, call.b), (&call.sinks, sinks), (&x.q, call.b * heads.q_width())];
    for (buffer, want) in wants {
        let got = buffer.shape().num_elements();
        assert!(got >= want, "attention over a cache: a buffer needs {want} elements, got {got}");
    }
    for (name, buffer) in [("keys", &x.k), ("values", &x.v)] {
        let got = buffer.shape();
        let fits = got[0] == call.b && got[1] == x.n_keys && got[2] == heads.kv_width();
        assert!(fits, "attention over a cache: {name} of {:?} for {} rows of {} keys", got, call.b, x.n_keys);
    }
}
