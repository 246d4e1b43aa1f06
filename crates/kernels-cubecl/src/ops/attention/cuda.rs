//! Attention on CUDA: kernels for the matrix units for bf16 with head sizes 64 and 128, a general kernel for everything else.
//!
//! On Hopper the former are CUDA C++, because only `wgmma` and the bulk copy engine keep its matrix units busy; elsewhere they
//! are cubecl's. One new query per row over a cache has a kernel of its own.

mod backward;
mod decode;
mod flash;
mod flash_backward;
mod forward;
mod hopper;
mod mma;
mod tile;

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::prelude::*;

pub(crate) use flash::flash_kernel;
pub(crate) use flash_backward::{flash_dkv_kernel, flash_dq_kernel};

use crate::HeadLayout;
use crate::cuda::launch::{THREADS, check_indices, cubes, dense, dense_as, empty};
use crate::cuda::peaks::wanted;
use crate::cuda::{Buffer, Peaks, Runtime, flash as launch_flash};
use tile::{PLANES, TILE, per_lane};

/// Largest head of the general kernels: their tiles must fit into shared memory.
const MAX_D_HEAD: usize = 256;
/// Bytes to which the first element of a buffer of the matrix-unit kernels is aligned.
const CHUNK_BYTES: u64 = 16;

/// What all kernels of a call share.
pub(crate) struct Call {
    /// `[b, t]`, dense.
    pub(crate) start: Buffer,
    /// `[b, t]`, dense.
    pub(crate) end: Buffer,
    /// `[n]` in f32, where there are sinks; some f32 buffer otherwise.
    pub(crate) sinks: Buffer,
    /// Whether there are sinks.
    pub(crate) sunk: bool,
    /// How the heads lie in a row.
    pub(crate) heads: HeadLayout,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Rows of the batch.
    pub(crate) b: usize,
    /// Queries per row.
    pub(crate) t: usize,
}

impl Call {
    fn new(start: Buffer, end: Buffer, sinks: Option<Buffer>, heads: HeadLayout, scale: f32) -> Self {
        let (shape, sunk) = (start.shape(), sinks.is_some());
        let h = heads.d_head;
        assert!(h <= MAX_D_HEAD, "attention: CUDA kernels take heads up to {MAX_D_HEAD}, got {h}; use --device cpu");
        let sinks =
            sinks.map_or_else(|| empty(&start, Shape::new([1]), DType::F32), |sinks| dense_as(sinks, DType::F32));
        Self { start: dense(start), end: dense(end), sinks, sunk, heads, scale, b: shape[0], t: shape[1] }
    }

    /// True where the matrix-unit kernels apply.
    fn flash(&self, buffers: &[&Buffer]) -> bool {
        let aligned = |buffer: &&Buffer| {
            buffer.dtype == DType::BF16 && buffer.handle.offset_start.unwrap_or(0).is_multiple_of(CHUNK_BYTES)
        };
        matches!(self.heads.d_head, 64 | 128) && buffers.iter().all(aligned)
    }

    /// A grid with so many rows per cube, for this many heads.
    pub(crate) fn grid(&self, rows_per_cube: usize, n_heads: usize) -> CubeCount {
        CubeCount::Static(self.t.div_ceil(rows_per_cube) as u32, n_heads as u32, self.b as u32)
    }
}

/// Where a call's queries, keys and values lie; everything in elements.
struct Operands {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    n_keys: usize,
    q_stride: usize,
    kv_stride: usize,
    kv_batch: usize,
    k_at: usize,
    v_at: usize,
}

fn general_forward(call: &Call, x: Operands) -> (Buffer, Buffer) {
    let (heads, dtype) = (call.heads, x.q.dtype);
    let out = empty(&x.q, Shape::new([call.b, call.t, heads.q_width()]), dtype);
    let lse = empty(&x.q, Shape::new([call.b, heads.n_heads, call.t]), DType::F32);
    forward::forward_kernel::launch::<Runtime>(
        &x.q.client.clone(),
        call.grid(TILE, heads.n_heads),
        forward::cube_dim(),
        x.q.into_array_arg(),
        x.k.into_array_arg(),
        x.v.into_array_arg(),
        call.start.clone().into_array_arg(),
        call.end.clone().into_array_arg(),
        call.sinks.clone().into_array_arg(),
        out.clone().into_array_arg(),
        lse.clone().into_array_arg(),
        call.t as u32,
        x.n_keys as u32,
        x.q_stride as u32,
        x.kv_stride as u32,
        x.kv_batch as u32,
        x.k_at as u32,
        x.v_at as u32,
        call.scale,
        heads.n_heads,
        heads.group(),
        heads.d_head,
        per_lane(heads.d_head),
        call.sunk,
        dtype.into(),
    );
    (out, lse)
}

