//! Decoding FP8 on the CPU, on all threads; the products are those of the linear layer.

use std::array;

use crate::cpu::parallel::{rows_per_task, tasks1};
use crate::packed::{FP8_CODES, factor, number};

/// Decodes rows of `i` numbers: codes `[rows, i/4]` in words, `scales [rows]`.
pub(crate) fn decode(codes: &[i32], scales: &[i32], i: usize, out: &mut [f32]) {
    let table: [f32; 256] = array::from_fn(|code| number(code as u8));
    let (rows, words) = (rows_per_task(i), i / FP8_CODES);
    tasks1((out, rows * i), |task, out| {
        let rows = codes[task * rows * words..].chunks(words).zip(&scales[task * rows..]);
        for (out, (codes, scale)) in out.chunks_mut(i).zip(rows) {
            let factor = factor(*scale);
            for (out, word) in out.chunks_exact_mut(FP8_CODES).zip(codes) {
                for (out, code) in out.iter_mut().zip(word.to_le_bytes()) {
                    *out = table[code as usize] * factor;
                }
            }
        }
    });
}
