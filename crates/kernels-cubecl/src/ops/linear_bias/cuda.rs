//! Biases on CUDA: added to rows of sums; their gradients are sums of columns in two passes without atomics.

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::gemm::zeros;
use crate::cuda::launch::{check_indices, check_lengths, dense, empty, lanes, one_thread_each, rows};
use crate::cuda::reduce::sum_rows;
use crate::cuda::{Buffer, Runtime};

/// Vectors of a row that a cube takes, and rows that it takes at once.
const VECTORS: usize = 32;
const ROWS: usize = 8;
/// Partial sums of a column: at most so many where all rows are one group, and as many for each of several groups.
const PARTS: usize = 256;
const GROUP_PARTS: usize = 32;

#[cube(launch)]
fn add_kernel<F: Float, N: Size>(
    sums: &Array<Vector<f32, N>>,
    bias: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    #[comptime] vectors: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        y[i] = Vector::cast_from(sums[i] + Vector::<f32, N>::cast_from(bias[i % vectors]));
    }
}

/// `sums + bias` in `dtype`, which is the bias's; `sums [.., o]` is f32.
pub(crate) fn add(sums: Buffer, bias: Buffer, dtype: DType) -> Buffer {
    let y = empty(&sums, sums.shape(), dtype);
    let n = sums.shape().num_elements();
    if n > 0 {
        check_indices("linear_bias", &[&sums]);
        let o = rows(&sums.shape()).1;
        check_lengths("linear_bias", &[(&sums, n), (&bias, o)]);
        let lanes = lanes(o, &[&sums, &bias, &y]);
        let (count, dim) = one_thread_each(n / lanes);
        let client = sums.client.clone();
        let (sums, bias, out) = (sums.into_array_arg(), bias.into_array_arg(), y.clone().into_array_arg());
        add_kernel::launch::<Runtime>(&client, count, dim, lanes, sums, bias, out, o / lanes, dtype.into());
    }
    y
}

/// Partial sums of columns: part `CUBE_POS_Y·ROWS + UNIT_POS_Y` of `part` takes every `strips·ROWS`-th row of its group.
#[cube(launch)]
fn partial_kernel<F: Float, N: Size>(
    dy: &Array<Vector<F, N>>,
    offsets: &Array<i32>,
    part: &mut Array<Vector<f32, N>>,
    n_rows: u32,
    vectors: u32,
    strips: u32,
    #[comptime] grouped: bool,
    #[define(F)] _dtype: StorageType,
) {
    let column = CUBE_POS_X * comptime!(VECTORS as u32) + UNIT_POS_X;
    let strip = CUBE_POS_Y % strips;
    let mut row = strip * comptime!(ROWS as u32) + UNIT_POS_Y;
    let mut end = n_rows;
    if comptime!(grouped) {
        let group = CUBE_POS_Y / strips;
        row += u32::cast_from(offsets[group as usize]);
        end = min(end, u32::cast_from(offsets[(group + 1u32) as usize]));
    }
    if column < vectors {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        while row < end {
            sum += Vector::<f32, N>::cast_from(dy[(row * vectors + column) as usize]);
            row += strips * comptime!(ROWS as u32);
        }
        part[((CUBE_POS_Y * comptime!(ROWS as u32) + UNIT_POS_Y) * vectors + column) as usize] = sum;
    }
}

/// `out[g, c] = Σ_p part[g, p, c]`.
#[cube(launch)]
fn total_kernel<F: Float>(part: &Array<f32>, out: &mut Array<F>, columns: u32, #[define(F)] _dtype: StorageType) {
    let i = ABSOLUTE_POS as u32;
    if ABSOLUTE_POS < out.len() {
        let (group, column) = (i / columns, i % columns);
        let mut sum = 0.0f32;
        #[unroll]
        for p in 0..comptime!(GROUP_PARTS as u32) {
            sum += part[((group * comptime!(GROUP_PARTS as u32) + p) * columns + column) as usize];
        }
        out[ABSOLUTE_POS] = F::cast_from(sum);
    }
}

/// Partial sums `[groups·parts, o]` of the columns of `dy [m, o]`.
fn partial(dy: Buffer, offsets: Option<Buffer>, groups: usize, parts: usize) -> Buffer {
    let (m, o) = rows(&dy.shape());
    let part = empty(&dy, Shape::new([groups * parts, o]), DType::F32);
    check_indices("column sums", &[&dy, &part]);
    let lanes = lanes(o, &[&dy, &part]);
    let (vectors, strips) = (o / lanes, parts / ROWS);
    let count = CubeCount::Static(vectors.div_ceil(VECTORS) as u32, (groups * strips) as u32, 1);
    let (client, dtype, grouped) = (dy.client.clone(), dy.dtype, offsets.is_some());
    let offsets = offsets.unwrap_or_else(|| empty(&dy, Shape::new([1]), DType::I32));
    partial_kernel::launch::<Runtime>(
        &client,
        count,
        CubeDim::new_2d(VECTORS as u32, ROWS as u32),
        lanes,
        dy.into_array_arg(),
        offsets.into_array_arg(),
        part.clone().into_array_arg(),
        m as u32,
        vectors as u32,
        strips as u32,
        grouped,
        dtype.into(),
    );
    part
}

/// Sums of the columns of `dy [.., o]`, `[o]` in `dtype`.
pub(crate) fn column_sums(dy: Buffer, dtype: DType) -> Buffer {
    let dy = dense(dy);
    let (m, shape) = (rows(&dy.shape()).0, dy.shape());
    let o = shape[shape.num_dims() - 1];
    if m == 0 {
        return zeros(&dy, Shape::new([o]), dtype);
    }
    let parts = m.div_ceil(ROWS).next_multiple_of(ROWS).min(PARTS);
    sum_rows(partial(dy, None, 1, parts), dtype)
}

/// Sums of the columns of each group's rows of `dy [m, o]`, `[groups·o]` in `dtype`.
pub(crate) fn grouped_column_sums(dy: Buffer, offsets: Buffer, dtype: DType) -> Buffer {
    let (dy, offsets) = (dense(dy), dense(offsets));
    let (groups, o) = (offsets.shape()[0] - 1, dy.shape()[1]);
    if dy.shape().num_elements() == 0 {
        return zeros(&dy, Shape::new([groups * o]), dtype);
    }
    let out = empty(&dy, Shape::new([groups * o]), dtype);
    let part = partial(dy, Some(offsets), groups, GROUP_PARTS);
    let (count, dim) = one_thread_each(groups * o);
    let client = part.client.clone();
    let (part, sums) = (part.into_array_arg(), out.clone().into_array_arg());
    total_kernel::launch::<Runtime>(&client, count, dim, part, sums, o as u32, dtype.into());
    out
}
