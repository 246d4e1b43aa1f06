//! Rotary embedding on CUDA, in place: a thread per row, vector of half a head and a few of the rotated heads.
#![expect(unsafe_code, reason = "kernels without bounds checks, whose callers' lengths are checked here")]

use burn::tensor::TensorMetadata;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{THREADS, check_indices, check_lengths, dense, lanes, one_thread_each, owned, rows};
use crate::cuda::peaks::{gather, largest_size, wanted, words};
use crate::cuda::{Buffer, Peaks, Runtime};
use crate::{HeadLayout, Rotation};

/// Most heads of a thread: all of them are loaded before any is stored, so that this many pairs of loads are in flight, and the
/// tables are read once for all of them.
const MAX_HEADS: usize = 8;

/// `half` and `width` are the vectors of half a head and of a row; `sign` is −1 for the backward pass. Of the `groups` of heads the
/// first `turned` are rotated; where peaks are gathered, the v heads follow, which are only looked at.
#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]
fn rotate_kernel<F: Float, G: Float, N: Size>(
    qkv: &mut Array<Vector<F, N>>,
    cos: &Array<Vector<G, N>>,
    sin: &Array<Vector<G, N>>,
    words: &Array<Atomic<u32>>,
    sign: f32,
    n_threads: u32,
    #[comptime] per: usize,
    #[comptime] groups: usize,
    #[comptime] turned: usize,
    #[comptime] gathered: bool,
    #[comptime] half: usize,
    #[comptime] width: usize,
    #[define(F)] _qkv_type: StorageType,
    #[define(G)] _table_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    let mut size = 0.0f32;
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
        if group < turned {
            let c = Vector::<f32, N>::cast_from(cos[row * half + column]);
            let s = Vector::<f32, N>::cast_from(sin[row * half + column]) * Vector::new(sign);
            #[unroll]
            for head in 0..per {
                let low = Vector::<f32, N>::cast_from(lo[head]);
                let high = Vector::<f32, N>::cast_from(hi[head]);
                lo[head] = Vector::cast_from(low * c - high * s);
                hi[head] = Vector::cast_from(high * c + low * s);
                qkv[first + comptime!(2 * half * head)] = lo[head];
                qkv[first + comptime!(2 * half * head + half)] = hi[head];
            }
        }
        if comptime!(gathered) {
            #[unroll]
            for head in 0..per {
                size = max(size, max(largest_size::<F, N>(lo[head]), largest_size::<F, N>(hi[head])));
            }
        }
    }
    if comptime!(gathered) {
        gather(size, words, THREADS);
    }
}

/// The largest divisor of all numbers of heads up to [`MAX_HEADS`].
fn heads_per_thread(numbers: [usize; 2]) -> usize {
    (1..=MAX_HEADS).rev().find(|n| numbers.iter().all(|heads| heads.is_multiple_of(*n))).unwrap_or(1)
}

/// Turns the q and k heads of every row; where the rotation is that of the backward pass, with the peaks of the rows in the slot.
pub(crate) fn rotate(
    qkv: Buffer,
    cos: Buffer,
    sin: Buffer,
    heads: HeadLayout,
    rotation: Rotation,
    peaks: Option<&Peaks>,
) -> Buffer {
    let (qkv, cos, sin) = (owned(qkv), dense(cos), dense(sin));
    check_indices("rope_qkv", &[&qkv]);
    let (m, half) = (rows(&qkv.shape()).0, heads.d_head / 2);
    check_lengths("rope_qkv", &[(&qkv, m * heads.width()), (&cos, m * half), (&sin, m * half)]);
    if m * half > 0 {
        let lanes = lanes(half, &[&qkv, &cos, &sin]);
        let rotated = heads.n_heads + heads.n_kv_heads;
        let (sign, slot) = match rotation {
            Rotation::Forward => (1.0, None),
            Rotation::Backward => (-1.0, wanted(peaks, &qkv)),
        };
        let looked_at = if slot.is_some() { heads.n_kv_heads } else { 0 };
        let per = heads_per_thread([rotated, looked_at]);
        let groups = (rotated + looked_at) / per;
        let n_threads = m * half / lanes * groups;
        let (count, dim) = one_thread_each(n_threads);
        let (dtype, table) = (qkv.dtype, cos.dtype);
        let seen = words(slot, &qkv);
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
                seen.clone().into_array_arg(),
                sign,
                n_threads as u32,
                per,
                groups,
                rotated / per,
                slot.is_some(),
                half / lanes,
                heads.width() / lanes,
                dtype.into(),
                table.into(),
            );
        }
        if let Some(slot) = slot {
            slot.leave(qkv.clone(), seen);
        }
    }
    qkv
}
