//! FP8 linear layer on CUDA: peaks and rounding in own kernels, products by cuBLASLt.
//!
//! cuBLASLt has FP8 products of operands that are both contiguous along the sum alone. So the rounding also writes a transposed
//! copy, where one of the gradients needs it: of `x` in the forward pass, where it takes the place of `x` for the backward pass;
//! of the weight and of `dy` in the backward pass.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{BoolElement, CubeBackend, FloatElement, IntElement};

use crate::cuda::gemm::{Element, Gemm, Types, gemm_fp8};
use crate::cuda::launch::{check_indices, dense, dense_as, empty, lanes, owned, row_range, rows, with_last};
use crate::cuda::peaks::Seen;
use crate::cuda::{Argument, Buffer, Grid, Peaks, RawKernel, Runtime, has_fp8};
use crate::fp8::{Format, Fp8, Fp8Gradients, Fp8Known, Fp8Saved, fits};
use crate::{Tracked, portable};

/// The kernels.
const SOURCE: &str = include_str!("fp8.cu");
/// Threads of a block, as the source says.
const THREADS: usize = 256;
/// Blocks of a pass over a tensor: eight for each multiprocessor of an H100. Each leaves one peak.
const BLOCKS: usize = 1056;
/// Rows of a history.
const X: usize = 0;
const WEIGHT: usize = 1;
const DY: usize = 2;

type Backend<F, I, T> = CubeBackend<Runtime, F, I, T>;

fn kernel(name: &'static str) -> RawKernel {
    RawKernel { name, source: SOURCE, defines: &[], shared_bytes: 0, one_architecture: false }
}

