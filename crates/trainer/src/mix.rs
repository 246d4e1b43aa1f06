//! Rows of several kinds with a fixed share of each in every step.

use std::sync::Arc;

use data_pipeline::{Order, TokenRow};

use crate::config::require;
use crate::{BatchSource, MicroBatch, TrainConfig, TrainError};

/// Rows of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct MixPart {
    /// What messages call it.
    pub name: String,
    /// Its rows, all of one length.
    pub rows: Vec<TokenRow>,
    /// Hash of the rows.
    pub fingerprint: String,
    /// Its share of the rows of a step.
    pub share: f64,
}

/// A fixed number of rows of each kind per step; the order of each is a pure function of the seed and the step.
#[derive(Debug)]
pub struct MixedSource {
    parts: Vec<(Arc<Vec<TokenRow>>, Order, usize)>,
    rows_per_micro: usize,
    seq_len: usize,
    fingerprint: String,
}

/// How far the sum of the shares may be from 1.
const SHARE_SLACK: f64 = 1e-6;

impl MixedSource {
    /// Mixes parts whose shares add up to 1. A share is rounded to whole rows of a step so that the rows of all parts fill it.
    ///
    /// # Errors
    /// When a part has no rows, a share that is above 0 is no row of a step, the shares are no shares, or the token counts do
    /// not fit the row length.
    pub fn new(parts: Vec<MixPart>, seq_len: usize, config: &TrainConfig) -> Result<Self, TrainError> {
        let (rows_per_step, rows_per_micro) = config.rows(seq_len)?;
        if let Some(empty) = parts.iter().find(|part| part.rows.is_empty()) {
            let problem = format!("`{}`: expected rows to train on, it has none; check the file or folder", empty.name);
            return Err(TrainError::Batch { problem });
        }
        let shares: Vec<f64> = parts.iter().map(|part| part.share).collect();
        check_shares(&shares)?;
        let counts = whole_rows(&shares, rows_per_step);
        for (part, count) in parts.iter().zip(&counts) {
            require(*count > 0 || part.share == 0.0, || {
                format!(
                    "`{}`: expected a share of at least one row of a step, got {} of {rows_per_step}; raise \
                     train.tokens_per_step or the share",
                    part.name, part.share
                )
            })?;
        }
        // The last share follows from the others.
        let names: Vec<&str> = parts.iter().map(|part| part.fingerprint.as_str()).collect();
        let told: Vec<String> = shares[..shares.len() - 1].iter().map(f64::to_string).collect();
        let fingerprint = gates::artifact::hash_bytes(format!("{} {}", names.join(" "), told.join(" ")).as_bytes());
        let part = |(i, (part, count)): (usize, (MixPart, usize))| {
            let order = Order::new(config.seed.wrapping_add(i as u64), part.rows.len());
            (Arc::new(part.rows), order, count)
        };
        let parts = parts.into_iter().zip(counts).enumerate().map(part).collect();
        Ok(Self { parts, rows_per_micro, seq_len, fingerprint })
    }
}

/// Checks that numbers are shares of one whole.
///
/// # Errors
/// When there is none, one is not in [0, 1], or they do not add up to 1.
pub fn check_shares(shares: &[f64]) -> Result<(), TrainError> {
    let sum: f64 = shares.iter().sum();
    require(shares.iter().all(|share| (0.0..=1.0).contains(share)) && (sum - 1.0).abs() <= SHARE_SLACK, || {
        format!("shares of the data: expected numbers in [0, 1] with the sum 1, got {shares:?}")
    })
}

/// Whole numbers with the sum `n`, as near to the shares as they can be; of equal remainders the first ones are rounded up.
fn whole_rows(shares: &[f64], n: usize) -> Vec<usize> {
    let exact: Vec<f64> = shares.iter().map(|share| share * n as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|exact| (exact + SHARE_SLACK).floor() as usize).collect();
    let remainders: Vec<f64> = exact.iter().zip(&counts).map(|(exact, count)| exact - *count as f64).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| remainders[*b].total_cmp(&remainders[*a]));
    let missing = n.saturating_sub(counts.iter().sum());
    order.into_iter().take(missing).for_each(|i| counts[i] += 1);
    counts
}

impl BatchSource for MixedSource {
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        let mut rows: Vec<&TokenRow> = Vec::new();
        for (side, order, n) in &self.parts {
            rows.extend(order.indices(step, *n).into_iter().map(|i| &side[i]));
        }
        rows.chunks(self.rows_per_micro).map(MicroBatch::new).collect()
    }

    fn seq_len(&self, _step: u64) -> usize {
        self.seq_len
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tiny;

    fn part(id: u32, n: usize, share: f64) -> MixPart {
        let row = TokenRow { ids: vec![id; 4], segments: vec![0; 4], weights: vec![0., 1., 1., 1.] };
        MixPart { name: format!("part {id}"), rows: vec![row; n], fingerprint: format!("rows {id}"), share }
    }

    /// Eight rows of four tokens a step, four in each micro-batch.
    fn config() -> TrainConfig {
        TrainConfig { tokens_per_step: 32, tokens_per_micro_batch: 16, ..tiny::config(10) }
    }

    #[test]
    fn every_step_has_the_configured_share() {
        let mut source = MixedSource::new(vec![part(1, 5, 0.75), part(2, 7, 0.25)], 4, &config()).unwrap();
        for step in 0..9 {
            let batches = source.step(step).unwrap();
            assert_eq!(batches.len(), 2);
            let ids: Vec<i32> = batches.iter().flat_map(|b| b.rows.ids.clone()).collect();
            let domain = ids.iter().filter(|&&id| id == 1).count();
            assert_eq!((ids.len(), domain), (32, 24), "step {step}");
        }
        assert!(MixedSource::new(vec![part(1, 0, 0.5), part(2, 1, 0.5)], 4, &config()).is_err());
    }

    #[test]
    fn shares_become_whole_rows_and_none_is_lost() {
        for (shares, n, want) in [
            (&[0.35, 0.15, 0.15, 0.2, 0.05, 0.1][..], 20, &[7, 3, 3, 4, 1, 2][..]),
            (&[0.7, 0.3], 8, &[6, 2]),
            (&[0.5, 0.5], 5, &[3, 2]),
            (&[1.0], 3, &[3]),
            (&[1.0, 0.0], 3, &[3, 0]),
        ] {
            assert_eq!(whole_rows(shares, n), want, "{shares:?}");
        }
        let refused = |parts: Vec<MixPart>| MixedSource::new(parts, 4, &config()).unwrap_err().to_string();
        let error = refused(vec![part(1, 5, 0.96), part(2, 5, 0.04)]);
        assert!(error.contains("`part 2`") && error.contains("0.04 of 8"), "{error}");
        assert!(refused(vec![part(1, 5, 0.6), part(2, 5, 0.3)]).contains("with the sum 1"));
        assert!(refused(vec![part(1, 5, f64::NAN)]).contains("in [0, 1]"));
        assert!(refused(Vec::new()).contains("with the sum 1"));
    }

    #[test]
    fn another_share_is_another_run() {
        let of = |share: f64| {
            MixedSource::new(vec![part(1, 5, share), part(2, 5, 1.0 - share)], 4, &config()).unwrap().fingerprint()
        };
        assert_eq!(of(0.5), gates::artifact::hash_bytes(b"rows 1 rows 2 0.5"));
        assert_ne!(of(0.5), of(0.75));
    }
}
