//! Repeating work and summing the repetitions up.

use std::time::Instant;

use serde::Serialize;

/// How often something is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Repetitions that do not count.
    pub(super) warmup: usize,
    /// Repetitions that count.
    pub(super) reps: usize,
    /// Short work is called so often that one repetition takes about this long.
    pub(super) rep_s: f64,
}

impl Plan {
    /// Figures that may be quoted.
    pub(super) fn full() -> Self {
        Self { warmup: 3, reps: 15, rep_s: 0.1 }
    }

    /// Figures that only show that the code runs.
    pub(super) fn quick() -> Self {
        Self { warmup: 1, reps: 2, rep_s: 0.002 }
    }

    /// The same for work that takes seconds.
    pub(super) fn at_most(self, reps: usize) -> Self {
        Self { warmup: self.warmup.min(1), reps: self.reps.min(reps), ..self }
    }
}

/// A median and what half of the repetitions lay between.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// Median.
    pub(super) median: f64,
    /// A quarter of the repetitions lay below.
    pub(super) q1: f64,
    /// A quarter of the repetitions lay above.
    pub(super) q3: f64,
    /// Number of repetitions.
    pub(super) n: usize,
}

impl Spread {
    /// Sums up; an empty slice gives NaN.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&values, share);
        Self { median: at(0.5), q1: at(0.25), q3: at(0.75), n: values.len() }
    }

    /// `amount` per second, from the seconds that each repetition took.
    pub(super) fn rate(amount: f64, seconds: &[f64]) -> Self {
        Self::of(seconds.iter().map(|s| amount / s).collect())
    }

    /// Distance between the quartiles as a share of the median.
    pub(super) fn relative(&self) -> f64 {
        (self.q3 - self.q1) / self.median
    }
}

/// Linear interpolation between the two neighbours of a sorted slice.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// Seconds that `work` takes.
pub(super) fn once<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let out = work();
    (started.elapsed().as_secs_f64(), out)
}

/// Seconds per call of `work`, one value per repetition.
pub(super) fn repeat<T>(plan: Plan, mut work: impl FnMut() -> T) -> Vec<f64> {
    for _ in 0..plan.warmup {
        std::hint::black_box(work());
    }
    let (first, _) = once(|| std::hint::black_box(work()));
    let calls = (plan.rep_s / first.max(1e-9)).ceil().clamp(1.0, 1e7) as usize;
    let rep = |_| {
        let (seconds, ()) = once(|| {
            for _ in 0..calls {
                std::hint::black_box(work());
            }
        });
        seconds / calls as f64
    };
    (0..plan.reps).map(rep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.5, q1: 1.75, q3: 3.25, n: 4 });
        assert_eq!(spread.relative(), 0.6);
        assert_eq!(Spread::rate(10.0, &[2.0]).median, 5.0);
        assert!(Spread::of(Vec::new()).median.is_nan());
    }

    #[test]
    fn every_repetition_is_measured() {
        let mut calls = 0;
        let seconds = repeat(Plan { warmup: 2, reps: 3, rep_s: 0.0 }, || calls += 1);
        assert_eq!((seconds.len(), calls), (3, 6));
    }
}
