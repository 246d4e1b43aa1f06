//! Decoding MXFP4 on CUDA: a thread per word of eight codes.

use burn::tensor::{DType, Shape};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::MXFP4_BLOCK;
use crate::cuda::launch::{check_indices, check_lengths, dense, empty, one_thread_each};
use crate::cuda::{Buffer, Runtime};
use crate::mxfp4::{CODES, SCALES};

/// Numbers that a thread writes at once: 16 bytes of f32.
const LANES: usize = 4;

/// The number of a code.
#[cube]
fn number(code: u32) -> f32 {
    let size = f32::cast_from(code & 7u32);
    // In steps of a half up to 2, of one up to 4, then 6.
    let large = select(size < 6.0f32, size - 2.0f32, 2.0f32 * size - 8.0f32);
    let size = select(size < 4.0f32, 0.5f32 * size, large);
    select((code & 8u32) == 0u32, size, -size)
}

/// `2^(scale − 127)`; 255 is NaN.
#[cube]
fn power(scale: u32) -> f32 {
    let bits = select(scale == 0u32, 0x0040_0000u32, scale << 23u32);
    f32::reinterpret(select(scale == 255u32, 0x7FC0_0000u32, bits))
}

/// `words` and `scale_words` are the widths of a row.
#[cube(launch)]
fn decode_kernel<F: Float, N: Size>(
    codes: &Array<i32>,
    scales: &Array<i32>,
    out: &mut Array<Vector<F, N>>,
    words: u32,
    scale_words: u32,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if ABSOLUTE_POS < codes.len() {
        let (row, word) = (i / words, i % words);
        let block = word / comptime!((MXFP4_BLOCK / CODES) as u32);
        let scale_word = u32::cast_from(scales[(row * scale_words + block / comptime!(SCALES as u32)) as usize]);
        let factor = power((scale_word >> (8u32 * (block % comptime!(SCALES as u32)))) & 255u32);
        let bits = u32::cast_from(codes[ABSOLUTE_POS]);
        #[unroll]
        for part in 0..comptime!(CODES / LANES) {
            let mut numbers = Vector::<f32, N>::empty();
            #[unroll]
            for k in 0..comptime!(LANES) {
                let code = (bits >> comptime!((4 * (part * LANES + k)) as u32)) & 15u32;
                numbers[k] = number(code) * factor;
            }
            out[ABSOLUTE_POS * comptime!(CODES / LANES) + part] = Vector::cast_from(numbers);
        }
    }
}

/// The numbers `[rows, i]` in `dtype`.
pub(crate) fn decode(codes: Buffer, scales: Buffer, [rows, i]: [usize; 2], dtype: DType) -> Buffer {
    let (codes, scales) = (dense(codes), dense(scales));
    let (words, scale_words) = (i / CODES, i.div_ceil(MXFP4_BLOCK * SCALES));
    let out = empty(&codes, Shape::new([rows, i]), dtype);
    if rows * i > 0 {
        check_indices("mxfp4 decode", &[&out]);
        check_lengths("mxfp4 decode", &[(&codes, rows * words), (&scales, rows * scale_words)]);
        let (count, dim) = one_thread_each(rows * words);
        let client = codes.client.clone();
        decode_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            LANES,
            codes.into_array_arg(),
            scales.into_array_arg(),
            out.clone().into_array_arg(),
            words as u32,
            scale_words as u32,
            dtype.into(),
        );
    }
    out
}
