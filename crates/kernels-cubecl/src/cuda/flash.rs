//! Launching the matrix-unit attention kernels, which check no index.
#![expect(unsafe_code, reason = "kernels without bounds checks, whose callers' shapes are checked here")]

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::prelude::*;

use super::launch::empty;
use super::{Buffer, Runtime};
use crate::ops::attention::cuda::{Call, flash_dkv_kernel, flash_dq_kernel, flash_kernel};

/// Threads of a cube: four planes.
fn cube_dim() -> CubeDim {
    CubeDim::new_2d(32, 4)
}

/// Panics when a buffer is not as long as the shapes of the call ask for.
fn check(call: &Call, buffers: &[(&Buffer, usize)]) {
    let (rows, heads) = (call.b * call.t, call.heads);
    let fixed = [(&call.start, rows), (&call.end, rows), (&call.sinks, if call.sunk { heads.n_heads } else { 1 })];
    for (buffer, want) in fixed.iter().chain(buffers) {
        let got = buffer.shape().num_elements();
        assert!(got == *want && buffer.is_contiguous(), "attention: a buffer needs {want} elements, got {got}");
    }
}

/// `(out, lse)` of fused rows; a cube does so many queries.
pub(crate) fn forward(call: &Call, qkv: Buffer, queries: usize) -> (Buffer, Buffer) {
    let (heads, rows) = (call.heads, call.b * call.t);
    let out = empty(&qkv, Shape::new([call.b, call.t, heads.q_width()]), DType::BF16);
    let lse = empty(&qkv, Shape::new([call.b, heads.n_heads, call.t]), DType::F32);
    check(call, &[(&qkv, rows * heads.width())]);
    // SAFETY: the buffers are as long as the shapes ask for; rows behind the last are neither read nor written, and keys are
    // read up to the end of the spans, which the kernel cuts to the rows that exist.
    unsafe {
        flash_kernel::launch_unchecked::<Runtime>(
            &qkv.client.clone(),
            call.grid(queries, heads.n_heads),
            cube_dim(),
            qkv.into_array_arg(),
            call.start.clone().into_array_arg(),
            call.end.clone().into_array_arg(),
            call.sinks.clone().into_array_arg(),
            out.clone().into_array_arg(),
            lse.clone().into_array_arg(),
            call.t as u32,
            call.t.div_ceil(queries) as u32,
            call.scale,
            heads.n_heads,
            heads.n_kv_heads,
            heads.d_head,
            call.sunk,
        );
    }
    (out, lse)
}

/// Gradient of fused rows; a cube does blocks of so many rows.
pub(crate) fn backward(call: &Call, qkv: Buffer, dout: Buffer, lse: Buffer, delta: Buffer, block: usize) -> Buffer {
    let (heads, rows) = (call.heads, call.b * call.t);
    let dqkv = empty(&qkv, qkv.shape(), DType::BF16);
    let per_head = rows * heads.n_heads;
    check(call, &[(&qkv, rows * heads.width()), (&dout, rows * heads.q_width()), (&lse, per_head), (&delta, per_head)]);
    let client = qkv.client.clone();
    let arg = |buffer: &Buffer| buffer.clone().into_array_arg();
    // SAFETY: as in `forward`; each row of the gradient is written by one cube.
    unsafe {
        flash_dkv_kernel::launch_unchecked::<Runtime>(
            &client,
            call.grid(block, heads.n_kv_heads),
            cube_dim(),
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
        );
        flash_dq_kernel::launch_unchecked::<Runtime>(
            &client,
            call.grid(block, heads.n_heads),
            cube_dim(),
            arg(&qkv),
            arg(&dout),
            arg(&lse),
            arg(&delta),
            arg(&call.start),
            arg(&call.end),
            arg(&dqkv),
            call.t as u32,
            call.t.div_ceil(block) as u32,
            call.scale,
            heads.n_heads,
            heads.n_kv_heads,
            heads.d_head,
        );
    }
    dqkv
}
