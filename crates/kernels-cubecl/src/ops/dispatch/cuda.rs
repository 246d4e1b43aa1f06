//! Dispatch on CUDA: a counting sort in three kernels without atomics, then a thread per vector of a row.

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::gemm::zeros;
use crate::cuda::launch::{
    check_indices, check_lengths, cubes, dense, dense_as, empty, lanes, one_thread_each, row_threads,
};
use crate::cuda::reduce::{cube_sum, lane_sum};
use crate::cuda::{Buffer, Runtime};
use crate::{Dispatch, LmBackend, Tracked};

/// Neighbouring slots that are counted by themselves.
const CHUNK: usize = 256;
/// Most threads of the cube that adds up the counts, one for each expert and one for slots without.
const MAX_GROUPS: usize = 1024;
/// Most threads that work on a product of two rows.
const DOT_THREADS: usize = 128;

/// Expert of a slot; `n_experts` where it has none.
#[cube]
fn group_of(expert: i32, n_experts: u32) -> u32 {
    // A negative id is far above every expert.
    min(u32::cast_from(expert), n_experts)
}

/// How many slots of chunk `c` go to group `g`, for each `(c, g)`.
#[cube(launch)]
fn count_kernel(experts: &Array<i32>, counts: &mut Array<i32>, slots: u32, n_experts: u32) {
    let i = ABSOLUTE_POS as u32;
    if ABSOLUTE_POS < counts.len() {
        let (chunk, group) = (i / (n_experts + 1u32), i % (n_experts + 1u32));
        let mut slot = chunk * comptime!(CHUNK as u32);
        let end = min(slot + comptime!(CHUNK as u32), slots);
        let mut n = 0i32;
        while slot < end {
            if group_of(experts[slot as usize], n_experts) == group {
                n += 1i32;
            }
            slot += 1u32;
        }
        counts[ABSOLUTE_POS] = n;
    }
}

/// Replaces each count by the first row of its chunk and group, and writes the bounds of the experts; one cube with a thread
/// for each group.
#[cube(launch)]
fn scan_kernel(counts: &mut Array<i32>, offsets: &mut Array<i32>, chunks: u32, n_experts: u32) {
    let mut totals = SharedMemory::<i32>::new(comptime!(MAX_GROUPS));
    let groups = n_experts + 1u32;
    let group = UNIT_POS;
    if group < groups {
        let mut total = 0i32;
        let mut chunk = 0u32;
        while chunk < chunks {
            total += counts[(chunk * groups + group) as usize];
            chunk += 1u32;
        }
        totals[group as usize] = total;
    }
    sync_cube();
    if group < groups {
        let mut at = 0i32;
        let mut before = 0u32;
        while before < group {
            at += totals[before as usize];
            before += 1u32;
        }
        offsets[group as usize] = at;
        let mut chunk = 0u32;
        while chunk < chunks {
            let place = (chunk * groups + group) as usize;
            let n = counts[place];
            counts[place] = at;
            at += n;
            chunk += 1u32;
        }
    }
}

/// Puts the slots of chunk `c` that go to group `g` in their places, for each `(c, g)`.
#[cube(launch)]
fn place_kernel(
    experts: &Array<i32>,
    first: &Array<i32>,
    token: &mut Array<i32>,
    slot: &mut Array<i32>,
    position: &mut Array<i32>,
    slots: u32,
    n_experts: u32,
    top_k: u32,
) {
    let i = ABSOLUTE_POS as u32;
    if ABSOLUTE_POS < first.len() {
        let (chunk, group) = (i / (n_experts + 1u32), i % (n_experts + 1u32));
        let mut s = chunk * comptime!(CHUNK as u32);
        let end = min(s + comptime!(CHUNK as u32), slots);
        let mut at = first[ABSOLUTE_POS];
        while s < end {
            if group_of(experts[s as usize], n_experts) == group {
                slot[at as usize] = i32::cast_from(s);
                token[at as usize] = i32::cast_from(s / top_k);
                position[s as usize] = at;
                at += 1i32;
            }
            s += 1u32;
        }
    }
}

