//! Embedding on the CPU: threads over tokens forward, over ranges of the table's rows backward.

use crate::cpu::parallel::{rows_per_task, tasks1};

/// Copies the rows of `w [v, d]` by id into `y [m, d]`.
pub(crate) fn forward(w: &[f32], ids: &[i32], y: &mut [f32], d: usize) {
    let v = w.len().checked_div(d).unwrap_or(0);
    let rows = rows_per_task(d);
    tasks1((y, rows * d), |task, y| {
        for (y, &id) in y.chunks_mut(d).zip(&ids[task * rows..]) {
            let id = row_of(id, v);
            y.copy_from_slice(&w[id * d..][..d]);
        }
    });
}

/// Sums the rows of `dy [m, d]` by id into `dw [v, d]`, which is overwritten.
pub(crate) fn backward(dy: &[f32], ids: &[i32], dw: &mut [f32], d: usize) {
    let v = dw.len().checked_div(d).unwrap_or(0);
    let rows = rows_per_task(d);
    let tokens = by_task(ids, v, rows);
    tasks1((dw, rows * d), |task, dw| {
        dw.fill(0.0);
        for &m in &tokens[task] {
            let row = ids[m as usize] as usize - task * rows;
            for (dw, dy) in dw[row * d..][..d].iter_mut().zip(&dy[m as usize * d..][..d]) {
                *dw += dy;
            }
        }
    });
}

/// For each range of `rows` table rows the tokens that fall into it, in their order.
fn by_task(ids: &[i32], v: usize, rows: usize) -> Vec<Vec<u32>> {
    let mut tokens = vec![Vec::new(); v.div_ceil(rows)];
    for (m, &id) in ids.iter().enumerate() {
        tokens[row_of(id, v) / rows].push(u32::try_from(m).expect("a batch has fewer than 2³² tokens"));
    }
    tokens
}

fn row_of(id: i32, v: usize) -> usize {
    match usize::try_from(id) {
        Ok(row) if row < v => row,
        _ => panic!("embedding: id {id} is outside the table of {v} rows"),
    }
}
