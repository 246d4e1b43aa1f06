//! Rotary embedding on CUDA, in place: a thread per row and vector of half a head walks over the rotated heads.

use burn::tensor::TensorMetadata;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, dense, lanes, one_thread_each, owned, rows};
use crate::cuda::{Buffer, Runtime};
use crate::{HeadLayout, Rotation};

/// `half` and `width` are the vectors of half a head and of a row; `sign` is −1 for the backward pass.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]
fn rotate_kernel<F: Float, G: Float, N: Size>(
    qkv: &mut Array<Vector<F, N>>,
    cos: &Array<Vector<G, N>>,
    sin: &Array<Vector<G, N>>,
    sign: f32,
    #[comptime] rotated: usize,
    #[comptime] half: usize,
    #[comptime] width: usize,
    #[define(F)] _qkv_type: StorageType,
    #[define(G)] _table_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < cos.len() {
        let row = i / half;
        let column = i % half;
        let c = Vector::<f32, N>::cast_from(cos[i]);
        let s = Vector::<f32, N>::cast_from(sin[i]) * Vector::new(sign);
        for head in 0..rotated {
            let at = row * width + head * comptime!(2 * half) + column;
            let lo = Vector::<f32, N>::cast_from(qkv[at]);
            let hi = Vector::<f32, N>::cast_from(qkv[at + half]);
            qkv[at] = Vector::cast_from(lo * c - hi * s);
            qkv[at + half] = Vector::cast_from(hi * c + lo * s);
        }
    }
}

/// Turns the q and k heads of every row.
pub(crate) fn rotate(qkv: Buffer, cos: Buffer, sin: Buffer, heads: HeadLayout, rotation: Rotation) -> Buffer {
    let (qkv, cos, sin) = (owned(qkv), dense(cos), dense(sin));
    check_indices("rope_qkv", &[&qkv]);
    let (m, half) = (rows(&qkv.shape()).0, heads.d_head / 2);
    if m * half > 0 {
        let lanes = lanes(half, &[&qkv, &cos, &sin]);
        let (count, dim) = one_thread_each(m * half / lanes);
        let (dtype, table) = (qkv.dtype, cos.dtype);
        let sign = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Backward => -1.0,
        };
        rotate_kernel::launch::<Runtime>(
            &qkv.client.clone(),
            count,
            dim,
            lanes,
            qkv.clone().into_array_arg(),
            cos.into_array_arg(),
            sin.into_array_arg(),
            sign,
            heads.n_heads + heads.n_kv_heads,
            half / lanes,
            heads.width() / lanes,
            dtype.into(),
            table.into(),
        );
    }
    qkv
}