/// Runs a kernel on so many blocks.
fn launch(op: &'static str, name: &'static str, blocks: usize, arguments: &[Argument<'_>]) {
    kernel(name).launch(op, Grid { blocks: [blocks, 1, 1], threads: THREADS }, arguments);
}

/// A matrix in FP8.
struct Quantised {
    /// As it is, where that was asked for.
    by_rows: Option<Buffer>,
    /// Transposed, where that was asked for.
    by_columns: Option<Buffer>,
    /// `[1]`: what its numbers must be multiplied with.
    inverse: Buffer,
    /// `[BLOCKS]`: abs-max of parts of the matrix.
    peaks: Buffer,
}

/// Which copies of a matrix are wanted.
#[derive(Clone, Copy)]
struct Copies {
    by_rows: bool,
    by_columns: bool,
}

/// Where a scale comes from.
#[derive(Clone, Copy)]
enum Peak<'a> {
    /// The matrix, or the row of the history where that knows one.
    Now(Option<(&'a Buffer, usize)>),
    /// The peaks that a pass over the same matrix used, or the row of the history that it used.
    Before(&'a Buffer, Option<(&'a Buffer, usize)>),
    /// What the kernel that wrote the matrix has seen.
    Gathered(&'a Seen),
    /// Peaks of parts of the matrix, which came with it.
    Known(&'a Buffer),
}

impl<'a> Peak<'a> {
    /// What the kernel before has seen, or else the matrix itself; a history needs nothing of a kernel before.
    fn of(seen: Option<&'a Seen>, history: Option<(&'a Buffer, usize)>) -> Self {
        match (seen, history) {
            (Some(seen), None) => Self::Gathered(seen),
            (_, history) => Self::Now(history),
        }
    }
}

/// Rounds a dense bf16 matrix.
fn quantise(
    op: &'static str,
    matrix: &Buffer,
    [n_rows, columns]: [usize; 2],
    format: Format,
    peak: Peak<'_>,
    copies: Copies,
) -> Quantised {
    check_indices(op, &[matrix]);
    assert!(lanes(columns, &[matrix]) == 8, "{op}: a matrix of {columns} columns begins between two loads");
    let peaks = empty(matrix, Shape::new([BLOCKS]), DType::F32);
    let (own, of, history) = match peak {
        Peak::Now(history) => (empty(matrix, Shape::new([BLOCKS]), DType::F32), matrix, history),
        Peak::Before(own, history) => (own.clone(), matrix, history),
        Peak::Gathered(seen) => (seen.peaks.clone(), &seen.of, None),
        Peak::Known(peaks) => (peaks.clone(), matrix, None),
    };
    let inverse = empty(matrix, Shape::new([1]), DType::F32);
    let row = history.map(|(history, row)| row_range(history, row, 1));
    let known = row.as_ref().map_or(0, |row| row.shape().num_elements());
    // Where there is no history its length is zero and nothing is read from the other tensor.
    let row = row.as_ref().unwrap_or(&own);
    let int = |n: usize| Argument::I32(n as i32);
    let eights = int(n_rows * columns / 8);
    let look = [Argument::Buffer(matrix), eights, Argument::Buffer(row), int(known), Argument::Buffer(&own)];
    if matches!(peak, Peak::Now(_)) {
        launch(op, "fp8_peak", BLOCKS, &look);
    }
    let copy = |wanted: bool, shape: [usize; 2]| wanted.then(|| empty(matrix, Shape::new(shape), DType::U8));
    let by_rows = copy(copies.by_rows, [n_rows, columns]);
    let by_columns = copy(copies.by_columns, [columns, n_rows]);
    let target = |copy: &Option<Buffer>| copy.clone().unwrap_or_else(|| own.clone());
    let (to_rows, to_columns) = (target(&by_rows), target(&by_columns));
    let arguments = [
        Argument::Buffer(matrix),
        int(n_rows),
        int(columns),
        Argument::Buffer(row),
        int(known),
        Argument::Buffer(&own),
        int(own.shape().num_elements()),
        Argument::Buffer(of),
        int(usize::from(format == Format::E5m2)),
        int(usize::from(copies.by_rows)),
        int(usize::from(copies.by_columns)),
        Argument::Buffer(&to_rows),
        Argument::Buffer(&to_columns),
        Argument::Buffer(&inverse),
        Argument::Buffer(&peaks),
    ];
    launch(op, "fp8_quantise", BLOCKS, &arguments);
    Quantised { by_rows, by_columns, inverse, peaks }
}

/// Rounds a bf16 matrix to FP8, as it is and transposed where that is asked for; gives both and the factor back.
///
/// # Panics
/// When rows or columns are no multiple of 16, or the numbers are not bf16.
pub fn round_fp8(matrix: &Buffer, gradient: bool, [by_rows, by_columns]: [bool; 2]) -> ([Option<Buffer>; 2], Buffer) {
    let (n_rows, columns) = rows(&matrix.shape());
    let right = fits([n_rows, columns, columns]) && matrix.dtype == DType::BF16 && matrix.is_contiguous();
    assert!(right, "round_fp8: expected a dense bf16 matrix in groups of 16, got {n_rows} by {columns}");
    let format = if gradient { Format::E5m2 } else { Format::E4m3 };
    let rounded =
        quantise("round_fp8", matrix, [n_rows, columns], format, Peak::Now(None), Copies { by_rows, by_columns });
    ([rounded.by_rows, rounded.by_columns], rounded.inverse)
}

/// One of the three products: `c[m,n] (+)= a[m,k] · b[n,k]ᵀ`.
fn product(op: &'static str, a: (&Buffer, &Buffer), b: (&Buffer, &Buffer), c: &Buffer, types: Types, accumulate: bool) {
    let ((m, k), (n, _)) = (rows(&a.0.shape()), rows(&b.0.shape()));
    let problem = Gemm { m, n, k, a_transposed: false, b_transposed: true, accumulate };
    gemm_fp8(op, [a.0, b.0, c], [a.1, b.1], problem, types);
}

/// True where the matrix units of the device can do this layer in FP8.
fn possible(x: &Buffer, weight: &Buffer) -> bool {
    let dims = [rows(&x.shape()).0, weight.shape()[1], weight.shape()[0]];
    fits(dims) && x.dtype == DType::BF16 && weight.dtype == DType::BF16 && has_fp8(&x.device)
}

/// `q(x) · q(w)ᵀ`.
pub(crate) fn forward<F: FloatElement, I: IntElement, T: BoolElement>(
    x: Buffer,
    weight: Buffer,
    known: Fp8Known<Backend<F, I, T>>,
    mode: Fp8,
    want: Tracked,
    peaks: Option<&Peaks>,
) -> (Buffer, Fp8Saved<Backend<F, I, T>>) {
    const OP: &str = "linear_fp8";
    let seen = peaks.and_then(Peaks::take);
    if !possible(&x, &weight) {
        return portable::linear_fp8_fwd::<Backend<F, I, T>>(x, weight, known.history, want);
    }
    // A copy is another matrix.
    let seen = seen.filter(|_| x.is_contiguous());
    let history = known.history.map(|history| dense_as(history, DType::F32));
    let of_weight = known.weight.map(|peaks| dense_as(peaks, DType::F32));
    let (x, weight) = (dense(x), dense(weight));
    let (m, i) = rows(&x.shape());
    let o = weight.shape()[0];
    let row = |row| history.as_ref().map(|history| (history, row));
    let (x_copies, w_copies) =
        (Copies { by_rows: true, by_columns: want.weight }, Copies { by_rows: true, by_columns: false });
    let x8 = quantise(OP, &x, [m, i], Format::E4m3, Peak::of(seen.as_ref(), row(X)), x_copies);
    let w_peak = match (&of_weight, row(WEIGHT)) {
        (Some(peaks), None) => Peak::Known(peaks),
        (_, history) => Peak::Now(history),
    };
    let w8 = quantise(OP, &weight, [o, i], Format::E4m3, w_peak, w_copies);
    let y = empty(&x, with_last(&x.shape(), o), DType::BF16);
    let types = Types { a: Element::E4m3, b: Element::E4m3, c: Element::Bf16, fast_sums: mode.fast_forward };
    if let (Some(a), Some(b)) = (&x8.by_rows, &w8.by_rows) {
        product(OP, (a, &x8.inverse), (b, &w8.inverse), &y, types, false);
    }
    // The whole weight's peak is that of its parts, which every pass sees, whatever its scale is.
    let peaks = Some([x8.peaks, w8.peaks]);
    (y, Fp8Saved { x: x8.by_columns, inverse: Some(x8.inverse), peaks, history })
}

/// The gradients; `dw` on top of `acc` where that is given.
pub(crate) fn backward<F: FloatElement, I: IntElement, T: BoolElement>(
    dy: Buffer,
    weight: Buffer,
    saved: Fp8Saved<Backend<F, I, T>>,
    mode: Fp8,
    want: Tracked,
    acc: Option<Buffer>,
    peaks: Option<&Peaks>,
) -> Fp8Gradients<Backend<F, I, T>> {
    const OP: &str = "linear_fp8 backward";
    let seen = peaks.and_then(Peaks::take);
    let Fp8Saved { x, inverse: Some(x_inverse), peaks: Some([x_peaks, w_peaks]), history } = saved else {
        return portable::linear_fp8_bwd::<Backend<F, I, T>>(dy, weight, saved, want, acc);
    };
    let dtype = dy.dtype;
    let seen = seen.filter(|_| dy.is_contiguous() && dtype == DType::BF16);
    let (dy, weight) = (dense_as(dy, DType::BF16), dense(weight));
    let ((m, o), i) = (rows(&dy.shape()), weight.shape()[1]);
    let row = |row| history.as_ref().map(|history| (history, row));
    let dy_copies = Copies { by_rows: want.x, by_columns: want.weight };
    let dy8 = quantise(OP, &dy, [m, o], Format::E5m2, Peak::of(seen.as_ref(), row(DY)), dy_copies);
    let types = |c| Types { a: Element::E5m2, b: Element::E4m3, c, fast_sums: mode.fast_backward };
    let dx = dy8.by_rows.as_ref().map(|dy8_rows| {
        let copies = Copies { by_rows: false, by_columns: true };
        let w8 = quantise(OP, &weight, [o, i], Format::E4m3, Peak::Before(&w_peaks, row(WEIGHT)), copies);
        let dx = empty(&dy, with_last(&dy.shape(), i), DType::BF16);
        if let Some(w8_columns) = &w8.by_columns {
            product(OP, (dy8_rows, &dy8.inverse), (w8_columns, &w8.inverse), &dx, types(Element::Bf16), false);
        }
        dense_as(dx, dtype)
    });
    let dw = dy8.by_columns.as_ref().zip(x).map(|(dy8_columns, x8)| {
        let (dw, accumulate) = match acc {
            Some(acc) => (owned(acc), true),
            None => (empty(&dy, Shape::new([o, i]), DType::BF16), false),
        };
        let element = if dw.dtype == DType::F32 { Element::F32 } else { Element::Bf16 };
        product(OP, (dy8_columns, &dy8.inverse), (&x8, &x_inverse), &dw, types(element), accumulate);
        if accumulate { dw } else { dense_as(dw, dtype) }
    });
    let next = history.map(|history| {
        let next = empty(&history, history.shape(), DType::F32);
        let n = history.shape()[1];
        let many = Argument::I32(BLOCKS as i32);
        let arguments = [
            Argument::Buffer(&history),
            Argument::I32(n as i32),
            Argument::Buffer(&x_peaks),
            many,
            Argument::Buffer(&w_peaks),
            many,
            Argument::Buffer(&dy8.peaks),
            many,
            Argument::Buffer(&next),
        ];
        launch(OP, "fp8_history", 1, &arguments);
        next
    });
    Fp8Gradients { dx, dw, history: next }
}
