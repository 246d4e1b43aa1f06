//! The unbiased pass@k estimator.
//!
//! With n samples of a task of which c are correct, the probability that a random subset of k samples holds at least one
//! correct one is `1 - C(n-c, k) / C(n, k)`, evaluated as a product so that nothing overflows.
//!
//! Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.

/// pass@k needs at least k samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "pass@{k} needs at least {k} samples of every task and k above 0, a task has {n}; draw more samples or ask for a smaller k"
)]
pub struct TooFewSamples {
    /// Requested k.
    pub k: u64,
    /// Samples found.
    pub n: u64,
}

/// Unbiased pass@k of one task with `n` samples of which `correct` passed.
///
/// # Errors
/// [`TooFewSamples`] when `k` exceeds `n` or is 0.
pub fn pass_at_k(n: u64, correct: u64, k: u64) -> Result<f64, TooFewSamples> {
    if k == 0 || k > n {
        return Err(TooFewSamples { k, n });
    }
    let wrong = n.saturating_sub(correct);
    if wrong < k {
        return Ok(1.0);
    }
    let all_wrong: f64 = (wrong + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Ok(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enumerates every subset of size k: the definition itself.
    fn by_enumeration(n: u64, correct: u64, k: u64) -> f64 {
        let (mut hits, mut all) = (0u64, 0u64);
        for subset in 0u64..1 << n {
            if u64::from(subset.count_ones()) == k {
                all += 1;
                hits += u64::from(subset & ((1 << correct) - 1) != 0);
            }
        }
        hits as f64 / all as f64
    }

    #[test]
    fn equals_the_definition() {
        for n in 1..=9 {
            for correct in 0..=n {
                for k in 1..=n {
                    let (got, want) = (pass_at_k(n, correct, k).unwrap(), by_enumeration(n, correct, k));
                    assert!((got - want).abs() <= 1e-12, "n {n} correct {correct} k {k}: got {got}, want {want}");
                }
            }
        }
    }

    #[test]
    fn more_samples_than_drawn_is_refused() {
        assert_eq!(pass_at_k(3, 1, 4), Err(TooFewSamples { k: 4, n: 3 }));
        assert_eq!(pass_at_k(3, 1, 0), Err(TooFewSamples { k: 0, n: 3 }));
    }
}
