//! Estimates with 95 % intervals: Wilson for rates, normal for means, a seeded bootstrap for ratios of sums.
//!
//! # Numerics
//! All in f64; sums run in the order of the items, so equal input gives equal bits.

/// The 97.5 % quantile of the standard normal distribution: two-sided 95 %.
const Z: f64 = 1.959_963_984_540_054;
/// Percentiles of a bootstrap that bound 95 %.
const TAILS: [f64; 2] = [0.025, 0.975];

/// A value, the number of items it was measured on, and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The point estimate.
    pub value: f64,
    /// Items behind it.
    pub n: u64,
    /// Lower end of the interval; NaN when there is none.
    pub ci_low: f64,
    /// Upper end of the interval; NaN when there is none.
    pub ci_high: f64,
}

impl Estimate {
    /// A value that is no sample and has no interval: a rule that asks for one of its bounds fails.
    pub fn without_interval(value: f64, n: u64) -> Self {
        Self { value, n, ci_low: f64::NAN, ci_high: f64::NAN }
    }

    /// The same estimate on another scale; `scale` must be rising.
    pub fn map(self, scale: impl Fn(f64) -> f64) -> Self {
        Self { value: scale(self.value), n: self.n, ci_low: scale(self.ci_low), ci_high: scale(self.ci_high) }
    }
}

/// A rate with the score interval, which stays within 0..1 and is honest for few items and for rates near the ends.
///
/// Without items everything is NaN.
///
/// # Source
/// E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
pub fn rate(hits: u64, n: u64) -> Estimate {
    if n == 0 {
        return Estimate::without_interval(f64::NAN, 0);
    }
    let (p, m, z2) = (hits as f64 / n as f64, n as f64, Z * Z);
    let centre = p + z2 / (2.0 * m);
    let half = Z * (p * (1.0 - p) / m + z2 / (4.0 * m * m)).sqrt();
    let scale = 1.0 + z2 / m;
    // At the ends the formula is exact, rounding is not.
    let low = if hits == 0 { 0.0 } else { ((centre - half) / scale).max(0.0) };
    let high = if hits == n { 1.0 } else { ((centre + half) / scale).min(1.0) };
    Estimate { value: p, n, ci_low: low, ci_high: high }
}

/// A mean with the normal interval; one item has no interval, none is NaN.
pub fn mean(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return Estimate::without_interval(value, values.len() as u64);
    }
    let variance = values.iter().map(|x| (x - value).powi(2)).sum::<f64>() / (n - 1.0);
    let half = Z * (variance / n).sqrt();
    Estimate { value, n: values.len() as u64, ci_low: value - half, ci_high: value + half }
}

/// A ratio of sums, for instance nats per token over documents, with the percentile interval of a bootstrap over the
/// items.
///
/// Resampling whole items keeps together what depends on each other: the tokens of one document are no independent
/// sample. `items` are (numerator, denominator); fewer than two items have no interval.
///
/// # Source
/// B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", chapter 13 (percentile intervals).
pub fn ratio(items: &[(f64, f64)], resamples: usize, seed: u64) -> Estimate {
    let n = items.len() as u64;
    let value = quotient(items.iter());
    if items.len() < 2 || resamples == 0 {
        return Estimate::without_interval(value, n);
    }
    let mut random = SplitMix(seed);
    let mut values: Vec<f64> =
        (0..resamples).map(|_| quotient((0..items.len()).map(|_| &items[random.below(items.len())]))).collect();
    values.sort_by(f64::total_cmp);
    let [ci_low, ci_high] = TAILS.map(|tail| percentile(&values, tail));
    Estimate { value, n, ci_low, ci_high }
}

fn quotient<'a>(items: impl Iterator<Item = &'a (f64, f64)>) -> f64 {
    let (top, bottom) = items.fold((0.0, 0.0), |(top, bottom), item| (top + item.0, bottom + item.1));
    top / bottom
}

/// Linear interpolation between the order statistics of a sorted, non-empty list.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * part
}

/// The generator of Steele, Lea and Flood (OOPSLA 2014); a seed gives the same interval on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`, by the high half of a product: the bias is below n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64, tolerance: f64) {
        assert!((got - want).abs() <= tolerance, "got {got}, want {want}");
    }

    #[test]
    fn wilson_intervals_match_published_values() {
        // R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        for (hits, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let got = rate(hits, n);
            near(got.ci_low, low, 5e-5);
            near(got.ci_high, high, 5e-5);
            assert_eq!((got.n, got.value), (n, hits as f64 / n as f64));
        }
        assert_eq!((rate(5, 5).ci_high, rate(0, 5).ci_low), (1.0, 0.0));
        assert!(rate(0, 0).value.is_nan() && rate(0, 0).ci_high.is_nan());
    }

    #[test]
    fn a_mean_has_the_normal_interval() {
        let got = mean(&[1.0, 2.0, 3.0, 4.0]);
        near(got.value, 2.5, 0.0);
        // Sample standard deviation sqrt(5/3), over sqrt(4).
        near(got.ci_high - got.value, 1.959964 * (5.0f64 / 3.0).sqrt() / 2.0, 1e-6);
        assert!(mean(&[1.0]).ci_low.is_nan() && mean(&[]).value.is_nan());
    }

    #[test]
    fn a_bootstrap_is_seeded_and_covers() {
        let items: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(i % 7), 2.0)).collect();
        let got = ratio(&items, 4000, 1);
        assert_eq!(got, ratio(&items, 4000, 1));
        assert_ne!(got, ratio(&items, 4000, 2));
        // For equal denominators this is half a mean, whose normal interval is known.
        let plain = mean(&items.iter().map(|i| i.0 / 2.0).collect::<Vec<_>>());
        near(got.value, plain.value, 1e-12);
        near(got.ci_low, plain.ci_low, 0.01);
        near(got.ci_high, plain.ci_high, 0.01);
        assert!(ratio(&items[..1], 1000, 1).ci_low.is_nan());
    }

    #[test]
    fn weights_of_a_ratio_are_the_denominators() {
        near(ratio(&[(1.0, 1.0), (30.0, 10.0)], 10, 0).value, 31.0 / 11.0, 1e-15);
    }
}
