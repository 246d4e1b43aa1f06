//! The output head on CUDA: logits of a chunk of rows by cuBLASLt, one cube per row for everything else.
//!
//! Which rows take part is known on the device alone, and asking would stop the queue; so all rows of a chunk are computed,
//! and those that do not take part get zero gradients and are zeroed in `x` before the product that makes `dW`. A target
//! outside the vocabulary gives NaN, for the same reason.
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::device_chunk_rows as rows_per_chunk;
use crate::Tracked;
use crate::cuda::gemm::{Gemm, gemm, paired, zeros};
use crate::cuda::launch::{check_indices, cubes, dense, dense_as, empty, lanes, one_thread_each, row_range};
use crate::cuda::reduce::{cube_max, cube_min, cube_sum, lane_max, lane_sum};
use crate::cuda::{Buffer, Runtime};
use crate::ops::sum_squares::cuda::total;

/// Threads of a row.
const ROW_THREADS: usize = 512;
/// Where maxima begin: the lowest finite number.
const LOWEST: f32 = f32::MIN;

/// Maximum of a row of logits and Σ exp(logit − maximum), for every thread of the cube.
#[cube]
fn max_and_sum<N: Size>(
    logits: &Array<Vector<f32, N>>,
    base: u32,
    vectors: u32,
    #[comptime] threads: usize,
) -> (f32, f32) {
    let mut most = f32::new(LOWEST);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS;
    while i < vectors {
        let x = logits[(base + i) as usize];
        let top = max(most, lane_max::<N>(x));
        sum = sum * (most - top).exp() + lane_sum::<N>((x - Vector::new(top)).exp());
        most = top;
        i += comptime!(threads as u32);
    }
    let top = cube_max(most, threads);
    let total = cube_sum(sum * (most - top).exp(), threads);
    (top, total)
}

/// The logit of the row's target; NaN when the vocabulary has no such token.
#[cube]
fn target_logit<N: Size>(logits: &Array<Vector<f32, N>>, base: u32, vectors: u32, target: i32) -> f32 {
    let mut logit = 0.0f32;
    if target >= 0i32 {
        let at = target as u32;
        let lanes = logits[base as usize].vector_size();
        if at < vectors * comptime!(lanes as u32) {
            let x = logits[(base + at / comptime!(lanes as u32)) as usize];
            #[unroll]
            for lane in 0..lanes {
                logit = select(at % comptime!(lanes as u32) == comptime!(lane as u32), x[lane], logit);
            }
        } else {
            // Not a constant, which the compiler would fold.
            logit = (logit - 1.0f32 - f32::cast_from(at)).sqrt();
        }
    }
    logit
}

/// Writes `factor·exp(logit − top) − [target]·hot` to a row of gradients.
#[cube]
fn write_gradient<F: Float, N: Size>(
    logits: &Array<Vector<f32, N>>,
    grad: &mut Array<Vector<F, N>>,
    base: u32,
    vectors: u32,
    top: f32,
    factor: f32,
    target: u32,
    hot: f32,
    #[comptime] threads: usize,
) {
    let mut i = UNIT_POS;
    while i < vectors {
        let at = (base + i) as usize;
        let mut x = (logits[at] - Vector::new(top)).exp() * Vector::new(factor);
        let lanes = x.vector_size();
        #[unroll]
        for lane in 0..lanes {
            let column = i * comptime!(lanes as u32) + comptime!(lane as u32);
            x[lane] = select(column == target, x[lane] - hot, x[lane]);
        }
        grad[at] = Vector::cast_from(x);
        i += comptime!(threads as u32);
    }
}

/// Writes zeros to a row of gradients.
#[cube]
fn write_zeros<F: Float, N: Size>(grad: &mut Array<Vector<F, N>>, base: u32, vectors: u32, #[comptime] threads: usize) {
    let mut i = UNIT_POS;
    while i < vectors {
        grad[(base + i) as usize] = Vector::cast_from(Vector::<f32, N>::new(0.0f32));
        i += comptime!(threads as u32);
    }
}

