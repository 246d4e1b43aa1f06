//! The one forward pass behind every task: log-probability and most likely token at chosen places of token rows.
//!
//! # Numerics
//! Logits and log-sum-exp as `kernels-cubecl` computes them (f32), sums over tokens in f64 by the callers.

use burn::tensor::{Int, Tensor, TensorData};
use kernels_cubecl::{LmBackend, TokenStats, token_stats};
use model_core::rows::PADDING;
use model_core::{Decoder, Rows};

use crate::error::EvalError;

/// A model with the place where it computes.
#[derive(Debug)]
pub struct Scorer<'a, B: LmBackend> {
    /// The model.
    pub model: &'a Decoder<B>,
    /// Its device.
    pub device: &'a B::Device,
    /// Tokens in one forward pass at most, except for a single longer row.
    pub batch_tokens: usize,
}

/// A row of tokens with the tokens that are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredRow {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token; a token sees only its own segment. [`PADDING`] is not seen.
    pub segments: Vec<i32>,
    /// Positions that are scored, rising; each needs a token of its segment before it.
    pub scored: Vec<usize>,
}

/// What the model says about one scored token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Whether no other token is more likely.
    pub is_argmax: bool,
}

impl ScoredRow {
    /// One sequence of which everything from `from` on is scored.
    pub fn tail(ids: Vec<u32>, from: usize) -> Self {
        let (segments, scored) = (vec![0; ids.len()], (from..ids.len()).collect());
        Self { ids, segments, scored }
    }
}