/// `(out, lse)` of fused rows; the kernels of Hopper leave the peaks of `out` in the slot.
pub(crate) fn forward(
    qkv: Buffer,
    start: Buffer,
    end: Buffer,
    sinks: Option<Buffer>,
    heads: HeadLayout,
    scale: f32,
    peaks: Option<&Peaks>,
) -> (Buffer, Buffer) {
    let (qkv, call) = (dense(qkv), Call::new(start, end, sinks, heads, scale));
    check_indices("attention", &[&qkv]);
    if call.b * call.t == 0 {
        let out = empty(&qkv, Shape::new([call.b, call.t, heads.q_width()]), qkv.dtype);
        return (out, empty(&qkv, Shape::new([call.b, heads.n_heads, call.t]), DType::F32));
    }
    if call.flash(&[&qkv]) {
        return match hopper::applies(&qkv) {
            true => hopper::forward(&call, &qkv, wanted(peaks, &qkv)),
            false => launch_flash::forward(&call, qkv, flash::QUERIES),
        };
    }
    let width = heads.width();
    let (q, k, v) = (qkv.clone(), qkv.clone(), qkv);
    let (k_at, kv_batch) = (heads.q_width(), call.t * width);
    let v_at = k_at + heads.kv_width();
    general_forward(
        &call,
        Operands { q, k, v, n_keys: kv_batch / width, q_stride: width, kv_stride: width, kv_batch, k_at, v_at },
    )
}

/// Output of queries over a cache, whose rows may lie apart.
#[expect(clippy::too_many_arguments, reason = "queries, keys and values come apart")]
pub(crate) fn forward_cached(
    q: Buffer,
    k: Buffer,
    v: Buffer,
    start: Buffer,
    end: Buffer,
    sinks: Option<Buffer>,
    heads: HeadLayout,
    scale: f32,
) -> Buffer {
    let (q, call) = (dense(q), Call::new(start, end, sinks, heads, scale));
    let [k, v] = [k, v].map(|x| dense_as_view(x, q.dtype));
    check_indices("attention_cached", &[&q, &k, &v]);
    if call.b * call.t == 0 {
        return q;
    }
    let same = k.meta.strides() == v.meta.strides();
    let [k, v] = if same { [k, v] } else { [k, v].map(dense) };
    let (n_keys, strides) = (k.shape()[1], k.meta.strides().to_vec());
    let operands = Operands {
        q,
        n_keys,
        q_stride: heads.q_width(),
        kv_stride: strides[1],
        kv_batch: strides[0],
        k_at: 0,
        v_at: 0,
        k,
        v,
    };
    if decode::applies(&call, &operands) {
        return decode::forward(&call, &operands);
    }
    general_forward(&call, operands).0
}

/// The tensor itself where its last axis has no gaps and its element type is right.
fn dense_as_view(x: Buffer, dtype: DType) -> Buffer {
    let strides = x.meta.strides();
    if x.dtype == dtype && strides[strides.len() - 1] == 1 { x } else { dense_as(x, dtype) }
}