/// One row of the cross-entropy: its share of both sums and, where asked, the gradient of its logits.
#[cube(launch)]
fn cross_entropy_kernel<F: Float, N: Size>(
    logits: &Array<Vector<f32, N>>,
    targets: &Array<i32>,
    weights: &Array<f32>,
    loss: &mut Array<f32>,
    nll: &mut Array<f32>,
    grad: &mut Array<Vector<F, N>>,
    first_row: u32,
    vectors: u32,
    z_loss: f32,
    #[comptime] gradient: bool,
    #[comptime] threads: usize,
    #[define(F)] _grad_type: StorageType,
) {
    let row = (first_row + CUBE_POS_X) as usize;
    let base = CUBE_POS_X * vectors;
    let target = targets[row];
    let weight = weights[row];
    if target >= 0i32 && weight != 0.0f32 {
        let (top, sum) = max_and_sum::<N>(logits, base, vectors, threads);
        let lse = top + sum.ln();
        let each = lse - target_logit::<N>(logits, base, vectors, target);
        if UNIT_POS == 0u32 {
            nll[row] = weight * each;
            loss[row] = weight * (each + z_loss * lse * lse);
        }
        if comptime!(gradient) {
            let factor = weight * (1.0f32 + 2.0f32 * z_loss * lse) / sum;
            write_gradient::<F, N>(logits, grad, base, vectors, top, factor, target as u32, weight, threads);
        }
    } else {
        if UNIT_POS == 0u32 {
            nll[row] = 0.0f32;
            loss[row] = 0.0f32;
        }
        if comptime!(gradient) {
            write_zeros::<F, N>(grad, base, vectors, threads);
        }
    }
}

/// One row of the statistics.
#[cube(launch)]
fn stats_kernel<N: Size>(
    logits: &Array<Vector<f32, N>>,
    targets: &Array<i32>,
    logprob: &mut Array<f32>,
    lse: &mut Array<f32>,
    argmax: &mut Array<i32>,
    first_row: u32,
    vectors: u32,
    #[comptime] threads: usize,
) {
    let row = (first_row + CUBE_POS_X) as usize;
    let base = CUBE_POS_X * vectors;
    let target = targets[row];
    let (top, sum) = max_and_sum::<N>(logits, base, vectors, threads);
    let total = top + sum.ln();
    let nowhere = comptime!(u32::MAX);
    let mut best = nowhere.runtime();
    let mut i = UNIT_POS;
    while i < vectors {
        let x = logits[(base + i) as usize];
        let lanes = x.vector_size();
        #[unroll]
        for lane in 0..lanes {
            let column = i * comptime!(lanes as u32) + comptime!(lane as u32);
            best = select(x[lane] == top, min(best, column), best);
        }
        i += comptime!(threads as u32);
    }
    let first = cube_min(best, threads);
    if UNIT_POS == 0u32 {
        let logit = target_logit::<N>(logits, base, vectors, target);
        logprob[row] = select(target >= 0i32, logit - total, 0.0f32);
        lse[row] = total;
        // Without a comparable logit, because of NaN, it is the first token.
        argmax[row] = select(first == nowhere, 0i32, first as i32);
    }
}

/// One row of the gradient of the log-probabilities: `g·([target] − exp(logit − lse))`.
#[cube(launch)]
fn logprob_gradient_kernel<F: Float, N: Size>(
    logits: &Array<Vector<f32, N>>,
    targets: &Array<i32>,
    upstream: &Array<f32>,
    lse: &Array<f32>,
    grad: &mut Array<Vector<F, N>>,
    first_row: u32,
    vectors: u32,
    #[comptime] threads: usize,
    #[define(F)] _grad_type: StorageType,
) {
    let row = (first_row + CUBE_POS_X) as usize;
    let base = CUBE_POS_X * vectors;
    let target = targets[row];
    let g = upstream[row];
    if target >= 0i32 && g != 0.0f32 {
        let back = 0.0f32 - g;
        write_gradient::<F, N>(logits, grad, base, vectors, lse[row], back, target as u32, back, threads);
    } else {
        write_zeros::<F, N>(grad, base, vectors, threads);
    }
}

/// Rows of `x` that take part; zeros elsewhere, whatever stands there.
#[cube(launch)]
fn active_rows_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    targets: &Array<i32>,
    weights: &Array<f32>,
    out: &mut Array<Vector<F, N>>,
    first_row: u32,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let row = first_row as usize + i / vectors as usize;
        let mut value = Vector::<F, N>::cast_from(Vector::<f32, N>::new(0.0f32));
        if targets[row] >= 0i32 && weights[row] != 0.0f32 {
            value = x[i];
        }
        out[i] = value;
    }
}

/// The head on the device: operands, and the logits of one chunk at a time.
struct Head {
    op: &'static str,
    x: Buffer,
    weight: Buffer,
    targets: Buffer,
    /// Memory of the logits of a chunk, f32.
    logits: Buffer,
}

/// The gradients as far as they are asked for, and the memory to make them.
struct Gradients {
    /// Gradient of the logits of a chunk.
    dlogits: Buffer,
    dx: Option<Buffer>,
    /// In f32, because it is summed over chunks.
    dw: Option<Buffer>,
}

