//! Copying a block of an operand into strips, so that the inner loops read memory in order.
//!
//! A strip holds `W` neighbouring rows of the left operand (or columns of the right one): for each step of the sum the `W`
//! numbers that take part in it. A strip that reaches beyond the operand is filled with zeros, whose products are dropped.

/// A block of an operand seen along the sum: `line` is a row of the left or a column of the right operand.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    /// Begins with the first number of the first line.
    pub(super) data: &'a [f32],
    /// Number of lines.
    pub(super) n: usize,
    /// Distance from one line to the next.
    pub(super) line_stride: usize,
    /// Distance from one step of the sum to the next.
    pub(super) step: usize,
}

/// Packs the lines into strips of `W`; a last strip of at most `LOW` lines is that much narrower.
pub(super) fn pack<const W: usize, const LOW: usize>(lines: Lines, k: usize, out: &mut [f32]) {
    for (i, first) in (0..lines.n).step_by(W).enumerate() {
        let left = lines.n - first;
        let strip = Lines { data: &lines.data[first * lines.line_stride..], n: left.min(W), ..lines };
        let out = &mut out[i * W * k..];
        match left <= LOW {
            true => pack_strip::<LOW>(strip, k, out),
            false => pack_strip::<W>(strip, k, out),
        }
    }
}

/// Packs one strip of at most `W` lines.
pub(super) fn pack_strip<const W: usize>(strip: Lines, k: usize, out: &mut [f32]) {
    let out = &mut out.as_chunks_mut::<W>().0[..k];
    match (strip.line_stride, strip.step, strip.n == W) {
        (1, _, true) => {
            for (i, out) in out.iter_mut().enumerate() {
                out.copy_from_slice(&strip.data[i * strip.step..][..W]);
            }
        }
        (_, 1, true) => transpose::<W>(strip, k, out),
        _ => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = [0.0; W];
                for (line, out) in out.iter_mut().take(strip.n).enumerate() {
                    *out = strip.data[line * strip.line_stride + i * strip.step];
                }
            }
        }
    }
}

/// Lines whose numbers are neighbours: squares of them, so that each cache line is read once.
fn transpose<const W: usize>(strip: Lines, k: usize, out: &mut [[f32; W]]) {
    const STEPS: usize = 16;
    let mut lines = [&[][..]; W];
    for (i, line) in lines.iter_mut().enumerate() {
        *line = &strip.data[i * strip.line_stride..][..k];
    }
    let mut square = [[0.0f32; STEPS]; W];
    for (at, out) in (0..k).step_by(STEPS).zip(out.chunks_mut(STEPS)) {
        let steps = out.len();
        for (square, line) in square.iter_mut().zip(&lines) {
            // A copy of known length is a few moves; the other is a call.
            match line[at..].first_chunk::<STEPS>() {
                Some(whole) => *square = *whole,
                None => square[..steps].copy_from_slice(&line[at..at + steps]),
            }
        }
        for (i, out) in out.iter_mut().enumerate() {
            for j in 0..W {
                out[j] = square[j][i];
            }
        }
    }
}
