//! Preference records as packed rows: both answers of a pair in one row, each a segment of its own.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use data_pipeline::{Order, Overlong, PADDING_SEGMENT, Sequence, TokenRow, pack_best_fit};
use trainer::render::ChatRenderer;
use trainer::{BatchSource, MicroBatch, Pair, TrainConfig, TrainError};

/// A pair inside a row: token ranges, and the number of its record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairInRow {
    /// Prompt and chosen answer.
    pub(crate) chosen: Range<usize>,
    /// Prompt and rejected answer.
    pub(crate) rejected: Range<usize>,
    /// Number of the record, which is the place of its reference values.
    pub(crate) record: usize,
}

/// A row and the pairs in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairRow {
    /// Tokens.
    pub(crate) row: TokenRow,
    /// Pairs.
    pub(crate) pairs: Vec<PairInRow>,
}

/// All pairs of a file, packed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairRows {
    /// Rows.
    pub(crate) rows: Vec<PairRow>,
    /// Number of records.
    pub(crate) n_records: usize,
    /// Hash over records, tokenizer, format and row length.
    pub(crate) fingerprint: String,
}

impl PairRows {
    /// Reads, renders and packs preference records.
    ///
    /// # Errors
    /// A record that cannot be read or rendered, or whose two answers do not fit one row, by file and number.
    pub(crate) fn read(path: &Path, seq_len: usize, renderer: &ChatRenderer<'_>) -> Result<Self, TrainError> {
        let sides = renderer.pairs(path, seq_len)?;
        let lengths: Vec<usize> = sides.iter().map(|pair| pair.iter().map(|side| side.ids.len()).sum()).collect();
        let pad = renderer.pad_id()?;
        let packed = pack_best_fit(&lengths, seq_len, Overlong::Truncate);
        let fill = |records: Vec<usize>| fill_row(&records, &sides, seq_len, pad);
        let rows = packed.into_iter().map(|pieces| fill(pieces.iter().map(|piece| piece.doc).collect())).collect();
        Ok(Self { rows, n_records: sides.len(), fingerprint: renderer.fingerprint(path, seq_len)? })
    }

    /// Rows `which` as a micro-batch; `reference` holds the values by record.
    ///
    /// # Errors
    /// As [`MicroBatch::new`].
    pub(crate) fn batch(&self, which: &[usize], reference: Option<&[[f32; 2]]>) -> Result<MicroBatch, TrainError> {
        let rows: Vec<&PairRow> = which.iter().map(|&i| &self.rows[i]).collect();
        let mut batch = MicroBatch::new(&rows.iter().map(|pair_row| &pair_row.row).collect::<Vec<_>>())?;
        for (at, pair_row) in rows.iter().enumerate() {
            let offset = at * pair_row.row.len();
            let shift = |range: &Range<usize>| range.start + offset..range.end + offset;
            batch.pairs.extend(pair_row.pairs.iter().map(|pair| Pair {
                chosen: shift(&pair.chosen),
                rejected: shift(&pair.rejected),
                reference: reference.map(|values| values[pair.record]),
            }));
        }
        Ok(batch)
    }
}

fn fill_row(records: &[usize], sides: &[[Sequence; 2]], seq_len: usize, pad: u32) -> PairRow {
    let mut row = TokenRow::default();
    let mut pairs = Vec::new();
    for &record in records {
        let mut append = |sequence: &Sequence| {
            let (start, segment) = (row.ids.len(), row.segments.last().map_or(0, |last| last + 1));
            row.ids.extend_from_slice(&sequence.ids);
            row.weights.extend_from_slice(&sequence.weights);
            row.weights[start] = 0.0;
            row.segments.resize(row.ids.len(), segment);
            start..row.ids.len()
        };
        let [chosen, rejected] = sides[record].each_ref().map(&mut append);
        pairs.push(PairInRow { chosen, rejected, record });
    }
    row.ids.resize(seq_len, pad);
    row.segments.resize(seq_len, PADDING_SEGMENT);
    row.weights.resize(seq_len, 0.0);
    PairRow { row, pairs }
}

/// Batches of pairs with their reference values; the order is a pure function of the seed and the step.
pub(crate) struct PairSource {
    rows: Arc<PairRows>,
    reference: Arc<Vec<[f32; 2]>>,
    order: Order,
    rows_per_step: usize,
    rows_per_micro: usize,
    seq_len: usize,
}

