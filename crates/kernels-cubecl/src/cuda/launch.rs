//! Between tensors and kernels: dense and owned buffers, vector widths, launch shapes, and the limit of 32-bit indices.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::{Buffer, CudaDevice, Runtime};

/// Threads of a cube where nothing asks for another number.
pub(crate) const THREADS: usize = 256;
/// Bytes of the widest load of a thread.
const LOAD_BYTES: usize = 16;

/// The tensor without gaps between its elements.
pub(crate) fn dense(tensor: Buffer) -> Buffer {
    if tensor.shape().num_elements() == 0 {
        return empty(&tensor, tensor.shape(), tensor.dtype);
    }
    into_contiguous(tensor)
}

/// The tensor without gaps, as the only owner of its memory.
pub(crate) fn owned(tensor: Buffer) -> Buffer {
    let tensor = dense(tensor);
    let dtype = tensor.dtype;
    if tensor.can_mut() { tensor } else { convert(tensor, dtype) }
}

/// The tensor without gaps in the element type.
pub(crate) fn dense_as(tensor: Buffer, dtype: DType) -> Buffer {
    let tensor = dense(tensor);
    if tensor.dtype == dtype { tensor } else { convert(tensor, dtype) }
}

/// `y ← x`, rounded where `y` is narrower.
#[cube(launch)]
fn convert_kernel<F: Float, G: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    y: &mut Array<Vector<G, N>>,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _y_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        y[i] = Vector::cast_from(x[i]);
    }
}

/// A dense copy of a dense tensor in the element type.
///
/// Not burn's own copy and cast: their results may have gaps between the rows.
fn convert(tensor: Buffer, dtype: DType) -> Buffer {
    let (shape, from) = (tensor.shape(), tensor.dtype);
    let (n, out) = (shape.num_elements(), empty(&tensor, shape, dtype));
    if n > 0 {
        check_indices("copy", &[&tensor]);
        let lanes = lanes(n, &[&tensor, &out]);
        let (count, dim) = one_thread_each(n / lanes);
        let client = tensor.client.clone();
        let (x, y) = (tensor.into_array_arg(), out.clone().into_array_arg());
        convert_kernel::launch::<Runtime>(&client, count, dim, lanes, x, y, from.into(), dtype.into());
    }
    out
}

/// Uninitialised memory beside `like`.
pub(crate) fn empty(like: &Buffer, shape: impl Into<Shape>, dtype: DType) -> Buffer {
    empty_on(&like.client, &like.device, shape.into(), dtype)
}

/// Uninitialised memory of a device.
pub(crate) fn empty_on(client: &ComputeClient<Runtime>, device: &CudaDevice, shape: Shape, dtype: DType) -> Buffer {
    // An empty tensor still has a buffer, which is never read.
    let handle = client.empty(shape.num_elements().max(1) * dtype.size());
    Buffer::new_contiguous(client.clone(), device.clone(), shape, handle, dtype)
}

/// `rows` rows of a dense matrix from row `at` on, in the same memory.
pub(crate) fn row_range(matrix: &Buffer, at: usize, rows: usize) -> Buffer {
    let shape = matrix.shape();
    let row_bytes = (shape.num_elements() / shape[0].max(1) * matrix.dtype.size()) as u64;
    let all = shape[0] as u64;
    let mut handle = matrix.handle.clone();
    handle.offset_start = Some(handle.offset_start.unwrap_or(0) + at as u64 * row_bytes);
    handle.offset_end = Some(handle.offset_end.unwrap_or(0) + (all - at as u64 - rows as u64) * row_bytes);
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    dims[0] = rows;
    Buffer::new_contiguous(matrix.client.clone(), matrix.device.clone(), Shape::from(dims), handle, matrix.dtype)
}

/// `[.., k]` as `(rows, k)`; an empty tensor has no rows.
pub(crate) fn rows(shape: &Shape) -> (usize, usize) {
    let k = shape[shape.num_dims() - 1];
    (shape.num_elements().checked_div(k).unwrap_or(0), k)
}

/// The shape with another last axis.
pub(crate) fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    if let Some(slot) = dims.last_mut() {
        *slot = last;
    }
    Shape::from(dims)
}

/// Panics when a tensor has more elements than a 32-bit index reaches.
pub(crate) fn check_indices(op: &str, tensors: &[&Buffer]) {
    for tensor in tensors {
        let n = tensor.shape().num_elements();
        assert!(
            u32::try_from(n).is_ok(),
            "{op}: a tensor {:?} of {n} elements is beyond the 32-bit indices of the CUDA kernels; use a smaller micro-batch",
            tensor.shape()
        );
    }
}

/// Panics when a buffer has not as many elements in one run as its kernel, which checks no index, relies on.
pub(crate) fn check_lengths(op: &str, buffers: &[(&Buffer, usize)]) {
    for (buffer, want) in buffers {
        let got = buffer.shape().num_elements();
        assert!(got == *want && buffer.is_contiguous(), "{op}: a buffer needs {want} elements in one run, got {got}");
    }
}

/// Elements per load: the most that divide `width`, fit a load and keep every tensor's first element aligned.
pub(crate) fn lanes(width: usize, tensors: &[&Buffer]) -> usize {
    let places: Vec<(usize, u64)> =
        tensors.iter().map(|tensor| (tensor.dtype.size(), tensor.handle.offset_start.unwrap_or(0))).collect();
    lanes_for(width, &places)
}

/// [`lanes`] for element sizes and byte offsets.
fn lanes_for(width: usize, places: &[(usize, u64)]) -> usize {
    let largest = places.iter().map(|(size, _)| *size).max().unwrap_or(LOAD_BYTES);
    let mut n = LOAD_BYTES / largest;
    let fits =
        |n: usize| width.is_multiple_of(n) && places.iter().all(|(size, at)| at.is_multiple_of((size * n) as u64));
    while n > 1 && !fits(n) {
        n /= 2;
    }
    n
}

/// Threads of a cube that works on a row of so many vectors: a power of two of whole planes, at most `most`.
pub(crate) fn row_threads(vectors: usize, most: usize) -> usize {
    vectors.next_power_of_two().clamp(32, most)
}

/// Launch shape with one thread per item.
pub(crate) fn one_thread_each(items: usize) -> (CubeCount, CubeDim) {
    (cubes(items.div_ceil(THREADS)), CubeDim::new_1d(THREADS as u32))
}

/// A line of cubes.
pub(crate) fn cubes(n: usize) -> CubeCount {
    CubeCount::Static(n as u32, 1, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_divide_the_width_and_keep_loads_aligned() {
        for (width, places, want) in [
            (4096, &[(2, 0)][..], 8),
            (4096, &[(4, 0)], 4),
            (4096, &[(2, 0), (4, 0)], 4),
            (99, &[(2, 0)], 1),
            (12, &[(2, 0)], 4),
            (16, &[(2, 8)], 4),
            (16, &[(2, 0), (2, 2)], 1),
        ] {
            assert_eq!(lanes_for(width, places), want, "{width} {places:?}");
        }
    }

    #[test]
    fn rows_get_whole_planes() {
        assert_eq!([1, 33, 512, 5000].map(|n| row_threads(n, 256)), [32, 64, 256, 256]);
    }
}
