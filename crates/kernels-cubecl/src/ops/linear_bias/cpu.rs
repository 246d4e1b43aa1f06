//! Biases on the CPU: added to finished rows; their gradient is a sum over rows, threads over ranges of columns.

use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::parallel::{rows_per_task, tasks1};

/// Columns of a task: neighbouring numbers of a row, which are read together.
const COLUMNS: usize = 256;

/// Adds `bias [o]` to the rows of `y [m, o]`.
pub(crate) fn add(y: &mut [f32], bias: &[f32]) {
    let o = bias.len();
    tasks1((y, rows_per_task(o) * o), |_, y| y.chunks_mut(o).for_each(|row| add_row(row, bias)));
}

/// Adds `bias` to a row.
pub(crate) fn add_row(row: &mut [f32], bias: &[f32]) {
    row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
}

/// Sums of the columns of each group of rows of `dy [m, o]`: `out [groups, o]`, which is overwritten.
pub(crate) fn column_sums(dy: &[f32], groups: &[Range<usize>], out: &mut [f32], o: usize) {
    let tasks: Vec<_> = out
        .chunks_mut(o.max(1))
        .zip(groups)
        .flat_map(|(out, rows)| out.chunks_mut(COLUMNS).enumerate().map(move |(task, out)| (rows.clone(), task, out)))
        .collect();
    tasks.into_par_iter().for_each(|(rows, task, out)| {
        let mut sums = [0.0f64; COLUMNS];
        for row in rows {
            let dy = &dy[row * o + task * COLUMNS..][..out.len()];
            sums.iter_mut().zip(dy).for_each(|(sum, &dy)| *sum += f64::from(dy));
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    });
}
