//! Micro-batches and where they come from.

use data_pipeline::{Order, PADDING_SEGMENT, TokenRow};
use model_core::{ModelConfig, Rows};

use crate::TrainError;

/// Label of a position that predicts nothing.
pub const IGNORED: i32 = -100;

/// Rows of one forward and backward pass.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Token ids, positions and segments.
    pub rows: Rows,
    /// Weight of every token as a label, row after row.
    pub weights: Vec<f32>,
    /// Preference pairs in these rows; empty for next-token data.
    pub pairs: Vec<Pair>,
    /// Sampled completions in these rows; empty for other data.
    pub samples: Vec<Sample>,
}

/// Two answers to one prompt inside a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Flat token range (row · seq_len + position) of prompt and chosen answer.
    pub chosen: std::ops::Range<usize>,
    /// Flat token range of prompt and rejected answer.
    pub rejected: std::ops::Range<usize>,
    /// Summed log-probability of the chosen and of the rejected answer under the reference model.
    pub reference: Option<[f32; 2]>,
}

/// A completion that the model sampled, inside a micro-batch; the labels of its range are the sampled tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Flat token range of prompt and completion.
    pub tokens: std::ops::Range<usize>,
    /// How much better it is than its group.
    pub advantage: f32,
    /// Log-probability of each sampled token under the weights that sampled it, by the forward pass of training.
    pub old: Vec<f32>,
    /// The same under the reference model.
    pub reference: Option<Vec<f32>>,
    /// The same as the sampler knew it.
    pub sampled: Vec<f32>,
    /// Updates since it was sampled.
    pub age: u64,
}

impl MicroBatch {
    /// A batch without pairs and completions.
    ///
    /// # Errors
    /// When rows differ in length or there is none.
    pub fn new(rows: &[&TokenRow]) -> Result<Self, TrainError> {
        let seq_len = rows.first().map_or(0, |row| row.len());
        if seq_len == 0 || rows.iter().any(|row| row.len() != seq_len) {
            return Err(TrainError::Batch {
                problem: "rows must be there and of one length; pack the data again".into(),
            });
        }
        let flat = |f: &dyn Fn(&TokenRow) -> Vec<i32>| rows.iter().flat_map(|row| f(row)).collect::<Vec<i32>>();
        let ids = flat(&|row| row.ids.iter().map(|&id| id as i32).collect());
        let segments =
            flat(&|row| row.segments.iter().map(|&s| if s == PADDING_SEGMENT { -1 } else { s as i32 }).collect());
        let rows_in = Rows::from_segments(rows.len(), seq_len, ids, segments)?;
        Ok(Self {
            rows: rows_in,
            weights: rows.iter().flat_map(|row| row.weights.clone()).collect(),
            pairs: Vec::new(),
            samples: Vec::new(),
        })
    }

    /// Label and weight of every position: position i predicts token i + 1 of the same segment.
    pub fn targets(&self) -> (Vec<i32>, Vec<f32>) {
        let (n, seq_len) = (self.rows.ids.len(), self.rows.seq_len);
        let mut targets = vec![IGNORED; n];
        let mut weights = vec![0.0; n];
        for i in 0..n.saturating_sub(1) {
            let same_row = (i + 1) % seq_len != 0;
            let segment = self.rows.segments[i];
            if same_row && segment >= 0 && self.rows.segments[i + 1] == segment && self.weights[i + 1] > 0.0 {
                targets[i] = self.rows.ids[i + 1];
                weights[i] = self.weights[i + 1];
            }
        }
        (targets, weights)
    }

    /// Sum of the label weights.
    pub fn weight_sum(&self) -> f64 {
        self.targets().1.iter().map(|&w| f64::from(w)).sum()
    }

    /// Tokens, padding included: what the hardware works on.
    pub fn n_tokens(&self) -> u64 {
        self.rows.ids.len() as u64
    }
}

/// Where the loop gets its batches: a pure function of the step.
pub trait BatchSource {
    /// The micro-batches of the step that follows `step` completed ones.
    ///
    /// # Errors
    /// Whatever keeps the data from being read.
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError>;

    /// Row length at this step, for the FLOP count.
    fn seq_len(&self, step: u64) -> usize;

    /// Hash over everything that decides which tokens come when.
    fn fingerprint(&self) -> String;
}

/// The rows of the evaluation, in fixed batches, with the bytes of text that they stand for.
#[derive(Clone, Debug, Default)]
pub struct EvalSet {
    /// Batches.
    pub batches: Vec<MicroBatch>,
    /// UTF-8 bytes of the predicted tokens, when known: bits per byte is reported then.
    pub text_bytes: Option<u64>,
}

impl EvalSet {
    /// All `rows` in batches of `per_batch`.
    ///
    /// # Errors
    /// As [`MicroBatch::new`].
    pub fn new(rows: &[TokenRow], per_batch: usize, text_bytes: Option<u64>) -> Result<Self, TrainError> {
        let batches = rows.chunks(per_batch.max(1)).map(|rows| MicroBatch::new(&rows.iter().collect::<Vec<_>>()));
        Ok(Self { batches: batches.collect::<Result<_, _>>()?, text_bytes })
    }

    /// Hash over everything that decides what an evaluation finds, reference log-probabilities included.
    pub fn fingerprint(&self) -> String {
        let mut text = format!("{:?}", self.text_bytes);
        for batch in &self.batches {
            let MicroBatch { rows, weights, pairs, samples } = batch;
            text.push_str(&format!("{} {:?} {:?} {weights:?} {pairs:?}", rows.seq_len, rows.ids, rows.segments));
            if !samples.is_empty() {
                text.push_str(&format!("{samples:?}"));
            }
            // Folded batch by batch, so that the text stays as long as one batch.
            text = gates::artifact::hash_bytes(text.as_bytes());
        }
        gates::artifact::hash_bytes(text.as_bytes())
    }
}

