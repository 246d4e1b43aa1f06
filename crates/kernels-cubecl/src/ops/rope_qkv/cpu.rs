//! Rotary embedding on the CPU, in place: threads over groups of rows.

use multiversion::multiversion;

use crate::cpu::parallel::{rows_per_task, tasks1};
use crate::{HeadLayout, Rotation};

/// Turns the query and key heads of `qkv [m, width]`; `cos` and `sin` are `[m, h/2]`.
pub(crate) fn rotate(qkv: &mut [f32], cos: &[f32], sin: &[f32], heads: HeadLayout, rotation: Rotation) {
    let (width, half) = (heads.width(), heads.d_head / 2);
    let rows = rows_per_task(width);
    let sign = match rotation {
        Rotation::Forward => 1.0,
        Rotation::Backward => -1.0,
    };
    tasks1((qkv, rows * width), |task, qkv| {
        for (i, row) in qkv.chunks_mut(width).enumerate() {
            let at = (task * rows + i) * half;
            let turned = &mut row[..heads.q_width() + heads.kv_width()];
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            turn_row(turned, cos, sin, sign);
        }
    });
}

/// A sign of 1 or −1 on the sine changes no bit of the products.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn turn_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    for head in row.chunks_exact_mut(2 * half) {
        let (lo, hi) = head.split_at_mut(half);
        for (((lo, hi), &cos), &sin) in lo.iter_mut().zip(hi).zip(cos).zip(sin) {
            let (x, y, sin) = (*lo, *hi, sign * sin);
            *lo = x * cos - y * sin;
            *hi = y * cos + x * sin;
        }
    }
}
