//! The inner loops of a matrix product: a tile of the result stays in registers while the sum runs.
//!
//! Plain loops over arrays of constant size, which the compiler turns into vector code for the instruction set of each
//! entry point. The height and width of a tile are chosen so that it fills the registers of that set.

use multiversion::multiversion;

/// Tile of the result per instruction set: height, height of a last, lower tile, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// 32 registers of 16 numbers: 12 or 4 by 32.
    Avx512,
    /// 16 registers of 8 numbers: 6 or 2 by 16.
    Avx2,
    /// Whatever the compiler may take for granted: 4 or 1 by 8.
    Baseline,
}

impl Isa {
    /// The best that this machine has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // The standard library remembers the answer.
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Baseline
    }
}

/// One block of a product, both operands packed: see [`super::pack`].
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Strips of rows of the left operand.
    pub(super) a: &'a [f32],
    /// Strips of columns of the right operand.
    pub(super) b: &'a [f32],
    /// Rows of the result.
    pub(super) m: usize,
    /// Columns of the result.
    pub(super) n: usize,
    /// Length of the sums.
    pub(super) k: usize,
    /// Factor on the sums.
    pub(super) factor: f32,
    /// Whether the sums are added to what is there.
    pub(super) add: bool,
}

/// `c ←(+) factor·a·b` for rows of `c` that lie `stride` apart.
pub(super) fn run(isa: Isa, block: Block, c: &mut [f32], stride: usize) {
    match isa {
        Isa::Avx512 => tiles::<12, 4, 32>(block, c, stride, [avx512_12, avx512_4]),
        Isa::Avx2 => tiles::<6, 2, 16>(block, c, stride, [avx2_6, avx2_2]),
        Isa::Baseline => tiles::<4, 1, 8>(block, c, stride, [baseline_4, baseline_1]),
    }
}

/// Where a tile goes: rows of `stride`, sums times `factor`, added to what is there or not.
#[derive(Clone, Copy)]
struct Target {
    stride: usize,
    factor: f32,
    add: bool,
}

/// Makes one whole tile from a packed strip of rows and one of columns.
type Tile = fn(&[f32], &[f32], &mut [f32], Target);

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma+avx2"))]
fn avx512_12(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    tile::<12, 32, true>(a, b, c, target);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma+avx2"))]
fn avx512_4(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    tile::<4, 32, true>(a, b, c, target);
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn avx2_6(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    tile::<6, 16, true>(a, b, c, target);
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn avx2_2(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    tile::<2, 16, true>(a, b, c, target);
}

fn baseline_4(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    tile::<4, 8, false>(a, b, c, target);
}

fn baseline_1(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    tile::<1, 8, false>(a, b, c, target);
}

/// A strip of columns stays in the innermost cache while all strips of rows pass by.
fn tiles<const H: usize, const LOW: usize, const W: usize>(
    block: Block,
    c: &mut [f32],
    stride: usize,
    [high, low]: [Tile; 2],
) {
    let Block { a, b, m, n, k, factor, add } = block;
    let target = Target { stride, factor, add };
    for (b, col) in b.chunks_exact(k * W).zip((0..n).step_by(W)) {
        let width = W.min(n - col);
        for row in (0..m).step_by(H) {
            let left = m - row;
            let (tile, height) = if left <= LOW { (low, LOW) } else { (high, H) };
            let (a, c) = (&a[row * k..][..height * k], &mut c[row * stride + col..]);
            match left >= height && width == W {
                true => tile(a, b, c, target),
                false => border::<W>(tile, [a, b], c, target, [left.min(height), width]),
            }
        }
    }
}

/// A tile at the border of the result is made aside and copied as far as it goes.
fn border<const W: usize>(tile: Tile, [a, b]: [&[f32]; 2], c: &mut [f32], target: Target, [height, width]: [usize; 2]) {
    let mut aside = [0.0; 12 * 32];
    tile(a, b, &mut aside, Target { stride: W, add: false, ..target });
    for (c, aside) in c.chunks_mut(target.stride).zip(aside.chunks(W)).take(height) {
        for (c, aside) in c.iter_mut().zip(aside).take(width) {
            *c = if target.add { *c + aside } else { *aside };
        }
    }
}

/// All indices into `acc` are constants once the loops are unrolled, which keeps it in registers.
#[inline(always)]
fn tile<const H: usize, const W: usize, const FMA: bool>(a: &[f32], b: &[f32], c: &mut [f32], target: Target) {
    let mut acc = [[0.0f32; W]; H];
    for (a, b) in a.as_chunks::<H>().0.iter().zip(b.as_chunks::<W>().0) {
        for i in 0..H {
            for j in 0..W {
                acc[i][j] = if FMA { a[i].mul_add(b[j], acc[i][j]) } else { a[i] * b[j] + acc[i][j] };
            }
        }
    }
    let Target { stride, factor, add } = target;
    for i in 0..H {
        let c = &mut c[i * stride..][..W];
        if !add {
            c.fill(0.0);
        }
        for j in 0..W {
            c[j] += factor * acc[i][j];
        }
    }
}
