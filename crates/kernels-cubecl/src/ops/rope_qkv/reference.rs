//! Rotary embedding by its definition: plain loops in f64.

use crate::HeadLayout;

/// Rotated rows; `tables` are `cos` and `sin`, `[m, h/2]` each.
pub fn forward(qkv: &[f64], [cos, sin]: [&[f64]; 2], heads: HeadLayout) -> Vec<f64> {
    let (mut y, half) = (qkv.to_vec(), heads.d_head / 2);
    for (m, row) in y.chunks_mut(heads.width()).enumerate() {
        for head in 0..heads.n_heads + heads.n_kv_heads {
            for i in 0..half {
                let (c, s) = (cos[m * half + i], sin[m * half + i]);
                let (at_lo, at_hi) = (head * heads.d_head + i, head * heads.d_head + half + i);
                let (lo, hi) = (row[at_lo], row[at_hi]);
                row[at_lo] = lo * c - hi * s;
                row[at_hi] = hi * c + lo * s;
            }
        }
    }
    y
}

/// Gradient of `qkv` for the upstream gradient `dy`.
pub fn backward(dy: &[f64], [cos, sin]: [&[f64]; 2], heads: HeadLayout) -> Vec<f64> {
    let back: Vec<f64> = sin.iter().map(|s| -s).collect();
    forward(dy, [cos, &back], heads)
}
