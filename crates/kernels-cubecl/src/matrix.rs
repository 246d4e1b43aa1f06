//! f32 matrix products on strided slices, on one thread ([`multiply`]) or on all ([`product`]).
//!
//! Both operands are packed block by block and multiplied in tiles that fill the registers. An element of the result is a sum
//! over blocks of [`DEPTH`] steps, in order: it depends neither on the other rows and columns of the product nor on how the
//! work is split, so results are independent of the number of threads and of the size of the batch.
//!
//! # Source
//! Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"; Van Zee and van de Geijn, "BLIS".

mod kernel;
mod pack;

use std::cell::Cell;

use rayon::prelude::*;

use kernel::{Block, Isa};
use pack::{Lines, pack, pack_strip};

/// Steps of a sum that one pass takes: a packed strip of columns fits the innermost cache.
const DEPTH: usize = 256;
/// Columns of the right operand that are packed at a time.
const COLUMNS: usize = 2048;
/// Most rows of a task: its packed rows fit a core's own cache.
const ROWS: usize = 240;
/// Below this many multiplications a product stays on one thread.
const ONE_THREAD: usize = 1 << 18;

/// A matrix inside a slice: element `(i, j)` stands at `i·row_stride + j·col_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `cols` neighbouring elements, `stride` apart.
    pub(crate) fn rows(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Number of elements that the slice must have.
    fn extent(&self) -> usize {
        extent(self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    match rows == 0 || cols == 0 {
        true => 0,
        false => (rows - 1) * row_stride + (cols - 1) * col_stride + 1,
    }
}

/// What happens to the elements that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// `dst ←(+) factor · a·b` on the calling thread, where `dst` has rows of `b`'s width, `stride` apart.
///
/// # Numerics
/// f32 products and sums; the order of a sum depends on its length alone.
///
/// # Panics
/// When the shapes do not fit each other or a slice is too short.
pub(crate) fn multiply(dst: &mut [f32], stride: usize, mode: Store, a: View, b: View, factor: f32) {
    Product::new(dst, stride, mode, a, b, factor).run(dst, 1);
}

/// `dst ←(+) a·b` on all threads; otherwise as [`multiply`].
///
/// # Panics
/// When the shapes do not fit each other or a slice is too short.
pub(crate) fn product(dst: &mut [f32], stride: usize, mode: Store, a: View, b: View) {
    let product = Product::new(dst, stride, mode, a, b, 1.0);
    let threads = match a.rows * a.cols * b.cols < ONE_THREAD {
        true => 1,
        false => rayon::current_num_threads(),
    };
    product.run(dst, threads);
}

/// A checked product.
#[derive(Clone, Copy)]
struct Product<'a> {
    isa: Isa,
    a: View<'a>,
    b: View<'a>,
    stride: usize,
    mode: Store,
    factor: f32,
}

thread_local! {
    /// Memory for packed operands of this thread: columns, rows.
    static PACKED: [Cell<Vec<f32>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// Runs `f` on `len` numbers of this thread's memory; what stands in them is left over from earlier.
fn with_packed<T>(which: usize, len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut packed = PACKED.with(|packed| packed[which].take());
    if packed.len() < len {
        packed.resize(len, 0.0);
    }
    let out = f(&mut packed[..len]);
    PACKED.with(|cell| cell[which].set(packed));
    out
}

impl<'a> Product<'a> {
    fn new(dst: &[f32], stride: usize, mode: Store, a: View<'a>, b: View<'a>, factor: f32) -> Self {
        let (m, n) = (a.rows, b.cols);
        let fits = a.cols == b.rows && a.extent() <= a.data.len() && b.extent() <= b.data.len();
        assert!(
            fits,
            "matrix product: {m}x{} by {}x{n} over {} and {} elements",
            a.cols,
            b.rows,
            a.data.len(),
            b.data.len()
        );
        let room = extent(m, n, stride, 1) <= dst.len() && (n <= stride || m <= 1);
        assert!(room, "matrix product: {m}x{n} with stride {stride} does not fit {} elements", dst.len());
        Self { isa: Isa::detect(), a, b, stride: stride.max(1), mode, factor }
    }

    fn run(&self, dst: &mut [f32], threads: usize) {
        let (m, n, k) = (self.a.rows, self.b.cols, self.a.cols);
        if m == 0 || n == 0 {
            return;
        }
        // What lies behind the last row is not ours to touch.
        let dst = &mut dst[..(m - 1) * self.stride + n];
        if k == 0 {
            if self.mode == Store::Replace {
                dst.chunks_mut(self.stride).for_each(|row| row[..n].fill(0.0));
            }
            return;
        }
        match self.isa {
            Isa::Avx512 => self.passes::<12, 4, 32>(dst, threads),
            Isa::Avx2 => self.passes::<6, 2, 16>(dst, threads),
            Isa::Baseline => self.passes::<4, 1, 8>(dst, threads),
        }
    }

    /// One pass per block of the right operand.
    fn passes<const H: usize, const LOW: usize, const W: usize>(&self, dst: &mut [f32], threads: usize) {
        let (m, n, k) = (self.a.rows, self.b.cols, self.a.cols);
        // Columns are shared among threads only when there are too few rows to share.
        let few_rows = threads > 1 && m.div_ceil(H) < threads;
        for col in (0..n).step_by(COLUMNS) {
            let width = COLUMNS.min(n - col);
            for from in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - from);
                with_packed(0, width.next_multiple_of(W) * depth, |b| {
                    self.pack_columns::<W>([from, col], [depth, width], b, threads);
                    let pass = Pass { product: self, from, depth, b, width };
                    match few_rows {
                        true => pass.by_columns::<H, LOW, W>(&mut dst[col..], threads),
                        false => pass.by_rows::<H, LOW>(&mut dst[col..], threads),
                    }
                });
            }
        }
    }

    /// Packs `depth` steps of `width` columns.
    fn pack_columns<const W: usize>(
        &self,
        [from, col]: [usize; 2],
        [depth, width]: [usize; 2],
        out: &mut [f32],
        threads: usize,
    ) {
        let b = self.b;
        let one = |(i, out): (usize, &mut [f32])| {
            let first = col + i * W;
            let strip = Lines {
                data: &b.data[from * b.row_stride + first * b.col_stride..],
                n: W.min(col + width - first),
                line_stride: b.col_stride,
                step: b.row_stride,
            };
            pack_strip::<W>(strip, depth, out);
        };
        match threads {
            1 => out.chunks_mut(W * depth).enumerate().for_each(one),
            _ => out.par_chunks_mut(W * depth).with_min_len(4).enumerate().for_each(one),
        }
    }
}

/// One packed block of the right operand and what is multiplied by it.
#[derive(Clone, Copy)]
struct Pass<'a> {
    product: &'a Product<'a>,
    from: usize,
    depth: usize,
    b: &'a [f32],
    width: usize,
}

