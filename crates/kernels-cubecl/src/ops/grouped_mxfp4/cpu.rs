//! MXFP4 on the CPU: one expert is decoded at a time, on all threads, and multiplied on all threads.

use std::ops::Range;

use multiversion::multiversion;

use crate::MXFP4_BLOCK;
use crate::cpu::parallel::tasks1;
use crate::mxfp4::{CODES, SCALES, TABLE, power};
use crate::ops::{linear, linear_bias};

/// An MXFP4 matrix on the host: codes `[rows, i/8]` and scales `[rows, ⌈i/128⌉]` in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    pub(crate) codes: &'a [i32],
    pub(crate) scales: &'a [i32],
    pub(crate) i: usize,
}

impl Words<'_> {
    /// Decodes `out.len() / i` rows from `row` on.
    pub(crate) fn decode(&self, row: usize, out: &mut [f32]) {
        let (i, width) = (self.i, self.i.div_ceil(MXFP4_BLOCK * SCALES));
        let rows = crate::cpu::parallel::rows_per_task(i);
        tasks1((out, rows * i), |task, out| {
            let first = row + task * rows;
            let codes = self.codes[first * (i / CODES)..].chunks(i / CODES);
            let scales = self.scales[first * width..].chunks(width);
            for ((out, codes), scales) in out.chunks_mut(i).zip(codes).zip(scales) {
                decode_row(codes, scales, out);
            }
        });
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn decode_row(codes: &[i32], scales: &[i32], out: &mut [f32]) {
    const WORDS: usize = MXFP4_BLOCK / CODES;
    for (block, (out, codes)) in out.chunks_exact_mut(MXFP4_BLOCK).zip(codes.chunks_exact(WORDS)).enumerate() {
        let factor = power(scales[block / SCALES].to_le_bytes()[block % SCALES]);
        for (out, word) in out.chunks_exact_mut(CODES).zip(codes) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = TABLE[(word >> (4 * j) & 15) as usize] * factor;
            }
        }
    }
}

/// `y [m, o]`, which is zero, from `x [m, i]` and the biases `[e·o]`.
pub(crate) fn forward(x: &[f32], w: Words, bias: Option<&[f32]>, groups: &[Range<usize>], y: &mut [f32], o: usize) {
    let i = w.i;
    each(w, groups, o, |expert, group, w| {
        let (x, y) = (&x[group.start * i..group.end * i], &mut y[group.start * o..group.end * o]);
        linear::cpu::forward(x, w, y, [group.len(), i, o]);
        if let Some(bias) = bias {
            linear_bias::cpu::add(y, &bias[expert * o..][..o]);
        }
    });
}

/// `dx [m, i]`, which is zero, from `dy [m, o]`.
pub(crate) fn backward_x(dy: &[f32], w: Words, groups: &[Range<usize>], dx: &mut [f32], o: usize) {
    let i = w.i;
    each(w, groups, o, |_, group, w| {
        let (dy, dx) = (&dy[group.start * o..group.end * o], &mut dx[group.start * i..group.end * i]);
        linear::cpu::backward_x(dy, w, dx, [group.len(), i, o]);
    });
}

/// Calls `f(expert, rows, weight)` for each expert with rows.
fn each(w: Words, groups: &[Range<usize>], o: usize, mut f: impl FnMut(usize, Range<usize>, &[f32])) {
    let mut weight = vec![0.0; o * w.i];
    for (expert, group) in groups.iter().enumerate().filter(|(_, group)| !group.is_empty()) {
        w.decode(expert * o, &mut weight);
        f(expert, group.clone(), &weight);
    }
}
