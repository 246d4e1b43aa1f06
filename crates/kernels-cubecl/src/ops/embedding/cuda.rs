//! Embedding on CUDA: rows are copied forward; backward a cube per table row looks for its id and adds in the order of the batch.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::{Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::gemm::zeros;
use crate::cuda::launch::{THREADS, check_indices, cubes, dense, dense_as, empty, lanes, one_thread_each, rows};
use crate::cuda::{Buffer, Runtime};

/// Ids that one thread looks at in a turn.
const PER_THREAD: usize = 4;
/// Planes of a cube.
const PLANES: usize = THREADS / 32;
/// Ids that one plane looks at in a turn.
const PER_PLANE: usize = 32 * PER_THREAD;

#[cube(launch)]
fn gather_kernel<F: Float, N: Size>(
    table: &Array<Vector<F, N>>,
    ids: &Array<i32>,
    y: &mut Array<Vector<F, N>>,
    #[comptime] vectors: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let id = ids[i / vectors] as u32;
        y[i] = table[id as usize * vectors + i % vectors];
    }
}

/// Row `CUBE_POS_X` of the gradient. Each plane looks through its part of the ids and says whether the row is in it; the
/// parts that have it are then walked through by all threads together, each of which owns `per` vectors of the row.
#[cube(launch)]
fn scatter_kernel<F: Float, G: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    ids: &Array<i32>,
    grad: &mut Array<Vector<G, N>>,
    n_ids: u32,
    vectors: u32,
    #[comptime] per: usize,
    #[define(F)] _dy_type: StorageType,
    #[define(G)] _grad_type: StorageType,
) {
    let wanted = CUBE_POS_X as i32;
    let mut sum = Array::<Vector<f32, N>>::new(per);
    #[unroll]
    for i in 0..per {
        sum[i] = Vector::new(0.0f32);
    }
    let mut found = SharedMemory::<u32>::new(comptime!(PLANES));
    let plane = UNIT_POS / 32u32;
    let mut first = 0u32;
    while first < n_ids {
        let mut hit = false;
        #[unroll]
        for i in 0..comptime!(PER_THREAD) {
            let at = first + plane * comptime!(PER_PLANE as u32) + comptime!((i * 32) as u32) + UNIT_POS_PLANE;
            if at < n_ids {
                hit = hit || ids[at as usize] == wanted;
            }
        }
        let any = plane_any(hit);
        if UNIT_POS_PLANE == 0u32 {
            found[plane as usize] = select(any, 1u32, 0u32);
        }
        sync_cube();
        for p in 0..comptime!(PLANES as u32) {
            if found[p as usize] == 1u32 {
                let begin = first + p * comptime!(PER_PLANE as u32);
                let end = min(begin + comptime!(PER_PLANE as u32), n_ids);
                let mut at = begin;
                while at < end {
                    if ids[at as usize] == wanted {
                        #[unroll]
                        for i in 0..per {
                            let column = UNIT_POS + comptime!((i * THREADS) as u32);
                            if column < vectors {
                                let row = Vector::<f32, N>::cast_from(dy[(at * vectors + column) as usize]);
                                sum[i] = sum[i] + row;
                            }
                        }
                    }
                    at += 1u32;
                }
            }
        }
        sync_cube();
        first += comptime!((PLANES * PER_PLANE) as u32);
    }
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * THREADS) as u32);
        if column < vectors {
            grad[(CUBE_POS_X * vectors + column) as usize] = Vector::cast_from(sum[i]);
        }
    }
}

/// Rows of the table by id, `[b, t, d]`.
pub(crate) fn forward(table: Buffer, ids: Buffer) -> Buffer {
    let (table, ids) = (dense(table), dense(ids));
    let (d, shape) = (rows(&table.shape()).1, ids.shape());
    let y = empty(&table, Shape::new([shape[0], shape[1], d]), table.dtype);
    check_indices("embedding", &[&table, &y]);
    let n = y.shape().num_elements();
    if n > 0 {
        let lanes = lanes(d, &[&table, &y]);
        let (count, dim) = one_thread_each(n / lanes);
        let (dtype, client) = (table.dtype, table.client.clone());
        let (table, ids, out) = (table.into_array_arg(), ids.into_array_arg(), y.clone().into_array_arg());
        gather_kernel::launch::<Runtime>(&client, count, dim, lanes, table, ids, out, d / lanes, dtype.into());
    }
    y
}

/// Gradient of the table, in the element type of `dy`.
pub(crate) fn backward(dy: Buffer, ids: Buffer, n_rows: usize) -> Buffer {
    let (dy, ids) = (dense(dy), dense(ids));
    let (n_ids, d) = (ids.shape().num_elements(), dy.shape()[dy.shape().num_dims() - 1]);
    let shape = Shape::new([n_rows, d]);
    if n_ids * n_rows * d == 0 {
        return zeros(&dy, shape, dy.dtype);
    }
    let grad = empty(&dy, shape, dy.dtype);
    check_indices("embedding backward", &[&dy, &grad]);
    let dtype = dy.dtype;
    let dy = dense_as(dy, dtype);
    let lanes = lanes(d, &[&dy, &grad]);
    scatter_kernel::launch::<Runtime>(
        &dy.client.clone(),
        cubes(n_rows),
        CubeDim::new_1d(THREADS as u32),
        lanes,
        dy.into_array_arg(),
        ids.into_array_arg(),
        grad.clone().into_array_arg(),
        n_ids as u32,
        (d / lanes) as u32,
        (d / lanes).div_ceil(THREADS),
        dtype.into(),
        dtype.into(),
    );
    grad
}
