//! Decoding FP8 on CUDA: a thread per word of four codes.

use burn::tensor::{DType, Shape};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, check_lengths, dense, empty, one_thread_each};
use crate::cuda::{Buffer, Runtime};
use crate::packed::FP8_CODES;

/// The number of a code.
#[cube]
fn number(code: u32) -> f32 {
    let size = code & 127u32;
    // Exponent and significand stand as in an f32, with another bias; below the smallest normal number codes count steps.
    let bits = select(size == 127u32, 0x7FC0_0000u32, (size << 20u32) + 0x3C00_0000u32);
    let value = select(size < 8u32, f32::cast_from(size) * 0.001953125f32, f32::reinterpret(bits));
    select((code & 128u32) == 0u32, value, -value)
}

/// `words` is the width of a row.
#[cube(launch)]
fn decode_kernel<F: Float, N: Size>(
    codes: &Array<i32>,
    scales: &Array<i32>,
    out: &mut Array<Vector<F, N>>,
    words: u32,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if ABSOLUTE_POS < codes.len() {
        let factor = f32::reinterpret(u32::cast_from(scales[(i / words) as usize]) << 23u32);
        let bits = u32::cast_from(codes[ABSOLUTE_POS]);
        let mut numbers = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..comptime!(FP8_CODES) {
            let code = (bits >> comptime!((8 * k) as u32)) & 255u32;
            numbers[k] = number(code) * factor;
        }
        out[ABSOLUTE_POS] = Vector::cast_from(numbers);
    }
}

/// The numbers `[rows, i]` in `dtype`.
pub(crate) fn decode(codes: Buffer, scales: Buffer, [rows, i]: [usize; 2], dtype: DType) -> Buffer {
    let (codes, scales) = (dense(codes), dense(scales));
    let words = i / FP8_CODES;
    let out = empty(&codes, Shape::new([rows, i]), dtype);
    if rows * i > 0 {
        check_indices("fp8 decode", &[&out]);
        check_lengths("fp8 decode", &[(&codes, rows * words), (&scales, rows)]);
        let (count, dim) = one_thread_each(rows * words);
        let client = codes.client.clone();
        decode_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            FP8_CODES,
            codes.into_array_arg(),
            scales.into_array_arg(),
            out.clone().into_array_arg(),
            words as u32,
            dtype.into(),
        );
    }
    out
}
