//! Estimates with 95 % intervals: Wilson for rates, with clusters or without, order statistics for medians, normal for means, a
//! seeded bootstrap for ratios of sums.
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
    wilson(hits as f64 / n as f64, n as f64, n)
}

/// The score interval of a rate that `m` independent items would have.
fn wilson(p: f64, m: f64, n: u64) -> Estimate {
    let z2 = Z * Z;
    let centre = p + z2 / (2.0 * m);
    let half = Z * (p * (1.0 - p) / m + z2 / (4.0 * m * m)).sqrt();
    let scale = 1.0 + z2 / m;
    // At the ends the formula is exact, rounding is not.
    let low = if p == 0.0 { 0.0 } else { ((centre - half) / scale).clamp(0.0, p) };
    let high = if p == 1.0 { 1.0 } else { ((centre + half) / scale).clamp(p, 1.0) };
    Estimate { value: p, n, ci_low: low, ci_high: high }
}

/// A rate over clusters whose items depend on each other, for instance the samples of a task, as (hits, items) of each.
///
/// The interval is Wilson's for the number of independent items that would vary as much as the clusters do; at most
/// `observations`, and at the ends, where nothing varies, one for each cluster. `n` is the number of clusters with items; without
/// any everything is NaN. Clusters of one item each have the interval of [`rate`].
///
/// # Source
/// E. L. Korn, B. I. Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts Estimated
/// from Survey Data", Survey Methodology 24 (1998), with Wilson's interval instead of the exact one.
pub fn clustered_rate(clusters: &[(f64, f64)], observations: f64) -> Estimate {
    let clusters: Vec<&(f64, f64)> = clusters.iter().filter(|(_, items)| *items > 0.0).collect();
    let n = clusters.len() as u64;
    if n == 0 {
        return Estimate::without_interval(f64::NAN, 0);
    }
    let (hits, items) = clusters.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (p, m) = (hits / items, n as f64);
    if clusters.iter().all(|one| one.1 == 1.0) && observations == items {
        return wilson(p, m, n);
    }
    let spread: f64 = clusters.iter().map(|one| (one.0 - p * one.1).powi(2)).sum();
    let variance = m / (m - 1.0).max(1.0) * spread / (items * items);
    let independent = if variance > 0.0 && n > 1 { p * (1.0 - p) / variance } else { m };
    wilson(p, independent.clamp(1.0, observations.max(1.0)), n)
}

/// A median with the interval between two order statistics, which holds for any distribution of independent values.
///
/// Fewer than six values have no interval at this level, none is NaN.
///
/// # Source
/// W. J. Conover, "Practical Nonparametric Statistics", section 3.2: the number of values below the median is binomial.
pub fn median(values: &[f64]) -> Estimate {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 {
        return Estimate::without_interval(f64::NAN, 0);
    }
    let value = sorted[(n - 1) / 2].midpoint(sorted[n / 2]);
    // The most values that may lie outside on either side: P(fewer below the median) stays within the tail.
    let (mut outside, mut tail, mut ln_p) = (0, 0.0, n as f64 * 0.5_f64.ln());
    while outside < n / 2 {
        tail += ln_p.exp();
        if tail > TAILS[0] {
            break;
        }
        ln_p += ((n - outside) as f64 / (outside + 1) as f64).ln();
        outside += 1;
    }
    match outside.checked_sub(1) {
        None => Estimate::without_interval(value, n as u64),
        Some(low) => Estimate { value, n: n as u64, ci_low: sorted[low], ci_high: sorted[n - 1 - low] },
    }
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
    fn clusters_of_one_are_items_and_clusters_of_copies_are_no_more() {
        let single: Vec<(f64, f64)> = (0..263).map(|i| (f64::from(u8::from(i < 81)), 1.0)).collect();
        assert_eq!(clustered_rate(&single, 263.0), rate(81, 263));
        let copies: Vec<(f64, f64)> = single.iter().map(|(hit, _)| (hit * 8.0, 8.0)).collect();
        let (got, want) = (clustered_rate(&copies, 8.0 * 263.0), rate(81, 263));
        assert_eq!((got.value, got.n), (want.value, 263));
        near(got.ci_low, want.ci_low, 2e-4);
        near(got.ci_high, want.ci_high, 2e-4);
        // Nothing varies: as many independent items as there are clusters.
        assert_eq!(clustered_rate(&[(0.0, 8.0); 20], 160.0).ci_high, rate(0, 20).ci_high);
        assert_eq!(clustered_rate(&[(3.0, 6.0), (0.0, 0.0)], 6.0).n, 1);
        assert!(clustered_rate(&[(0.0, 0.0)], 0.0).value.is_nan());
    }

    #[test]
    fn intervals_over_clusters_hold_what_they_promise() {
        // 40 tasks of chance uniform on 0..0.4, 8 samples each: the true rate is 0.2, and the tasks differ.
        let mut random = SplitMix(3);
        let mut uniform = || (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (mut held, mut naive) = (0, 0);
        for _ in 0..2000 {
            let task = |_| {
                let chance = 0.4 * uniform();
                ((0..8).filter(|_| uniform() < chance).count() as f64, 8.0)
            };
            let tasks: Vec<(f64, f64)> = (0..40).map(task).collect();
            let holds = |got: Estimate| usize::from(got.ci_low <= 0.2 && 0.2 <= got.ci_high);
            held += holds(clustered_rate(&tasks, 320.0));
            naive += holds(rate(tasks.iter().map(|task| task.0 as u64).sum(), 320));
        }
        assert!((1870..=1940).contains(&held), "{held} of 2000");
        assert!(naive < held - 40, "{naive}: taking samples for independent promises too much");
    }

    #[test]
    fn a_median_has_the_order_statistics_of_the_binomial() {
        // Conover's table: of 16 values the 4th and the 13th hold the median with 97.9 %, of 6 the two ends with 96.9 %.
        let values = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        let ends = |n: u32| (median(&values(n)).ci_low, median(&values(n)).ci_high);
        assert_eq!((ends(6), ends(16), ends(100)), ((1.0, 6.0), (4.0, 13.0), (40.0, 61.0)));
        assert_eq!((median(&values(4)).value, median(&values(5)).value), (2.5, 3.0));
        assert!(median(&values(5)).ci_low.is_nan() && median(&[]).value.is_nan());
        let many = median(&values(10_000));
        near(many.ci_low, 5000.0 - 0.98 * 100.0, 3.0);
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
