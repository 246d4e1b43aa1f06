//! Vectorised passes over f32 slices: exponential, maximum, sums, scaling.
//!
//! Every pass works on [`LANES`] independent lanes and folds them in one fixed order, so that a result depends neither on
//! the instruction set nor on the number of threads. There is no fused multiply-add, for the same reason.

use multiversion::multiversion;

/// Independent accumulators of every reduction.
pub(crate) const LANES: usize = 16;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 with so few bits that its product with an exponent is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
/// What [`LN_2_HIGH`] is short of ln 2.
const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
/// Adding this rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Above this the result is infinite: half an exponent before the true exponential overflows.
const EXP_HIGH: f32 = 88.376_26;
/// Below this the result is 0: the true one is no normal number.
const EXP_LOW: f32 = -87.336_54;

/// `eˣ` without a branch, so that loops over it become vector code.
///
/// # Numerics
/// Two units in the last place, `exp(0) = 1` exactly, NaN stays NaN. 0 below [`EXP_LOW`], infinite above [`EXP_HIGH`].
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    let p = 1.0 + (r + r * r * (0.5 + r * (1.0 / 6.0 + r * tail)));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let y = p * power;
    let y = if x > EXP_HIGH { f32::INFINITY } else { y };
    if x < EXP_LOW { 0.0 } else { y }
}

/// Folds the lanes pairwise.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// What is left after the last full chunk, filled up: a scalar loop over it would cost more than the chunks.
#[inline(always)]
fn padded(rest: &[f32], fill: f32) -> [f32; LANES] {
    let mut lanes = [fill; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// The larger of two numbers; a NaN loses, as one comparison can do it.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Largest element, or −∞ of an empty slice. A NaN is passed over: whoever subtracts the maximum meets it again.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    let tail = padded(rest, f32::NEG_INFINITY);
    for i in 0..LANES {
        lanes[i] = larger(lanes[i], tail[i]);
    }
    fold(lanes, larger)
}

/// What to subtract before an exponential, for a maximum or log-sum-exp: of −∞, which stands for "nothing but −∞", 0.
#[inline(always)]
pub(crate) fn shift(of: f32) -> f32 {
    if of == f32::NEG_INFINITY { 0.0 } else { of }
}

/// Replaces every `x` by `exp(x − shift)` and returns their sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn exp_sub_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    let mut tail = padded(rest, f32::NEG_INFINITY);
    for i in 0..LANES {
        tail[i] = exp(tail[i] - shift);
        lanes[i] += tail[i];
    }
    rest.copy_from_slice(&tail[..rest.len()]);
    fold(lanes, |a, b| a + b)
}

/// Sum of `exp(x − shift)`; the slice stays as it is.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn sum_exp_sub(row: &[f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp(chunk[i] - shift);
        }
    }
    let tail = padded(rest, f32::NEG_INFINITY);
    for i in 0..LANES {
        lanes[i] += exp(tail[i] - shift);
    }
    fold(lanes, |a, b| a + b)
}

/// Replaces every `x` by `factor · exp(x − shift)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn scaled_exp_sub(row: &mut [f32], shift: f32, factor: f32) {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for x in chunk {
            *x = factor * exp(*x - shift);
        }
    }
    let mut tail = padded(rest, f32::NEG_INFINITY);
    for x in &mut tail {
        *x = factor * exp(*x - shift);
    }
    rest.copy_from_slice(&tail[..rest.len()]);
}

/// `x ← factor · x`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn scale(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

/// `Σ aᵢ·bᵢ` over the shorter of the two.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    fold(lanes, |a, b| a + b)
}

/// `p ← p · (dp − delta)`: the gradient of a softmax row from its probabilities.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn softmax_gradient(dp: &mut [f32], p: &[f32], delta: f32) {
    for (dp, &p) in dp.iter_mut().zip(p) {
        *dp = p * (*dp - delta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_f64() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst <= 2.0 * f64::from(f32::EPSILON), "relative error {worst}");
    }

    #[test]
    fn exp_keeps_the_special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    /// Plain f64 versions of every pass, at every length around the number of lanes.
    #[test]
    fn passes_match_their_definitions() {
        for n in 0..=2 * LANES + 3 {
            let a: Vec<f32> = (0..n).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 5 + 1) % 7) as f32 * 0.5).collect();
            let wide =
                |f: fn(f64, f64) -> f64| a.iter().zip(&b).map(|(&a, &b)| f(a.into(), b.into())).collect::<Vec<_>>();
            let near =
                |got: f32, want: f64| assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            near(dot(&a, &b), wide(|a, b| a * b).iter().sum());
            let exps = wide(|a, _| (a - 1.5).exp());
            near(sum_exp_sub(&a, 1.5), exps.iter().sum());
            let mut row = a.clone();
            near(exp_sub_sum(&mut row, 1.5), exps.iter().sum());
            row.iter().zip(&exps).for_each(|(&got, &want)| near(got, want));
            let mut row = a.clone();
            scaled_exp_sub(&mut row, 1.5, -2.0);
            row.iter().zip(&exps).for_each(|(&got, &want)| near(got, -2.0 * want));
            let mut row = a.clone();
            scale(&mut row, 3.0);
            row.iter().zip(&a).for_each(|(&got, &a)| assert_eq!(got, 3.0 * a));
            let mut row = a.clone();
            softmax_gradient(&mut row, &b, 0.25);
            row.iter().zip(wide(|a, b| b * (a - 0.25))).for_each(|(&got, want)| near(got, want));
        }
    }

    #[test]
    fn nan_reaches_the_sum() {
        let mut row = vec![0.5f32; 40];
        row[37] = f32::NAN;
        assert_eq!(max(&row), 0.5);
        assert!(sum_exp_sub(&row, 0.5).is_nan());
        assert!(exp_sub_sum(&mut row, 0.5).is_nan());
    }
}