impl PairSource {
    /// Batches in the sizes of `config`.
    ///
    /// # Errors
    /// When the token counts do not fit the row length.
    pub(crate) fn new(
        rows: Arc<PairRows>,
        reference: Arc<Vec<[f32; 2]>>,
        seq_len: usize,
        config: &TrainConfig,
    ) -> Result<Self, TrainError> {
        let (rows_per_step, rows_per_micro) = config.rows(seq_len)?;
        let order = Order::new(config.seed, rows.rows.len());
        Ok(Self { rows, reference, order, rows_per_step, rows_per_micro, seq_len })
    }
}

impl BatchSource for PairSource {
    fn step(&mut self, step: u64) -> Result<Vec<MicroBatch>, TrainError> {
        let indices = self.order.indices(step, self.rows_per_step);
        indices.chunks(self.rows_per_micro).map(|chunk| self.rows.batch(chunk, Some(&self.reference))).collect()
    }

    fn seq_len(&self, _step: u64) -> usize {
        self.seq_len
    }

    fn fingerprint(&self) -> String {
        self.rows.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use data_pipeline::tokenizer::HARMONY_TOKENS;
    use model_core::{Experts, Family, GptOss, Harmony, ModelConfig, Tokenizer};
    use trainer::render::ChatKeys;

    use super::*;

    #[test]
    fn s20_pairs_of_a_gpt_oss_are_harmony_and_only_their_answers_count() {
        let n = 256 + HARMONY_TOKENS.len();
        let trained = data_pipeline::tokenizer::train(std::iter::empty(), n, &HARMONY_TOKENS).unwrap();
        let tokenizer = Tokenizer::from_json(trained.json().to_vec(), Path::new("tokenizer.json")).unwrap();
        let experts = Experts { n: 2, top_k: 1, limit: 7.0, alpha: 1.702, balance_coef: 0.0 };
        let family = Family::GptOss(GptOss { window: 8, sliding: vec![true], experts });
        let model = ModelConfig { family, ..ModelConfig::from_depth(1, n) };
        let renderer = ChatRenderer::new(&ChatKeys::default(), &tokenizer, &model).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        let lines = "{\"prompt\":\"2+2?\",\"chosen\":\"4\",\"rejected\":\"5\"}\n\
             {\"prompt\":\"Hi.\",\"chosen\":[{\"role\":\"assistant\",\"channel\":\"analysis\",\"content\":\"Greet.\"},\
             {\"role\":\"assistant\",\"channel\":\"final\",\"content\":\"Hello.\"}],\"rejected\":\"No.\"}\n";
        std::fs::write(&path, lines).unwrap();
        let rows = PairRows::read(&path, 256, &renderer).unwrap();
        assert_eq!((rows.rows.len(), rows.n_records), (1, 2));
        let batch = rows.batch(&[0], Some(&[[-1.0, -2.0], [-3.0, -4.0]])).unwrap();
        let (targets, _) = batch.targets();
        let harmony = Harmony::new(&tokenizer).unwrap();
        let spelled = |range: &Range<usize>| {
            let ids: Vec<u32> = range.clone().filter(|&at| targets[at] >= 0).map(|at| targets[at] as u32).collect();
            harmony.decode(&ids)
        };
        let mut pairs: Vec<_> =
            batch.pairs.iter().map(|pair| (spelled(&pair.chosen), spelled(&pair.rejected), pair.reference)).collect();
        pairs.sort_by(|a, b| a.2.unwrap()[0].total_cmp(&b.2.unwrap()[0]));
        let answer = |text: &str| format!("<|channel|>final<|message|>{text}<|return|>");
        let thought = "<|channel|>analysis<|message|>Greet.<|end|><|start|>assistant";
        let want = [
            (format!("{thought}{}", answer("Hello.")), answer("No."), Some([-3.0, -4.0])),
            (answer("4"), answer("5"), Some([-1.0, -2.0])),
        ];
        assert_eq!(pairs, want);
        let error = PairRows::read(&path, 32, &renderer).unwrap_err().to_string();
        assert!(error.contains("record 1 has") && error.contains("a row holds 32"), "{error}");
    }
}