impl Pass<'_> {
    /// Packs `m` rows from `row` on and multiplies them by all columns of `b`; `dst` begins with the first of them.
    fn rows<const H: usize, const LOW: usize>(
        &self,
        [row, m]: [usize; 2],
        b: &[f32],
        n: usize,
        dst: &mut [f32],
        stride: usize,
        add: bool,
    ) {
        let (a, depth) = (self.product.a, self.depth);
        let lines = Lines {
            data: &a.data[row * a.row_stride + self.from * a.col_stride..],
            n: m,
            line_stride: a.row_stride,
            step: a.col_stride,
        };
        with_packed(1, m.next_multiple_of(H) * depth, |packed| {
            pack::<H, LOW>(lines, depth, packed);
            let block = Block { a: packed, b, m, n, k: depth, factor: self.product.factor, add };
            kernel::run(self.product.isa, block, dst, stride);
        });
    }

    fn add(&self) -> bool {
        self.from > 0 || self.product.mode == Store::Add
    }

    /// Tasks own groups of rows.
    fn by_rows<const H: usize, const LOW: usize>(&self, dst: &mut [f32], threads: usize) {
        let (m, stride) = (self.product.a.rows, self.product.stride);
        // Several tasks per thread, so that a thread that is held up does not hold up the others.
        let rows = if threads == 1 { ROWS } else { ROWS.min(m.div_ceil(4 * threads)) }.next_multiple_of(H);
        let one = |(task, dst): (usize, &mut [f32])| {
            let row = task * rows;
            self.rows::<H, LOW>([row, rows.min(m - row)], self.b, self.width, dst, stride, self.add());
        };
        match threads {
            1 => dst.chunks_mut(rows * stride).enumerate().for_each(one),
            _ => dst.par_chunks_mut(rows * stride).enumerate().for_each(one),
        }
    }

    /// Tasks own groups of columns, make them aside and hand them over.
    fn by_columns<const H: usize, const LOW: usize, const W: usize>(&self, dst: &mut [f32], threads: usize) {
        let (m, stride) = (self.product.a.rows, self.product.stride);
        let strips = self.width.div_ceil(W).div_ceil(4 * threads).max(1);
        let columns = strips * W;
        let parts: Vec<Vec<f32>> = self
            .b
            .par_chunks(columns * self.depth)
            .enumerate()
            .map(|(task, b)| {
                let n = columns.min(self.width - task * columns);
                let mut part = vec![0.0; m * n];
                self.rows::<H, LOW>([0, m], b, n, &mut part, n, false);
                part
            })
            .collect();
        for (task, part) in parts.iter().enumerate() {
            let n = part.len() / m;
            for (dst, part) in dst.chunks_mut(stride).zip(part.chunks(n)) {
                let dst = &mut dst[task * columns..][..n];
                match self.add() {
                    true => dst.iter_mut().zip(part).for_each(|(dst, part)| *dst += part),
                    false => dst.copy_from_slice(part),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 17) as f32 - 8.0).collect()
    }

    /// Small whole numbers make every sum exact.
    #[test]
    fn products_are_exact_on_whole_numbers() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (1, 9, 33), (17, 1, 4), (70, 33, 65), (2, 3, 0), (0, 4, 2)] {
            let (a_stride, b_stride, stride) = (k + 2, k + 1, n + 3);
            let (a, b) = (numbers(m * a_stride, 1), numbers(n * b_stride, 2));
            let before = numbers(m * stride, 3);
            for mode in [Store::Replace, Store::Add] {
                let mut dst = before.clone();
                let b_view = View::rows(&b, n, k, b_stride).transposed();
                multiply(&mut dst, stride, mode, View::rows(&a, m, k, a_stride), b_view, 2.0);
                for i in 0..m * stride {
                    let (row, col) = (i / stride, i % stride);
                    let old = before[i];
                    let want = match col < n {
                        true => {
                            let sum: f32 = (0..k).map(|l| a[row * a_stride + l] * b[col * b_stride + l]).sum();
                            2.0 * sum + if mode == Store::Add { old } else { 0.0 }
                        }
                        false => old,
                    };
                    assert_eq!(dst[i], want, "{m}x{n}x{k} {mode:?} at {row},{col}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn short_destination_panics() {
        let a = [1.0; 4];
        multiply(&mut [0.0; 3], 2, Store::Replace, View::rows(&a, 2, 2, 2), View::rows(&a, 2, 2, 2), 1.0);
    }

    #[test]
    #[should_panic(expected = "matrix product")]
    fn short_operand_panics() {
        let a = [1.0; 3];
        multiply(&mut [0.0; 4], 2, Store::Replace, View::rows(&a, 2, 2, 2), View::rows(&a, 2, 2, 2), 1.0);
    }
}
