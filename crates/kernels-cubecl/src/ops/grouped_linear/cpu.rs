//! A linear layer per expert on the CPU: many small products at once, or few large ones on all threads each.

use std::ops::Range;

use rayon::prelude::*;

use crate::matrix::{Store, View, multiply, product};
use crate::ops::linear_bias::cpu::add_row;

/// Most rows of a task that runs on one thread.
const ROWS: usize = 240;

/// The rows of each expert.
///
/// # Panics
/// When the bounds do not ascend or end beyond `m` rows.
pub(crate) fn groups(offsets: &[i32], m: usize) -> Vec<Range<usize>> {
    let bound = |at: i32| usize::try_from(at).ok().filter(|at| *at <= m);
    let one = |pair: &[i32]| match (bound(pair[0]), bound(pair[1])) {
        (Some(start), Some(end)) if start <= end => start..end,
        _ => panic!("grouped_linear: bounds of the experts must ascend within {m} rows, got {offsets:?}"),
    };
    offsets.windows(2).map(one).collect()
}

/// Rows of the result that one task makes.
struct Task<'a> {
    expert: usize,
    /// First of them: a row of the result, or of an expert's gradient.
    first: usize,
    out: &'a mut [f32],
}

/// Runs `f(task, all threads)` for the pieces of `pieces(expert, out)`, cut into rows of `width`: cut small and side by side
/// where that keeps every thread busy, otherwise whole and one after the other. An element is the same sum either way.
fn run<'a>(wholes: Vec<Task<'a>>, width: usize, f: impl Fn(Task, bool) + Sync) {
    let wholes: Vec<Task<'a>> = wholes.into_iter().filter(|task| !task.out.is_empty()).collect();
    let pieces = wholes.iter().map(|task| (task.out.len() / width).div_ceil(ROWS)).sum::<usize>();
    if pieces < 2 * rayon::current_num_threads() {
        wholes.into_iter().for_each(|task| f(task, true));
        return;
    }
    let cut = |task: Task<'a>| {
        let parts = task.out.chunks_mut(ROWS * width).enumerate();
        parts.map(move |(i, out)| Task { expert: task.expert, first: task.first + i * ROWS, out })
    };
    let tasks: Vec<Task> = wholes.into_iter().flat_map(cut).collect();
    tasks.into_par_iter().for_each(|task| f(task, false));
}

/// A product on one thread or on all of them.
fn multiply_on(all: bool, dst: &mut [f32], stride: usize, mode: Store, a: View, b: View) {
    match all {
        true => product(dst, stride, mode, a, b),
        false => multiply(dst, stride, mode, a, b, 1.0),
    }
}

/// The rows of `out` that belong to each expert; those behind are left alone.
fn by_rows<'a>(mut out: &'a mut [f32], groups: &[Range<usize>], width: usize) -> Vec<Task<'a>> {
    let mut tasks = Vec::with_capacity(groups.len());
    let mut at = 0;
    for (expert, group) in groups.iter().enumerate() {
        let (_, rest) = out.split_at_mut((group.start - at) * width);
        let (own, rest) = rest.split_at_mut(group.len() * width);
        tasks.push(Task { expert, first: group.start, out: own });
        (out, at) = (rest, group.end);
    }
    tasks
}

/// `y [m, o]`, which is zero, from `x [m, i]`, `w [e·o, i]` and `b [e·o]`.
pub(crate) fn forward(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    groups: &[Range<usize>],
    y: &mut [f32],
    [i, o]: [usize; 2],
) {
    run(by_rows(y, groups, o), o, |task, all| {
        let (expert, rows) = (task.expert, task.out.len() / o);
        let x = View::rows(&x[task.first * i..], rows, i, i);
        let w = View::rows(&w[expert * o * i..], o, i, i).transposed();
        multiply_on(all, task.out, o, Store::Replace, x, w);
        if let Some(bias) = bias {
            task.out.chunks_mut(o).for_each(|row| add_row(row, &bias[expert * o..][..o]));
        }
    });
}

/// `dx [m, i]`, which is zero, from `dy [m, o]` and `w [e·o, i]`.
pub(crate) fn backward_x(dy: &[f32], w: &[f32], groups: &[Range<usize>], dx: &mut [f32], [i, o]: [usize; 2]) {
    run(by_rows(dx, groups, i), i, |task, all| {
        let dy = View::rows(&dy[task.first * o..], task.out.len() / i, o, o);
        let w = View::rows(&w[task.expert * o * i..], o, i, i);
        multiply_on(all, task.out, i, Store::Replace, dy, w);
    });
}

/// Adds the gradient of the weight to `dw [e·o, i]`; experts without rows are not touched.
pub(crate) fn add_backward_w(dy: &[f32], x: &[f32], groups: &[Range<usize>], dw: &mut [f32], [i, o]: [usize; 2]) {
    let experts = dw.chunks_mut((o * i).max(1)).zip(groups).enumerate();
    let wholes = experts
        .filter(|(_, (_, group))| !group.is_empty())
        .map(|(expert, (out, _))| Task { expert, first: 0, out })
        .collect();
    run(wholes, i, |task, all| {
        let (group, rows) = (&groups[task.expert], task.out.len() / i);
        let dy = View::rows(&dy[group.start * o + task.first..], group.len(), rows, o).transposed();
        let x = View::rows(&x[group.start * i..], group.len(), i, i);
        multiply_on(all, task.out, i, Store::Add, dy, x);
    });
}
