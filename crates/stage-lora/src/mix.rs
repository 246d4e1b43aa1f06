//! Domain rows with a share of general rows in every step.

use std::sync::Arc;

use data_pipeline::{Order, TokenRow};
use trainer::config::require;
use trainer::{BatchSource, MicroBatch, TrainConfig, TrainError};

/// A fixed number of rows of each kind per step; the order of each is a pure function of the seed and the step.
#[derive(Debug)]
pub struct MixedSource {
    domain: (Arc<Vec<TokenRow>>, Order, usize),
    general: (Arc<Vec<TokenRow>>, Order, usize),
    rows_per_micro: usize,
    seq_len: usize,
    fingerprint: String,
}

impl MixedSource {
    /// Mixes `share` domain rows, rounded to whole rows and at least one, with general ones.
    ///
    /// # Errors
    /// When a side is empty that should give rows, or the token counts do not fit the row length.
    pub fn new(
        domain: Vec<TokenRow>,
        general: Vec<TokenRow>,
        share: f64,
        seq_len: usize,
        config: &TrainConfig,
        fingerprint: String,
    ) -> Result<Self, TrainError> {
        let (rows_per_step, rows_per_micro) = config.rows(seq_len)?;
        require(!domain.is_empty() && !general.is_empty(), || {
            "keys `domain` and `general`: expected packed rows, one of them has none".into()
        })?;
        let n_domain = ((rows_per_step as f64 * share).round() as usize).clamp(1, rows_per_step);
        let orders = [config.seed, config.seed.wrapping_add(1)];
        let side = |rows: Vec<TokenRow>, seed: u64, n: usize| {
            let order = Order::new(seed, rows.len());
            (Arc::new(rows), order, n)
        };
        Ok(Self {
            domain: side(domain, orders[0], n_domain),
            general: side(general, orders[1], rows_per_step - n_domain),
            rows_per_micro,
            seq_len,
            fingerprint: gates::artifact::hash_bytes(format!("{fingerprint} {share}").as_bytes()),
        })
    }
}

impl BatchSource for MixedSource {
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        let mut rows: Vec<&TokenRow> = Vec::new();
        for (side, order, n) in [&self.domain, &self.general] {
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

    #[test]
    fn every_step_has_the_configured_share() {
        let row = |id: u32| TokenRow { ids: vec![id; 4], segments: vec![0; 4], weights: vec![0., 1., 1., 1.] };
        let config: TrainConfig =
            trainer::config::load(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/train.toml")), &[])
                .unwrap();
        let mut source = MixedSource::new(vec![row(1); 5], vec![row(2); 7], 0.75, 4, &config, "rows".into()).unwrap();
        for step in 0..9 {
            let batches = source.step(step).unwrap();
            assert_eq!(batches.len(), 2);
            let ids: Vec<i32> = batches.iter().flat_map(|b| b.rows.ids.clone()).collect();
            let domain = ids.iter().filter(|&&id| id == 1).count();
            assert_eq!((ids.len(), domain), (32, 24), "step {step}");
        }
        assert!(MixedSource::new(vec![], vec![row(2)], 0.5, 4, &config, String::new()).is_err());
    }
}
