//! Embedding on CUDA: rows are copied forward; backward a cube per table row adds in the order of the batch.
#![expect(unsafe_code, reason = "kernels without bounds checks, whose callers' lengths are checked here")]
#![allow(clippy::collapsible_if, reason = "the outer condition is one of the kernel's compiler")]
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::gemm::zeros;
use crate::cuda::launch::{
    THREADS, check_indices, check_lengths, cubes, dense, empty, lanes, one_thread_each, owned, rows,
};
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

/// For each table row how often it occurs, `n_ids` less its first place, and one more than its last; all are 0 where it
/// does not. Whole numbers, so that the order of the updates does not matter.
#[cube(launch)]
fn occurrences_kernel(ids: &Array<i32>, seen: &Array<Atomic<u32>>, n_ids: u32, n_rows: u32) {
    let at = ABSOLUTE_POS as u32;
    if at < n_ids {
        let row = ids[at as usize] as u32;
        if row < n_rows {
            seen[row as usize].fetch_add(1u32);
            seen[(n_rows + row) as usize].fetch_max(n_ids - at);
            seen[(2u32 * n_rows + row) as usize].fetch_max(at + 1u32);
        }
    }
}

/// Adds row `at` of `dy` to the thread's `per` vectors.
#[cube]
fn add_row<F: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    sum: &mut Array<Vector<f32, N>>,
    at: u32,
    vectors: u32,
    #[comptime] per: usize,
) {
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * THREADS) as u32);
        if column < vectors {
            sum[i] = sum[i] + Vector::<f32, N>::cast_from(dy[(at * vectors + column) as usize]);
        }
    }
}

/// Adds the rows of `dy` at places `first..last` whose id is `wanted`, in order. Each plane looks through its part of a turn's
/// ids and says whether the id is in it; the parts that have it are then walked through by all threads together.
#[cube]
fn add_matches<F: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    ids: &Array<i32>,
    sum: &mut Array<Vector<f32, N>>,
    wanted: i32,
    first: u32,
    last: u32,
    vectors: u32,
    #[comptime] per: usize,
) {
    let mut found = SharedMemory::<u32>::new(comptime!(PLANES));
    let plane = UNIT_POS / 32u32;
    let mut first = first;
    while first < last {
        let mut hit = false;
        #[unroll]
        for i in 0..comptime!(PER_THREAD) {
            let at = first + plane * comptime!(PER_PLANE as u32) + comptime!((i * 32) as u32) + UNIT_POS_PLANE;
            if at < last {
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
                let end = min(begin + comptime!(PER_PLANE as u32), last);
                let mut at = begin;
                while at < end {
                    if ids[at as usize] == wanted {
                        add_row::<F, N>(dy, sum, at, vectors, per);
                    }
                    at += 1u32;
                }
            }
        }
        sync_cube();
        first += comptime!((PLANES * PER_PLANE) as u32);
    }
}

/// A row of the gradient; each thread owns `per` vectors of it.
///
/// Most rows occur never, once or twice, and their places are known without looking at the ids. Without `onto` a cube's row is
/// its own number, and rows that do not occur are zeroed; with it the row is the id at the cube's place, if it is the first of
/// its kind, and the sum is added to what is there.
#[cube(launch_unchecked)]
fn scatter_kernel<F: Float, G: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    ids: &Array<i32>,
    seen: &Array<u32>,
    grad: &mut Array<Vector<G, N>>,
    n_ids: u32,
    n_rows: u32,
    vectors: u32,
    #[comptime] per: usize,
    #[comptime] onto: bool,
    #[define(F)] _dy_type: StorageType,
    #[define(G)] _grad_type: StorageType,
) {
    let mut row = CUBE_POS_X;
    if comptime!(onto) {
        row = ids[CUBE_POS_X as usize] as u32;
        if row >= n_rows {
            terminate!();
        }
    }
    let count = seen[row as usize];
    let first = n_ids - seen[(n_rows + row) as usize];
    let end = seen[(2u32 * n_rows + row) as usize];
    if comptime!(onto) {
        if first != CUBE_POS_X {
            terminate!();
        }
    }
    let mut sum = Array::<Vector<f32, N>>::new(per);
    #[unroll]
    for i in 0..per {
        sum[i] = Vector::new(0.0f32);
    }
    if count > 0u32 {
        add_row::<F, N>(dy, &mut sum, first, vectors, per);
        if count > 2u32 {
            add_matches::<F, N>(dy, ids, &mut sum, row as i32, first + 1u32, end - 1u32, vectors, per);
        }
        if count > 1u32 {
            add_row::<F, N>(dy, &mut sum, end - 1u32, vectors, per);
        }
    }
    #[unroll]
    for i in 0..per {
        let column = UNIT_POS + comptime!((i * THREADS) as u32);
        if column < vectors {
            let at = (row * vectors + column) as usize;
            if comptime!(onto) {
                sum[i] = sum[i] + Vector::<f32, N>::cast_from(grad[at]);
            }
            grad[at] = Vector::cast_from(sum[i]);
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
    let d = rows(&dy.shape()).1;
    let shape = Shape::new([n_rows, d]);
    if ids.shape().num_elements() * n_rows * d == 0 {
        return zeros(&dy, shape, dy.dtype);
    }
    let grad = empty(&dy, shape, dy.dtype);
    scatter(dy, ids, grad.clone(), false);
    grad
}

/// `acc` with the gradient of the table added; only the rows that occur are touched.
pub(crate) fn backward_onto(dy: Buffer, ids: Buffer, acc: Buffer) -> Buffer {
    let (dy, ids, acc) = (dense(dy), dense(ids), owned(acc));
    if dy.shape().num_elements() * acc.shape().num_elements() > 0 {
        scatter(dy, ids, acc.clone(), true);
    }
    acc
}

/// Writes or adds the rows of the gradient; nothing is empty.
fn scatter(dy: Buffer, ids: Buffer, grad: Buffer, onto: bool) {
    check_indices("embedding backward", &[&dy, &grad]);
    let (n_ids, (n_rows, d)) = (ids.shape().num_elements(), rows(&grad.shape()));
    check_lengths("embedding backward", &[(&dy, n_ids * d), (&grad, n_rows * d)]);
    let client = dy.client.clone();
    let seen = zeros(&ids, Shape::new([3 * n_rows]), DType::I32);
    let (count, dim) = one_thread_each(n_ids);
    let (places, table) = (ids.clone().into_array_arg(), seen.clone().into_array_arg());
    occurrences_kernel::launch::<Runtime>(&client, count, dim, places, table, n_ids as u32, n_rows as u32);
    let lanes = lanes(d, &[&dy, &grad]);
    let (dy_dtype, grad_dtype) = (dy.dtype, grad.dtype);
    // SAFETY: rows are below the table's height, columns below its width, and places are those of ids, which are as many as
    // the rows of `dy`.
    unsafe {
        scatter_kernel::launch_unchecked::<Runtime>(
            &client,
            cubes(if onto { n_ids } else { n_rows }),
            CubeDim::new_1d(THREADS as u32),
            lanes,
            dy.into_array_arg(),
            ids.into_array_arg(),
            seen.into_array_arg(),
            grad.into_array_arg(),
            n_ids as u32,
            n_rows as u32,
            (d / lanes) as u32,
            (d / lanes).div_ceil(THREADS),
            onto,
            dy_dtype.into(),
            grad_dtype.into(),
        );
    }
}