impl Head {
    fn new(op: &'static str, x: Buffer, weight: Buffer, targets: Buffer) -> Self {
        let (x, weight) = paired(x, weight);
        let (m, v) = (x.shape()[0], weight.shape()[0]);
        let logits = empty(&x, Shape::new([rows_per_chunk(v).min(m), v]), DType::F32);
        check_indices(op, &[&x, &weight, &logits]);
        Self { op, x, weight, targets: dense_as(targets, DType::I32), logits }
    }

    /// Rows, width, vocabulary.
    fn dims(&self) -> [usize; 3] {
        [self.x.shape()[0], self.x.shape()[1], self.weight.shape()[0]]
    }

    /// First row and number of rows of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [m, _, v] = self.dims();
        let step = rows_per_chunk(v);
        (0..m).step_by(step).map(move |at| (at, step.min(m - at)))
    }

    /// Makes the logits of a chunk.
    fn logits(&self, (at, n_rows): (usize, usize)) -> Buffer {
        let [_, d, v] = self.dims();
        let (x, logits) = (row_range(&self.x, at, n_rows), row_range(&self.logits, 0, n_rows));
        let problem = Gemm { m: n_rows, n: v, k: d, a_transposed: false, b_transposed: true, accumulate: false };
        gemm(self.op, &x, &self.weight, &logits, problem);
        logits
    }

    /// Elements per load of a row of logits, and how many of them there are.
    fn loads(&self) -> (usize, u32) {
        let v = self.dims()[2];
        let n = lanes(v, &[&self.logits]);
        (n, (v / n) as u32)
    }

    fn gradients(&self, want: Tracked) -> Option<Gradients> {
        if !want.x && !want.weight {
            return None;
        }
        Some(Gradients {
            dlogits: empty(&self.x, self.logits.shape(), self.x.dtype),
            dx: want.x.then(|| empty(&self.x, self.x.shape(), self.x.dtype)),
            dw: want.weight.then(|| empty(&self.weight, self.weight.shape(), DType::F32)),
        })
    }

    /// Products of a chunk's gradient; `weights` says which rows take part.
    fn add_products(&self, chunk: (usize, usize), weights: &Buffer, grads: &Gradients) {
        let ([_, d, v], (at, n_rows)) = (self.dims(), chunk);
        let dlogits = row_range(&grads.dlogits, 0, n_rows);
        if let Some(dx) = &grads.dx {
            let problem = Gemm { m: n_rows, n: d, k: v, a_transposed: false, b_transposed: false, accumulate: false };
            gemm(self.op, &dlogits, &self.weight, &row_range(dx, at, n_rows), problem);
        }
        if let Some(dw) = &grads.dw {
            let x = self.active_rows(chunk, weights);
            let problem = Gemm { m: v, n: d, k: n_rows, a_transposed: true, b_transposed: false, accumulate: at > 0 };
            gemm(self.op, &dlogits, &x, dw, problem);
        }
    }

    fn active_rows(&self, (at, n_rows): (usize, usize), weights: &Buffer) -> Buffer {
        let (x, d) = (row_range(&self.x, at, n_rows), self.dims()[1]);
        let out = empty(&x, x.shape(), x.dtype);
        let lanes = lanes(d, &[&x, &out]);
        let (count, dim) = one_thread_each(n_rows * d / lanes);
        let (dtype, client) = (x.dtype, x.client.clone());
        active_rows_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            lanes,
            x.into_array_arg(),
            self.targets.clone().into_array_arg(),
            weights.clone().into_array_arg(),
            out.clone().into_array_arg(),
            at as u32,
            (d / lanes) as u32,
            dtype.into(),
        );
        out
    }
}

impl Gradients {
    /// `(dx, dw)` in the element types of the operands.
    fn finish(self, dtypes: [DType; 2]) -> (Option<Buffer>, Option<Buffer>) {
        (self.dx.map(|dx| dense_as(dx, dtypes[0])), self.dw.map(|dw| dense_as(dw, dtypes[1])))
    }
}

/// Gradients of a head without rows or without a vocabulary.
fn no_gradients(head: &Head, want: Tracked, dtypes: [DType; 2]) -> (Option<Buffer>, Option<Buffer>) {
    let zeros = |like: &Buffer, dtype| zeros(like, like.shape(), dtype);
    (want.x.then(|| zeros(&head.x, dtypes[0])), want.weight.then(|| zeros(&head.weight, dtypes[1])))
}