/// `[token, slot, position, offsets]` of a dispatch.
pub(crate) fn sort(experts: Buffer, n_experts: usize) -> [Buffer; 4] {
    let experts = dense(experts);
    assert!(experts.dtype == DType::I32, "dispatch: expert ids must be i32 on CUDA, got {:?}", experts.dtype);
    let groups = n_experts + 1;
    assert!(
        groups <= MAX_GROUPS,
        "dispatch: CUDA sorts by at most {} experts, got {n_experts}; use --device cpu",
        MAX_GROUPS - 1
    );
    let (slots, k) = (experts.shape().num_elements(), experts.shape()[1]);
    let vector = |n| empty(&experts, Shape::new([n]), DType::I32);
    let [token, slot, position] = [0; 3].map(|_| vector(slots));
    if slots == 0 {
        let offsets = zeros(&experts, Shape::new([groups]), DType::I32);
        return [token, slot, position, offsets];
    }
    check_indices("dispatch", &[&experts]);
    let chunks = slots.div_ceil(CHUNK);
    let (counts, offsets) = (vector(chunks * groups), vector(groups));
    let client = experts.client.clone();
    let (count, dim) = one_thread_each(chunks * groups);
    let (ids, out) = (experts.clone().into_array_arg(), counts.clone().into_array_arg());
    count_kernel::launch::<Runtime>(&client, count, dim, ids, out, slots as u32, n_experts as u32);
    let dim = CubeDim::new_1d(groups.next_multiple_of(32) as u32);
    let (out, bounds) = (counts.clone().into_array_arg(), offsets.clone().into_array_arg());
    scan_kernel::launch::<Runtime>(&client, cubes(1), dim, out, bounds, chunks as u32, n_experts as u32);
    let (count, dim) = one_thread_each(chunks * groups);
    place_kernel::launch::<Runtime>(
        &client,
        count,
        dim,
        experts.into_array_arg(),
        counts.into_array_arg(),
        token.clone().into_array_arg(),
        slot.clone().into_array_arg(),
        position.clone().into_array_arg(),
        slots as u32,
        n_experts as u32,
        k as u32,
    );
    [token, slot, position, offsets]
}

/// The buffers of a dispatch.
pub(crate) struct Places {
    token: Buffer,
    slot: Buffer,
    position: Buffer,
    offsets: Buffer,
}

impl<B: LmBackend<IntTensorPrimitive = Buffer>> From<Dispatch<B>> for Places {
    fn from(at: Dispatch<B>) -> Self {
        let [token, slot, position, offsets] =
            [at.token, at.slot, at.position, at.offsets].map(|field| dense(field.into_primitive()));
        Self { token, slot, position, offsets }
    }
}

impl Places {
    fn n_rows(&self) -> usize {
        self.slot.shape()[0]
    }

    fn n_experts(&self) -> usize {
        self.offsets.shape()[0] - 1
    }
}

#[cube(launch)]
fn gather_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    token: &Array<i32>,
    offsets: &Array<i32>,
    y: &mut Array<Vector<F, N>>,
    n_experts: u32,
    #[comptime] vectors: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let row = i / vectors;
        let mut value = Vector::<F, N>::new(F::new(0.0));
        if i32::cast_from(row as u32) < offsets[n_experts as usize] {
            value = x[token[row] as usize * vectors + i % vectors];
        }
        y[i] = value;
    }
}

/// Rows of `x [n, d]` in the order of the dispatch.
pub(crate) fn gather(x: Buffer, at: &Places) -> Buffer {
    let x = dense(x);
    let (m, d) = (at.n_rows(), x.shape()[1]);
    let y = empty(&x, Shape::new([m, d]), x.dtype);
    if m * d > 0 {
        check_indices("gather_tokens", &[&x, &y]);
        let lanes = lanes(d, &[&x, &y]);
        let (count, dim) = one_thread_each(m * d / lanes);
        let (client, dtype, e) = (x.client.clone(), x.dtype, at.n_experts() as u32);
        let (token, offsets) = (at.token.clone().into_array_arg(), at.offsets.clone().into_array_arg());
        let (x, out) = (x.into_array_arg(), y.clone().into_array_arg());
        gather_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            lanes,
            x,
            token,
            offsets,
            out,
            e,
            d / lanes,
            dtype.into(),
        );
    }
    y
}

/// Sums over a token's slots, in their order.
#[cube(launch)]
fn combine_kernel<F: Float, N: Size>(
    y: &Array<Vector<F, N>>,
    weights: &Array<f32>,
    position: &Array<i32>,
    offsets: &Array<i32>,
    out: &mut Array<Vector<F, N>>,
    n_experts: u32,
    top_k: u32,
    #[comptime] vectors: usize,
    #[comptime] weighted: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let live = offsets[n_experts as usize];
        let (first, column) = ((i / vectors) as u32 * top_k, i % vectors);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        let mut j = 0u32;
        while j < top_k {
            let slot = (first + j) as usize;
            let row = position[slot];
            if row < live {
                let value = Vector::<f32, N>::cast_from(y[row as usize * vectors + column]);
                if comptime!(weighted) {
                    sum += value * Vector::new(weights[slot]);
                } else {
                    sum += value;
                }
            }
            j += 1u32;
        }
        out[i] = Vector::cast_from(sum);
    }
}

/// Weighted, or without weights plain, sums of each of the `n` tokens' rows of `y`.
pub(crate) fn combine(y: Buffer, weights: Option<Buffer>, at: &Places, n: usize) -> Buffer {
    let y = dense(y);
    let (m, d) = (at.n_rows(), y.shape()[1]);
    let out = empty(&y, Shape::new([n, d]), y.dtype);
    if m * d == 0 {
        return zeros(&y, out.shape(), out.dtype);
    }
    check_indices("combine", &[&y]);
    let weighted = weights.is_some();
    // Without weights the kernel does not look at them.
    let weights = weights.map_or_else(|| empty(&y, Shape::new([1]), DType::F32), |w| dense_as(w, DType::F32));
    let lanes = lanes(d, &[&y, &out]);
    let (count, dim) = one_thread_each(n * d / lanes);
    let (client, dtype) = (y.client.clone(), y.dtype);
    combine_kernel::launch::<Runtime>(
        &client,
        count,
        dim,
        lanes,
        y.into_array_arg(),
        weights.into_array_arg(),
        at.position.clone().into_array_arg(),
        at.offsets.clone().into_array_arg(),
        out.clone().into_array_arg(),
        at.n_experts() as u32,
        (m / n) as u32,
        d / lanes,
        weighted,
        dtype.into(),
    );
    out
}

