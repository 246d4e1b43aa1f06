//! Splitting work into tasks of a fixed size, so that results do not depend on the number of threads.

use rayon::prelude::*;

/// Elements of a task: large beside the cost of handing it over, small beside a core's cache.
pub(crate) const TASK: usize = 1 << 15;

/// Rows of this width that make a task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// A slice and the length of one task's piece of it.
pub(crate) type Pieces<'a> = (&'a mut [f32], usize);

/// Calls `f(task, piece)` for each piece; one piece runs on the calling thread.
pub(crate) fn tasks1((a, len): Pieces, f: impl Fn(usize, &mut [f32]) + Sync) {
    match a.len() <= len {
        true if a.is_empty() => {}
        true => f(0, a),
        false => a.par_chunks_mut(len).enumerate().for_each(|(task, a)| f(task, a)),
    }
}

/// Like [`tasks1`], over two slices that have the same number of pieces.
pub(crate) fn tasks2([(a, a_len), (b, b_len)]: [Pieces; 2], f: impl Fn(usize, [&mut [f32]; 2]) + Sync) {
    match a.len() <= a_len {
        true if a.is_empty() => {}
        true => f(0, [a, b]),
        false => {
            let pieces = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len));
            pieces.enumerate().for_each(|(task, (a, b))| f(task, [a, b]));
        }
    }
}

/// Like [`tasks1`], over three slices that have the same number of pieces.
pub(crate) fn tasks3([(a, a_len), (b, b_len), (c, c_len)]: [Pieces; 3], f: impl Fn(usize, [&mut [f32]; 3]) + Sync) {
    match a.len() <= a_len {
        true if a.is_empty() => {}
        true => f(0, [a, b, c]),
        false => {
            let pieces = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len)).zip(c.par_chunks_mut(c_len));
            pieces.enumerate().for_each(|(task, ((a, b), c))| f(task, [a, b, c]));
        }
    }
}
