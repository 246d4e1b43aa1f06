//! How GGUF stores numbers: plain floats, and blocks of 32 along a row with a scale of their own.
//!
//! # Source
//! The rules of ggml's reference quantisers (`ggml-quants.c`), as the Python package `gguf` has them.

use half::{bf16, f16};
use kernels_cubecl::{MXFP4_BLOCK, MXFP4_BYTES};

/// Numbers of a block of either quantised type.
pub(crate) const BLOCK: usize = 32;

/// The element types that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Blocks of 32 signed bytes with an f16 scale.
    Q8_0,
    /// Blocks of 32 e2m1 numbers with a power of two.
    Mxfp4,
}

impl Kind {
    /// Its number in a file.
    pub(crate) fn id(self) -> u32 {
        match self {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::Q8_0 => 8,
            Kind::Bf16 => 30,
            Kind::Mxfp4 => 39,
        }
    }

    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::F32 => "f32",
            Kind::F16 => "f16",
            Kind::Q8_0 => "q8_0",
            Kind::Bf16 => "bf16",
            Kind::Mxfp4 => "mxfp4",
        }
    }

    /// Numbers that are stored together.
    pub(crate) fn block(self) -> usize {
        match self {
            Kind::F32 | Kind::F16 | Kind::Bf16 => 1,
            Kind::Q8_0 | Kind::Mxfp4 => BLOCK,
        }
    }

    /// Bytes of a row of `n` numbers, which are whole blocks.
    pub(crate) fn row_bytes(self, n: usize) -> usize {
        n / self.block()
            * match self {
                Kind::F32 => 4,
                Kind::F16 | Kind::Bf16 => 2,
                Kind::Q8_0 => 2 + BLOCK,
                Kind::Mxfp4 => 1 + MXFP4_BYTES,
            }
    }

    /// Largest size of a number that stays finite.
    pub(crate) fn largest(self) -> f32 {
        // The midpoint between the largest f16 and the next power of two rounds to infinity.
        const F16_END: f32 = 65_520.0;
        match self {
            Kind::F32 | Kind::Mxfp4 => f32::MAX,
            Kind::F16 => F16_END.next_down(),
            Kind::Bf16 => f32::from_bits(0x7F7F_7FFF),
            Kind::Q8_0 => (127.0 * F16_END).next_down(),
        }
    }

    /// Writes a row of whole blocks.
    pub(crate) fn encode(self, row: &[f32], out: &mut [u8]) {
        let two = |out: &mut [u8], bits: &dyn Fn(f32) -> u16| {
            for (out, x) in out.chunks_exact_mut(2).zip(row) {
                out.copy_from_slice(&bits(*x).to_le_bytes());
            }
        };
        match self {
            Kind::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
            Kind::F16 => two(out, &|x| f16::from_f32(x).to_bits()),
            Kind::Bf16 => two(out, &|x| bf16::from_f32(x).to_bits()),
            Kind::Q8_0 => each_block(row, out, 2 + BLOCK, q8_0),
            Kind::Mxfp4 => each_block(row, out, 1 + MXFP4_BYTES, mxfp4),
        }
    }
}

fn each_block(row: &[f32], out: &mut [u8], bytes: usize, f: impl Fn(&[f32], &mut [u8])) {
    row.chunks_exact(BLOCK).zip(out.chunks_exact_mut(bytes)).for_each(|(block, out)| f(block, out));
}

fn peak(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |peak: f32, x| peak.max(x.abs()))
}

/// The scale is the peak over 127; bytes are rounded half away from zero.
fn q8_0(block: &[f32], out: &mut [u8]) {
    let scale = peak(block) / 127.0;
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out[..2].copy_from_slice(&f16::from_f32(scale).to_bits().to_le_bytes());
    for (out, x) in out[2..].iter_mut().zip(block) {
        *out = (x * factor).round() as i8 as u8;
    }
}

/// Twice the numbers of the codes.
const DOUBLED: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The peak keeps its exponent, so that what exceeds six times the scale saturates; the first of equally near codes counts.
///
/// This is not the rule of the published GPT-OSS weights, which rounds the scale up.
fn mxfp4(block: &[f32], out: &mut [u8]) {
    let peak = peak(block);
    let scale = if peak > 0.0 { (peak.log2().floor() - 2.0 + 127.0).max(0.0) as u8 } else { 0 };
    // Half of 2^(scale − 127), for the doubled numbers.
    let half = f32::from_bits(if scale < 2 { 0x0020_0000 << scale } else { (u32::from(scale) - 1) << 23 });
    let code = |x: f32| {
        let mut best = (0, f32::INFINITY);
        for (code, number) in DOUBLED.iter().enumerate() {
            let error = (half * number - x).abs();
            if error < best.1 {
                best = (code, error);
            }
        }
        best.0 as u8
    };
    out[0] = scale;
    let (low, high) = block.split_at(BLOCK / 2);
    for ((out, low), high) in out[1..].iter_mut().zip(low).zip(high) {
        *out = code(*low) | code(*high) << 4;
    }
}

/// A row of MXFP4 as checkpoints have it, in GGUF's order: there a byte has neighbours, here numbers half a block apart.
pub(crate) fn repack(blocks: &[u8], scales: &[u8], out: &mut [u8]) {
    const HALF: usize = MXFP4_BLOCK / 2;
    let code = |block: &[u8], at: usize| block[at / 2] >> (4 * (at % 2)) & 15;
    let blocks = blocks.chunks_exact(MXFP4_BYTES).zip(scales);
    for ((block, scale), out) in blocks.zip(out.chunks_exact_mut(1 + MXFP4_BYTES)) {
        out[0] = *scale;
        for (at, out) in out[1..].iter_mut().enumerate() {
            *out = code(block, at) | code(block, at + HALF) << 4;
        }
    }
}