#[cube(launch)]
fn rows_kernel<F: Float, N: Size>(
    dout: &Array<Vector<F, N>>,
    weights: &Array<f32>,
    slot: &Array<i32>,
    offsets: &Array<i32>,
    dy: &mut Array<Vector<F, N>>,
    n_experts: u32,
    top_k: u32,
    #[comptime] vectors: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < dy.len() {
        let row = i / vectors;
        let mut value = Vector::<f32, N>::new(0.0f32);
        if i32::cast_from(row as u32) < offsets[n_experts as usize] {
            let s = slot[row] as u32;
            let upstream = dout[(s / top_k) as usize * vectors + i % vectors];
            value = Vector::<f32, N>::cast_from(upstream) * Vector::new(weights[s as usize]);
        }
        dy[i] = Vector::cast_from(value);
    }
}

/// A cube per slot.
#[cube(launch)]
fn weights_kernel<F: Float, N: Size>(
    dout: &Array<Vector<F, N>>,
    y: &Array<Vector<F, N>>,
    position: &Array<i32>,
    offsets: &Array<i32>,
    dweights: &mut Array<f32>,
    n_experts: u32,
    top_k: u32,
    vectors: u32,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let slot = CUBE_POS_X;
    let row = position[slot as usize];
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if row < offsets[n_experts as usize] {
        let (upstream, own) = (slot / top_k * vectors, row as u32 * vectors);
        let mut column = UNIT_POS;
        while column < vectors {
            let a = Vector::<f32, N>::cast_from(dout[(upstream + column) as usize]);
            sum += a * Vector::<f32, N>::cast_from(y[(own + column) as usize]);
            column += comptime!(threads as u32);
        }
    }
    let total = cube_sum(lane_sum::<N>(sum), threads);
    if UNIT_POS == 0u32 {
        dweights[slot as usize] = total;
    }
}

/// `(dy, dweights)` as far as `want` asks for them.
pub(crate) fn combine_backward(
    dout: Buffer,
    y: Buffer,
    weights: Buffer,
    at: &Places,
    want: Tracked,
) -> (Option<Buffer>, Option<Buffer>) {
    let y = dense(y);
    let (dout, w_dtype) = (dense_as(dout, y.dtype), weights.dtype);
    let weights = dense_as(weights, DType::F32);
    let ([m, d], k) = ([at.n_rows(), y.shape()[1]], weights.shape()[1]);
    if m * d == 0 {
        let none = |want: bool, like: &Buffer, dtype| want.then(|| zeros(like, like.shape(), dtype));
        return (none(want.x, &y, y.dtype), none(want.weight, &weights, w_dtype));
    }
    check_indices("combine backward", &[&y]);
    check_lengths("combine backward", &[(&dout, m / k * d), (&y, m * d), (&weights, m)]);
    let dy = want.x.then(|| rows_backward(&dout, &weights, at, [m, d, k]));
    let dweights = want.weight.then(|| dense_as(weights_backward(&dout, &y, at, weights.shape(), [m, d, k]), w_dtype));
    (dy, dweights)
}

fn rows_backward(dout: &Buffer, weights: &Buffer, at: &Places, [m, d, k]: [usize; 3]) -> Buffer {
    let dy = empty(dout, Shape::new([m, d]), dout.dtype);
    let lanes = lanes(d, &[dout, &dy]);
    let (count, dim) = one_thread_each(m * d / lanes);
    rows_kernel::launch::<Runtime>(
        &dout.client.clone(),
        count,
        dim,
        lanes,
        dout.clone().into_array_arg(),
        weights.clone().into_array_arg(),
        at.slot.clone().into_array_arg(),
        at.offsets.clone().into_array_arg(),
        dy.clone().into_array_arg(),
        at.n_experts() as u32,
        k as u32,
        d / lanes,
        dout.dtype.into(),
    );
    dy
}

fn weights_backward(dout: &Buffer, y: &Buffer, at: &Places, shape: Shape, [m, d, k]: [usize; 3]) -> Buffer {
    let dweights = empty(dout, shape, DType::F32);
    let lanes = lanes(d, &[dout, y]);
    let threads = row_threads(d / lanes, DOT_THREADS);
    weights_kernel::launch::<Runtime>(
        &dout.client.clone(),
        cubes(m),
        CubeDim::new_1d(threads as u32),
        lanes,
        dout.clone().into_array_arg(),
        y.clone().into_array_arg(),
        at.position.clone().into_array_arg(),
        at.offsets.clone().into_array_arg(),
        dweights.clone().into_array_arg(),
        at.n_experts() as u32,
        k as u32,
        (d / lanes) as u32,
        threads,
        dout.dtype.into(),
    );
    dweights
}
