//! Choosing the next token from a row of logits.

use crate::error::ModelError;
use crate::random::Stream;

/// How tokens are chosen and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Most tokens to add to a prompt.
    pub max_new_tokens: usize,
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Only the fewest most likely tokens that hold this probability are considered; 1 considers all.
    pub top_p: f32,
    /// Tokens that end a sequence.
    pub stop_ids: Vec<u32>,
    /// Seed of the choices; each is a function of (seed, sequence, position) alone.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token each time, without a stop token.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_k: 0, top_p: 1.0, stop_ids: Vec::new(), seed: 0 }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// When `temperature` is negative or not finite, or `top_p` is not in (0, 1].
    pub fn check(&self) -> Result<(), ModelError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(bad("temperature", self.temperature, "a finite number of at least 0"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(bad("top_p", self.top_p, "a number above 0 and at most 1"));
        }
        Ok(())
    }

    /// The token chosen from `logits` for a place in a sequence.
    ///
    /// Temperature, then `top_k`, then `top_p`, then the draw. Ties go to the smaller id.
    ///
    /// # Errors
    /// When a logit is NaN or +∞, or none is finite.
    ///
    /// # Numerics
    /// Probabilities in f64.
    ///
    /// # Source
    /// top-k: Fan et al. 2018; top-p: Holtzman et al. 2020.
    pub fn choose(&self, logits: &[f32], sequence: u64, position: usize) -> Result<u32, ModelError> {
        let best = argmax(logits).ok_or(ModelError::NonFiniteLogits { sequence, position })?;
        if self.temperature == 0.0 || self.top_k == 1 {
            return Ok(best as u32);
        }
        let mut kept: Vec<usize> = (0..logits.len()).collect();
        let descending = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, descending);
            kept.truncate(self.top_k);
            kept.sort_unstable_by(descending);
        } else if self.top_p < 1.0 {
            kept.sort_unstable_by(descending);
        }
        let peak = f64::from(logits[best]);
        let weight = |id: usize| ((f64::from(logits[id]) - peak) / f64::from(self.temperature)).exp();
        let mut weights: Vec<f64> = kept.iter().map(|&id| weight(id)).collect();
        if self.top_p < 1.0 {
            let mass = f64::from(self.top_p) * weights.iter().sum::<f64>();
            weights.truncate(first_reaching(&weights, mass) + 1);
        }
        let stream = Stream::new(self.seed, &format!("sample/{sequence}"));
        let target = stream.uniform(position as u64) * weights.iter().sum::<f64>();
        Ok(kept[first_above(&weights, target)] as u32)
    }
}

/// The largest finite logit's place, the first of equals; `None` when one is NaN or +∞ or all are -∞.
fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (at, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return None;
        }
        if logit.is_finite() && best.is_none_or(|b| logit > logits[b]) {
            best = Some(at);
        }
    }
    best
}

/// The first place where the running sum is at least `mass`.
fn first_reaching(weights: &[f64], mass: f64) -> usize {
    let mut sum = 0.0;
    let reached = weights.iter().position(|w| {
        sum += w;
        sum >= mass
    });
    reached.unwrap_or(weights.len() - 1)
}

/// The first place with weight where the running sum is above `target`.
fn first_above(weights: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    let found = weights.iter().position(|w| {
        sum += w;
        sum > target
    });
    // Rounding may leave the target at the whole sum: take the last token that has any weight.
    found.or_else(|| weights.iter().rposition(|w| *w > 0.0)).unwrap_or(0)
}

fn bad(key: &'static str, value: f32, expected: &'static str) -> ModelError {
    ModelError::BadSampling { key, value: f64::from(value), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 11, ..Sampling::greedy(1) }
    }

    /// How often each token is drawn over many sequences.
    fn shares(sampling: &Sampling, logits: &[f32]) -> Vec<f64> {
        let n = 20_000u32;
        let mut counts = vec![0.0; logits.len()];
        for sequence in 0..n {
            counts[sampling.choose(logits, u64::from(sequence), 5).unwrap() as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    fn near(got: &[f64], want: &[f64]) {
        let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        assert!(worst < 0.015, "drawn {got:?}, expected {want:?}");
    }

    /// Logits of the probabilities .5 .25 .15 .1, out of order.
    fn logits() -> Vec<f32> {
        [0.25f32, 0.1, 0.5, 0.15].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn draws_follow_the_probabilities() {
        near(&shares(&sampling(1.0, 0, 1.0), &logits()), &[0.25, 0.1, 0.5, 0.15]);
        let squared = [0.0625, 0.01, 0.25, 0.0225].map(|p: f64| p / 0.345);
        near(&shares(&sampling(0.5, 0, 1.0), &logits()), &squared);
        near(&shares(&sampling(1.0, 2, 1.0), &logits()), &[1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0]);
        near(&shares(&sampling(1.0, 9, 1.0), &logits()), &[0.25, 0.1, 0.5, 0.15]);
        near(&shares(&sampling(1.0, 0, 0.5), &logits()), &[0.0, 0.0, 1.0, 0.0]);
        near(&shares(&sampling(1.0, 0, 0.8), &logits()), &[0.25 / 0.9, 0.0, 0.5 / 0.9, 0.15 / 0.9]);
        // top_p works on what top_k left: of .5 and .25, a share of .6 needs only the first.
        near(&shares(&sampling(1.0, 2, 0.6), &logits()), &[0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let greedy = sampling(0.0, 0, 1.0);
        assert_eq!(greedy.choose(&[-1.0, 3.0, 3.0], 0, 0).unwrap(), 1);
        assert_eq!(greedy.choose(&[f32::NEG_INFINITY, -9.0], 0, 0).unwrap(), 1);
        assert_eq!(sampling(2.0, 1, 1.0).choose(&[-1.0, 3.0, 2.9], 4, 4).unwrap(), 1);
    }

    #[test]
    fn a_draw_depends_on_seed_sequence_and_position_only() {
        let flat = vec![0.0; 1000];
        let draw = |seed, sequence, position| {
            Sampling { seed, ..sampling(1.0, 0, 1.0) }.choose(&flat, sequence, position).unwrap()
        };
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        let others = [draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)];
        let distinct: std::collections::HashSet<_> = others.iter().collect();
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn bad_values_are_typed_errors() {
        for logits in [vec![0.0, f32::NAN], vec![f32::INFINITY, 0.0], vec![f32::NEG_INFINITY; 2], vec![]] {
            let error = sampling(1.0, 0, 0.5).choose(&logits, 3, 8).unwrap_err();
            assert!(matches!(error, ModelError::NonFiniteLogits { sequence: 3, position: 8 }), "{error}");
        }
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (f32::INFINITY, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(sampling(temperature, 0, top_p).check().is_err(), "{temperature} {top_p}");
        }
        sampling(0.7, 40, 0.9).check().unwrap();
    }
}
