//! Sum of squares on the CPU: f64 lanes, pieces of fixed length.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::cpu::parallel::TASK;

/// Independent sums of a piece.
const LANES: usize = 16;

/// `Σ x²`.
pub(crate) fn forward(x: &[f32]) -> f64 {
    let sums: Vec<f64> = match x.len() <= TASK {
        true => vec![piece(x)],
        false => x.par_chunks(TASK).map(piece).collect(),
    };
    sums.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn piece(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let wide = f64::from(chunk[i]);
            lanes[i] += wide * wide;
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.iter().sum()
}
