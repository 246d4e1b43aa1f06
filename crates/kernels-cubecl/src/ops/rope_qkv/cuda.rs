//! Rotary embedding on CUDA, in place: a thread per row, vector of half a head and a few of the rotated heads.
#![expect(unsafe_code, reason = "kernels without bounds checks, whose callers' lengths are checked here")]

use burn::tensor::TensorMetadata;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, check_lengths, dense, lanes, one_thread_each, owned, rows};
use crate::cuda::{Buffer, Runtime};
use crate::{HeadLayout, Rotation};

/// Most heads of a thread: all of them are loaded before any is stored, so that this many pairs of loads are in flight.
const MAX_HEADS: usize = 4;

/// `half` and `width` are the vectors of half a head and of a row; `sign` is −1 for the backward pass.
#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]
fn rotate_kernel<F: Float, G: Float, N: Size>(
    qkv: &mut Array<Vector<F, N>>,
    cos: &Array<Vector<G, N>>,
    sin: &Array<Vector<G, N>>,
    sign: f32,
    n_threads: u32,
    #[comptime] per: usize,
    #[comptime] groups: usize,
    #[comptime] half: usize,
    #[comptime] width: usize,
    #[define(F)] _qkv_type: StorageType,
    #[define(G)] _table_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < n_threads as usize {
        let column = i % half;
        let group = i / half % groups;
        let row = i / comptime!(half * groups);
        let first = row * width + group * comptime!(2 * half * per) + column;
        let mut lo = Array::<Vector<F, N>>::new(per);
        let mut hi = Array::<Vector<F, N>>::new(per);
        #[unroll]
        for head in 0..per {
            lo[head] = qkv[first + comptime!(2 * half * head)];
            hi[head] = qkv[first + comptime!(2 * half * head + half)];
        }
        let c = Vector::<f32, N>::cast_from(cos[row * half + column]);
        let s = Vector::<f32, N>::cast_from(sin[row * half + column]) * Vector::new(sign);
        #[unroll]
        for head in 0..per {
            let low = Vector::<f32, N>::cast_from(lo[head]);
            let high = Vector::<f32, N>::cast_from(hi[head]);
            qkv[first + comptime!(2 * half * head)] = Vector::cast_from(low * c - high * s);
            qkv[first + comptime!(2 * half * head + half)] = Vector::cast_from(high * c + low * s);
        }
    }
}

/// The largest divisor up to [`MAX_HEADS`].
fn heads_per_thread(rotated: usize) -> usize {
    (1..=MAX_HEADS).rev().find(|n| rotated.is_multiple_of(*n)).unwrap_or(1)
}

/// Turns the q and k heads of every row.
pub(crate) fn rotate(qkv: Buffer, cos: Buffer, sin: Buffer, heads: HeadLayout, rotation: Rotation) -> Buffer {
    let (qkv, cos, sin) = (owned(qkv), dense(cos), dense(sin));
    check_indices("rope_qkv", &[&qkv]);
    let (m, half) = (rows(&qkv.shape()).0, heads.d_head / 2);
    check_lengths("rope_qkv", &[(&qkv, m * heads.width()), (&cos, m * half), (&sin, m * half)]);
    if m * half > 0 {
        let lanes = lanes(half, &[&qkv, &cos, &sin]);
        let rotated = heads.n_heads + heads.n_kv_heads;
        let per = heads_per_thread(rotated);
        let n_threads = m * half / lanes * (rotated / per);
        let (count, dim) = one_thread_each(n_threads);
        let (dtype, table) = (qkv.dtype, cos.dtype);
        let sign = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Backward => -1.0,
        };
        // SAFETY: a thread works on a row and a column below their numbers, and rows are as many as the lengths say.
        unsafe {
            rotate_kernel::launch_unchecked::<Runtime>(
                &qkv.client.clone(),
                count,
                dim,
                lanes,
                qkv.clone().into_array_arg(),
                cos.into_array_arg(),
                sin.into_array_arg(),
                sign,
                n_threads as u32,
                per,
                rotated / per,
                half / lanes,
                heads.width() / lanes,
                dtype.into(),
                table.into(),
            );
        }
    }
    qkv
}
