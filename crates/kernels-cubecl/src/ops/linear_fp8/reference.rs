//! FP8 linear layer by its definition: the list of all numbers of a format, and plain loops in f64.

use crate::ops::linear::reference as linear;

/// Bits of the significand, exponent of the smallest normal number, and the largest number.
#[derive(Clone, Copy, Debug)]
pub struct Format(i32, i32, f64);

/// For activations and weights.
pub const E4M3: Format = Format(3, -6, 448.0);
/// For gradients.
pub const E5M2: Format = Format(2, -14, 57344.0);

impl Format {
    /// All numbers that are not negative, in order; an even place is an even significand.
    fn numbers(self) -> Vec<f64> {
        let Self(bits, smallest, max) = self;
        let steps = 1 << bits;
        let below = (0..steps).map(|i| f64::from(i) * 2f64.powi(smallest - bits));
        let normal = (smallest..16).flat_map(|e| (steps..2 * steps).map(move |i| f64::from(i) * 2f64.powi(e - bits)));
        below.chain(normal).filter(|x| *x <= max).collect()
    }

    /// Each number as the format has it under the scale for `peak`.
    fn rounded(self, x: &[f64], peak: f64) -> Vec<f64> {
        let (numbers, scale) = (self.numbers(), self.scale(peak));
        let nearest = |size: f64| {
            let above = numbers.partition_point(|number| *number < size);
            match (above.checked_sub(1).map(|below| numbers[below]), numbers.get(above)) {
                (None, Some(&above)) => above,
                (Some(below), None) => below,
                (Some(below), Some(&next)) => match (size - below).total_cmp(&(next - size)) {
                    std::cmp::Ordering::Less => below,
                    std::cmp::Ordering::Greater => next,
                    std::cmp::Ordering::Equal if above % 2 == 1 => below,
                    std::cmp::Ordering::Equal => next,
                },
                (None, None) => f64::NAN,
            }
        };
        let round = |x: &f64| match x.is_finite() {
            true => nearest((x * scale).abs()).copysign(*x) / scale,
            false => f64::NAN,
        };
        x.iter().map(round).collect()
    }

    fn scale(self, peak: f64) -> f64 {
        if peak == 0.0 {
            return 1.0;
        }
        let mut n = 126;
        while n > -126 && peak * 2f64.powi(n) > self.2 {
            n -= 1;
        }
        2f64.powi(n)
    }
}

/// The abs-max of the finite numbers.
pub fn peak(x: &[f64]) -> f64 {
    x.iter().filter(|x| x.is_finite()).fold(0.0, |peak, x| peak.max(x.abs()))
}

/// `q(x)` under the history row, or without one.
pub fn quantised(format: Format, x: &[f64], history: Option<&[f64]>) -> Vec<f64> {
    let known = history.map_or(0.0, peak);
    format.rounded(x, if known > 0.0 { known } else { peak(x) })
}

/// True where the layer is computed in FP8.
pub fn fits(dims: [usize; 3]) -> bool {
    dims.iter().all(|n| *n > 0 && n % 16 == 0)
}

/// `y [m, o]` from `x [m, i]` and `w [o, i]`; the history's rows are those of x, w and dy.
pub fn forward(x: &[f64], w: &[f64], history: Option<&[Vec<f64>; 3]>, dims: [usize; 3]) -> Vec<f64> {
    if !fits(dims) {
        return linear::forward(x, w, dims);
    }
    let row = |row: usize| history.map(|rows| rows[row].as_slice());
    linear::forward(&quantised(E4M3, x, row(0)), &quantised(E4M3, w, row(1)), dims)
}

/// `(dx [m, i], dw [o, i])` for the upstream gradient `dy [m, o]`.
pub fn backward(
    dy: &[f64],
    x: &[f64],
    w: &[f64],
    history: Option<&[Vec<f64>; 3]>,
    dims: [usize; 3],
) -> (Vec<f64>, Vec<f64>) {
    if !fits(dims) {
        return linear::backward(dy, x, w, dims);
    }
    let row = |row: usize| history.map(|rows| rows[row].as_slice());
    let (x, w) = (quantised(E4M3, x, row(0)), quantised(E4M3, w, row(1)));
    linear::backward(&quantised(E5M2, dy, row(2)), &x, &w, dims)
}

/// The next history.
pub fn next_history(dy: &[f64], x: &[f64], w: &[f64], history: &[Vec<f64>; 3], dims: [usize; 3]) -> Vec<f64> {
    if !fits(dims) {
        return history.concat();
    }
    let shifted = |(values, row): (&[f64], &Vec<f64>)| {
        let mut next = vec![peak(values)];
        next.extend(&row[..row.len() - 1]);
        next
    };
    [x, w, dy].into_iter().zip(history).flat_map(shifted).collect()
}