impl<B: LmBackend> Scorer<'_, B> {
    /// Scores rows; the result for a row has one entry per scored position. `task` is for messages.
    ///
    /// # Errors
    /// [`EvalError::TooLong`] for a row beyond the model's context, [`EvalError::Model`] for an id without embedding.
    pub fn score(&self, task: &str, rows: &[ScoredRow]) -> Result<Vec<Vec<TokenScore>>, EvalError> {
        let max = self.model.config.max_seq_len;
        if let Some((item, row)) = rows.iter().enumerate().find(|(_, row)| row.ids.len() > max) {
            return Err(EvalError::TooLong { task: task.into(), item, len: row.ids.len(), max });
        }
        // Rows of like length share a pass, so that little is padding.
        let mut order: Vec<usize> = (0..rows.len()).filter(|&i| !rows[i].scored.is_empty()).collect();
        order.sort_by_key(|&i| (rows[i].ids.len(), i));
        let mut scores = vec![Vec::new(); rows.len()];
        while !order.is_empty() {
            let batch = self.last_batch(&order, rows);
            let chosen: Vec<&ScoredRow> = order[batch..].iter().map(|&i| &rows[i]).collect();
            for (&i, found) in order[batch..].iter().zip(self.score_batch(&chosen)?) {
                scores[i] = found;
            }
            order.truncate(batch);
        }
        Ok(scores)
    }

    /// Start of the longest tail of `order` that fits a pass; the longest row comes last.
    fn last_batch(&self, order: &[usize], rows: &[ScoredRow]) -> usize {
        let longest = order.last().map_or(1, |&i| rows[i].ids.len());
        order.len() - (self.batch_tokens / longest).clamp(1, order.len())
    }

    fn score_batch(&self, rows: &[&ScoredRow]) -> Result<Vec<Vec<TokenScore>>, EvalError> {
        let t = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let (mut ids, mut segments) = (vec![0; rows.len() * t], vec![PADDING; rows.len() * t]);
        // The hidden state at `places` predicts the token at the next position: its target.
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (r, row) in rows.iter().enumerate() {
            for (i, (&id, &segment)) in row.ids.iter().zip(&row.segments).enumerate() {
                (ids[r * t + i], segments[r * t + i]) = (i32::try_from(id).unwrap_or(-1), segment);
            }
            places.extend(row.scored.iter().map(|&i| (r * t + i - 1) as i64));
            targets.extend(row.scored.iter().map(|&i| i64::from(row.ids[i])));
        }
        let rows_in = Rows::from_segments(rows.len(), t, ids, segments)?;
        rows_in.check_vocab(&self.model.config)?;
        let stats = self.stats(&rows_in, places, &targets);
        let mut flat = stats.into_iter();
        Ok(rows.iter().map(|row| flat.by_ref().take(row.scored.len()).collect()).collect())
    }

    fn stats(&self, rows: &Rows, places: Vec<i64>, targets: &[i64]) -> Vec<TokenScore> {
        let input = rows.to_input::<B>(&self.model.config, self.device);
        let hidden = self.model.hidden(&input, false);
        let [b, t, d] = hidden.dims();
        let m = places.len();
        let places = Tensor::<B, 1, Int>::from_data(TensorData::new(places, [m]), self.device);
        let picked = hidden.reshape([b * t, d]).select(0, places);
        let wanted = Tensor::<B, 1, Int>::from_data(TensorData::new(targets.to_vec(), [m]), self.device);
        let TokenStats { logprob, argmax, .. } = token_stats(picked, self.model.head(), wanted);
        let logprob = logprob.into_data().convert::<f32>().into_vec::<f32>().expect("converted to f32");
        let argmax = argmax.into_data().convert::<i64>().into_vec::<i64>().expect("converted to i64");
        let score = |((logprob, argmax), &target): ((f32, i64), &i64)| TokenScore {
            logprob: f64::from(logprob),
            is_argmax: argmax == target,
        };
        logprob.into_iter().zip(argmax).zip(targets).map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fixture::tiny;

    #[test]
    fn batches_of_any_size_give_the_scores_of_single_rows() {
        let (model, device) = tiny();
        let lengths = [3, 9, 5, 5, 17];
        let rows: Vec<ScoredRow> =
            lengths.iter().map(|&n| ScoredRow::tail((0..n).map(|i| (7 * i + n) % 250).collect(), 1)).collect();
        let scorer = |batch_tokens| Scorer { model: &model, device: &device, batch_tokens };
        let alone = scorer(1).score("t", &rows).unwrap();
        assert_eq!(alone.iter().map(Vec::len).collect::<Vec<_>>(), [2, 8, 4, 4, 16]);
        for batch_tokens in [20, 1000] {
            for (want, got) in
                alone.iter().flatten().zip(scorer(batch_tokens).score("t", &rows).unwrap().iter().flatten())
            {
                assert!(
                    (want.logprob - got.logprob).abs() < 1e-4 && want.is_argmax == got.is_argmax,
                    "{want:?} {got:?}"
                );
            }
        }
    }

    #[test]
    fn scores_are_those_of_the_full_softmax() {
        let (model, device) = tiny();
        let ids = vec![5, 9, 200, 3, 3, 77];
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 64 };
        let got =
            scorer.score("t", &[ScoredRow { ids: ids.clone(), segments: vec![0; 6], scored: vec![2, 5] }]).unwrap();
        let rows = Rows::from_segments(1, 6, ids.iter().map(|&i| i as i32).collect(), vec![0; 6]).unwrap();
        let hidden = model.hidden(&rows.to_input(&model.config, &device), false);
        let logits = kernels_cubecl::linear(hidden, model.head()).into_data().into_vec::<f32>().unwrap();
        let v = model.config.vocab_size;
        for (score, i) in got[0].iter().zip([2, 5]) {
            let row = &logits[(i - 1) * v..i * v];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let want = f64::from(row[ids[i] as usize]) - sum.ln();
            assert!((score.logprob - want).abs() < 1e-4, "{} {want}", score.logprob);
            assert_eq!(score.is_argmax, row.iter().all(|&x| x <= row[ids[i] as usize]));
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_named() {
        let (model, device) = tiny();
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 64 };
        let long = ScoredRow::tail(vec![1; model.config.max_seq_len + 1], 1);
        let message = scorer.score("answers", &[ScoredRow::tail(vec![1, 2], 1), long]).unwrap_err().to_string();
        assert!(message.contains("task `answers`, item 1"), "{message}");
        let outside = ScoredRow::tail(vec![1, model.config.vocab_size as u32], 1);
        assert!(scorer.score("answers", &[outside]).is_err());
    }
}