/// `(dqkv, dsinks)`.
#[expect(clippy::too_many_arguments, reason = "everything the forward pass saved")]
pub(crate) fn backward(
    dout: Buffer,
    qkv: Buffer,
    out: Buffer,
    lse: Buffer,
    start: Buffer,
    end: Buffer,
    sinks: Option<Buffer>,
    heads: HeadLayout,
    scale: f32,
) -> (Buffer, Option<Buffer>) {
    let sinks_dtype = sinks.as_ref().map(|sinks| sinks.dtype);
    let call = Call::new(start, end, sinks, heads, scale);
    let [qkv, out, lse] = [qkv, out, lse].map(dense);
    let (dout, out) = (dense_as(dout, qkv.dtype), dense_as(out, qkv.dtype));
    check_indices("attention backward", &[&qkv]);
    if call.b * call.t == 0 {
        let dsinks = sinks_dtype.map(|dtype| crate::cuda::gemm::zeros(&qkv, Shape::new([heads.n_heads]), dtype));
        return (empty(&qkv, qkv.shape(), qkv.dtype), dsinks);
    }
    if hopper::applies(&qkv) && call.flash(&[&qkv, &dout, &out]) {
        let (dqkv, delta) = hopper::backward(&call, &qkv, &dout, &out, &lse);
        return (dqkv, sinks_dtype.map(|dtype| sink_gradient(&call, &lse, &delta, dtype)));
    }
    let delta = delta(&call, &dout, out);
    let dsinks = sinks_dtype.map(|dtype| sink_gradient(&call, &lse, &delta, dtype));
    let dqkv = match call.flash(&[&qkv, &dout]) {
        true => launch_flash::backward(&call, qkv, dout, lse, delta, flash_backward::BLOCK),
        false => general_backward(&call, qkv, dout, lse, delta),
    };
    (dqkv, dsinks)
}

fn delta(call: &Call, dout: &Buffer, out: Buffer) -> Buffer {
    let (heads, dtype) = (call.heads, out.dtype);
    let n_items = call.b * call.t * heads.n_heads;
    let delta = empty(&out, Shape::new([call.b, heads.n_heads, call.t]), DType::F32);
    backward::delta_kernel::launch::<Runtime>(
        &out.client.clone(),
        cubes(n_items.div_ceil(PLANES)),
        forward::cube_dim(),
        dout.clone().into_array_arg(),
        out.into_array_arg(),
        delta.clone().into_array_arg(),
        call.t as u32,
        n_items as u32,
        heads.n_heads,
        heads.d_head,
        PLANES,
        dtype.into(),
    );
    delta
}

fn sink_gradient(call: &Call, lse: &Buffer, delta: &Buffer, dtype: DType) -> Buffer {
    let n_heads = call.heads.n_heads;
    let dsinks = empty(lse, Shape::new([n_heads]), dtype);
    backward::sinks_kernel::launch::<Runtime>(
        &lse.client.clone(),
        cubes(n_heads),
        CubeDim::new_1d(THREADS as u32),
        call.sinks.clone().into_array_arg(),
        lse.clone().into_array_arg(),
        delta.clone().into_array_arg(),
        dsinks.clone().into_array_arg(),
        call.t as u32,
        (call.b * call.t) as u32,
        n_heads,
        THREADS,
        dtype.into(),
    );
    dsinks
}

fn general_backward(call: &Call, qkv: Buffer, dout: Buffer, lse: Buffer, delta: Buffer) -> Buffer {
    let (heads, dtype) = (call.heads, qkv.dtype);
    let dqkv = empty(&qkv, qkv.shape(), dtype);
    let client = qkv.client.clone();
    let arg = |buffer: &Buffer| buffer.clone().into_array_arg();
    backward::dkv_kernel::launch::<Runtime>(
        &client,
        call.grid(TILE, heads.n_kv_heads),
        forward::cube_dim(),
        arg(&qkv),
        arg(&dout),
        arg(&lse),
        arg(&delta),
        arg(&call.start),
        arg(&call.end),
        arg(&dqkv),
        call.t as u32,
        call.scale,
        heads.n_heads,
        heads.n_kv_heads,
        heads.d_head,
        per_lane(heads.d_head),
        dtype.into(),
    );
    backward::dq_kernel::launch::<Runtime>(
        &client,
        call.grid(TILE, heads.n_heads),
        forward::cube_dim(),
        arg(&qkv),
        arg(&dout),
        arg(&lse),
        arg(&delta),
        arg(&call.start),
        arg(&call.end),
        arg(&dqkv),
        call.t as u32,
        call.scale,
        heads.n_heads,
        heads.n_kv_heads,
        heads.d_head,
        per_lane(heads.d_head),
        dtype.into(),
    );
    dqkv
}