/// One or several phases of fixed rows, each with its own row length; the order within a phase is a pure function of
/// the seed and the step.
#[derive(Debug)]
pub struct RowSource {
    phases: Vec<Phase>,
}

/// Rows in use until a step.
#[derive(Debug)]
struct Phase {
    until_step: u64,
    rows: std::sync::Arc<Vec<TokenRow>>,
    order: Order,
    rows_per_step: usize,
    rows_per_micro: usize,
    fingerprint: String,
}

/// What a phase is made of.
#[derive(Debug)]
pub struct PhaseRows {
    /// Steps completed when the phase ends.
    pub until_step: u64,
    /// Its rows.
    pub rows: std::sync::Arc<Vec<TokenRow>>,
    /// Hash of the rows.
    pub fingerprint: String,
}

impl RowSource {
    /// Phases in order; the last one lasts to the end.
    ///
    /// # Errors
    /// When there is no phase, a phase has no rows, or the token counts do not fit its row length.
    pub fn new(phases: Vec<PhaseRows>, config: &crate::TrainConfig) -> Result<Self, TrainError> {
        let mut built = Vec::new();
        for (i, phase) in phases.into_iter().enumerate() {
            let seq_len = phase.rows.first().map_or(0, TokenRow::len);
            if seq_len == 0 {
                let problem = format!("phase {i} has no rows; check the data folder it names");
                return Err(TrainError::Batch { problem });
            }
            let (rows_per_step, rows_per_micro) = config.rows(seq_len)?;
            // Each phase has an order of its own, so that repacked rows do not come in the order of the phase before.
            let order = Order::new(config.seed.wrapping_add(i as u64), phase.rows.len());
            let PhaseRows { until_step, rows, fingerprint } = phase;
            built.push(Phase { until_step, rows, order, rows_per_step, rows_per_micro, fingerprint });
        }
        if built.is_empty() {
            return Err(TrainError::Batch { problem: "no phase of rows; name at least one data folder".into() });
        }
        Ok(Self { phases: built })
    }

    /// The phase of a step, and how many steps of it came before.
    fn phase_at(&self, step: u64) -> (&Phase, u64) {
        let mut start = 0;
        for phase in &self.phases[..self.phases.len() - 1] {
            if step < phase.until_step {
                return (phase, step - start);
            }
            start = phase.until_step;
        }
        (&self.phases[self.phases.len() - 1], step - start)
    }

    /// The row numbers of a step, for tests and reports.
    pub fn indices(&self, step: u64) -> Vec<usize> {
        let (phase, local) = self.phase_at(step);
        phase.order.indices(local, phase.rows_per_step)
    }
}

impl BatchSource for RowSource {
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        let (phase, local) = self.phase_at(step);
        let indices = phase.order.indices(local, phase.rows_per_step);
        let micro = |chunk: &[usize]| MicroBatch::new(&chunk.iter().map(|&i| &phase.rows[i]).collect::<Vec<_>>());
        indices.chunks(phase.rows_per_micro).map(micro).collect()
    }

    fn seq_len(&self, step: u64) -> usize {
        self.phase_at(step).0.rows[0].len()
    }

    fn fingerprint(&self) -> String {
        let parts: Vec<String> = self.phases.iter().map(|p| format!("{}@{}", p.fingerprint, p.until_step)).collect();
        gates::artifact::hash_bytes(parts.join(",").as_bytes())
    }
}

/// Refuses rows with an id beyond the model's vocabulary.
///
/// # Errors
/// [`TrainError::Batch`] with both numbers.
pub fn check_vocab(what: &str, rows: &[TokenRow], config: &ModelConfig) -> Result<(), TrainError> {
    let largest = rows.iter().flat_map(|row| row.ids.iter()).max().copied().unwrap_or(0);
    if (largest as usize) < config.vocab_size {
        return Ok(());
    }
    let v = config.vocab_size;
    Err(TrainError::Batch {
        problem: format!("{what} has token id {largest}, the model has {v} ids; tokenize with the model's tokenizer"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], segments: &[u32], weights: &[f32]) -> TokenRow {
        TokenRow { ids: ids.to_vec(), segments: segments.to_vec(), weights: weights.to_vec() }
    }

    #[test]
    fn targets_stay_inside_their_segment_and_row() {
        let p = PADDING_SEGMENT;
        let a = row(&[1, 2, 3, 4], &[0, 0, 1, 1], &[0., 1., 0., 0.5]);
        let b = row(&[5, 6, 0, 0], &[0, 0, p, p], &[0., 1., 0., 0.]);
        let batch = MicroBatch::new(&[&a, &b]).unwrap();
        let (targets, weights) = batch.targets();
        assert_eq!(targets, [2, IGNORED, 4, IGNORED, 6, IGNORED, IGNORED, IGNORED]);
        assert_eq!(weights, [1., 0., 0.5, 0., 1., 0., 0., 0.]);
        assert_eq!(batch.weight_sum(), 2.5);
    }

    #[test]
    fn rows_of_two_lengths_and_no_rows_are_refused() {
        let (a, b) = (row(&[1, 2], &[0, 0], &[0., 1.]), row(&[1], &[0], &[0.]));
        assert!(matches!(MicroBatch::new(&[&a, &b]), Err(TrainError::Batch { .. })));
        assert!(matches!(MicroBatch::new(&[]), Err(TrainError::Batch { .. })));
    }
}