/// `(loss, nll, dx, dw)`.
pub(crate) fn cross_entropy(
    x: Buffer,
    weight: Buffer,
    targets: Buffer,
    weights: Buffer,
    z_loss: f32,
    want: Tracked,
) -> (Buffer, Buffer, Option<Buffer>, Option<Buffer>) {
    let dtypes = [x.dtype, weight.dtype];
    let head = Head::new("linear_cross_entropy", x, weight, targets);
    let weights = dense_as(weights, DType::F32);
    let [m, d, v] = head.dims();
    let one = Shape::new([1]);
    if m * d * v == 0 {
        let (dx, dw) = no_gradients(&head, want, dtypes);
        return (zeros(&head.x, one.clone(), DType::F32), zeros(&head.x, one, DType::F32), dx, dw);
    }
    let rows = || empty(&head.x, Shape::new([m]), DType::F32);
    let (loss, nll, grads) = (rows(), rows(), head.gradients(want));
    let (lanes, vectors) = head.loads();
    for chunk in head.chunks() {
        let logits = head.logits(chunk);
        // Without gradients the kernel gets some buffer and does not touch it.
        let dlogits = grads.as_ref().map_or_else(|| logits.clone(), |grads| grads.dlogits.clone());
        let dtype = dlogits.dtype;
        cross_entropy_kernel::launch::<Runtime>(
            &head.x.client.clone(),
            cubes(chunk.1),
            CubeDim::new_1d(ROW_THREADS as u32),
            lanes,
            logits.into_array_arg(),
            head.targets.clone().into_array_arg(),
            weights.clone().into_array_arg(),
            loss.clone().into_array_arg(),
            nll.clone().into_array_arg(),
            dlogits.into_array_arg(),
            chunk.0 as u32,
            vectors,
            z_loss,
            grads.is_some(),
            ROW_THREADS,
            dtype.into(),
        );
        if let Some(grads) = &grads {
            head.add_products(chunk, &weights, grads);
        }
    }
    let (dx, dw) = grads.map_or((None, None), |grads| grads.finish(dtypes));
    (total(loss), total(nll), dx, dw)
}

/// `(logprob, lse, argmax)`, each `[m]`.
pub(crate) fn token_stats(x: Buffer, weight: Buffer, targets: Buffer) -> (Buffer, Buffer, Buffer) {
    let head = Head::new("token_logprobs", x, weight, targets);
    let [m, d, v] = head.dims();
    assert!(d * v > 0, "token_logprobs: the head must have rows and columns, got [{v}, {d}]");
    let rows = |dtype| empty(&head.x, Shape::new([m]), dtype);
    let (logprob, lse, argmax) = (rows(DType::F32), rows(DType::F32), rows(DType::I32));
    let (lanes, vectors) = head.loads();
    for chunk in head.chunks() {
        let logits = head.logits(chunk);
        stats_kernel::launch::<Runtime>(
            &head.x.client.clone(),
            cubes(chunk.1),
            CubeDim::new_1d(ROW_THREADS as u32),
            lanes,
            logits.into_array_arg(),
            head.targets.clone().into_array_arg(),
            logprob.clone().into_array_arg(),
            lse.clone().into_array_arg(),
            argmax.clone().into_array_arg(),
            chunk.0 as u32,
            vectors,
            ROW_THREADS,
        );
    }
    (logprob, lse, argmax)
}

/// `(dx, dw)` of the log-probabilities for the upstream gradient `[m]`.
pub(crate) fn logprobs_backward(
    upstream: Buffer,
    x: Buffer,
    weight: Buffer,
    targets: Buffer,
    lse: Buffer,
    want: Tracked,
) -> (Option<Buffer>, Option<Buffer>) {
    let dtypes = [x.dtype, weight.dtype];
    let head = Head::new("token_logprobs backward", x, weight, targets);
    let (upstream, lse) = (dense_as(upstream, DType::F32), dense(lse));
    let [m, d, v] = head.dims();
    let Some(grads) = head.gradients(want) else { return (None, None) };
    if m * d * v == 0 {
        return no_gradients(&head, want, dtypes);
    }
    let (lanes, vectors) = head.loads();
    for chunk in head.chunks() {
        let logits = head.logits(chunk);
        let dtype = grads.dlogits.dtype;
        logprob_gradient_kernel::launch::<Runtime>(
            &head.x.client.clone(),
            cubes(chunk.1),
            CubeDim::new_1d(ROW_THREADS as u32),
            lanes,
            logits.into_array_arg(),
            head.targets.clone().into_array_arg(),
            upstream.clone().into_array_arg(),
            lse.clone().into_array_arg(),
            grads.dlogits.clone().into_array_arg(),
            chunk.0 as u32,
            vectors,
            ROW_THREADS,
            dtype.into(),
        );
        head.add_products(chunk, &upstream, &grads);
    }
    grads.finish(dtypes)
}
