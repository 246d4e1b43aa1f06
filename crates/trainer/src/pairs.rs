//! Preference records as packed rows: both answers of a pair in one row, each a segment of its own.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use data_pipeline::{Order, Overlong, PADDING_SEGMENT, Sequence, TokenRow, pack_best_fit};
use kernels_cubecl::LmBackend;
use model_core::{Decoder, Tokenizer};

use crate::batch::check_vocab;
use crate::lineage::Input;
use crate::render::{ChatKeys, ChatRenderer};
use crate::tune::TuningData;
use crate::{BatchSource, EvalSet, MicroBatch, Pair, TrainConfig, TrainError};

mod reference;

use reference::reference;

/// A pair inside a row: token ranges, and the number of its record.
#[derive(Clone, Debug, PartialEq)]
pub struct PairInRow {
    /// Prompt and chosen answer.
    pub chosen: Range<usize>,
    /// Prompt and rejected answer.
    pub rejected: Range<usize>,
    /// Number of the record, which is the place of its reference values.
    pub record: usize,
}

/// A row and the pairs in it.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRow {
    /// Tokens.
    pub row: TokenRow,
    /// Pairs.
    pub pairs: Vec<PairInRow>,
}

/// All pairs of a file, packed.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRows {
    /// Rows.
    pub rows: Vec<PairRow>,
    /// Number of records.
    pub n_records: usize,
    /// Hash over records, tokenizer, format and row length.
    pub fingerprint: String,
}

impl PairRows {
    /// Reads, renders and packs preference records.
    ///
    /// # Errors
    /// A record that cannot be read or rendered, or whose two answers do not fit one row, by file and number.
    pub fn read(path: &Path, seq_len: usize, renderer: &ChatRenderer<'_>) -> Result<Self, TrainError> {
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
    pub fn batch(&self, which: &[usize], reference: Option<&[[f32; 2]]>) -> Result<MicroBatch, TrainError> {
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

/// Where the preference records of a stage are, and how they become rows.
#[derive(Clone, Copy, Debug)]
pub struct PairFiles<'a> {
    /// Records to train on.
    pub data: &'a Path,
    /// Held-out records.
    pub eval_data: &'a Path,
    /// How they are written as tokens.
    pub chat: &'a ChatKeys,
    /// Row length; both answers of a pair stand in one row.
    pub seq_len: usize,
    /// Rows of one batch of the evaluation and of the reference pass.
    pub eval_batch: usize,
}

impl PairFiles<'_> {
    /// Reads the records and their reference log-probabilities under `model`, the model of the folder `model_dir` without an
    /// adapter, which are kept as files in `dir`.
    ///
    /// # Errors
    /// As [`PairRows::read`]; ids beyond the model's vocabulary; reference values that are not finite or cannot be kept.
    pub fn open<B: LmBackend>(
        &self,
        dir: &Path,
        model_dir: &Path,
        model: &Decoder<B>,
        config: &TrainConfig,
        device: &B::Device,
    ) -> Result<TuningData, TrainError> {
        let tokenizer = Tokenizer::load(model_dir)?;
        let renderer = ChatRenderer::new(self.chat, &tokenizer, &model.config)?;
        let read = |path: &Path| -> Result<(PairRows, Vec<TokenRow>), TrainError> {
            let rows = PairRows::read(path, self.seq_len, &renderer)?;
            let tokens: Vec<TokenRow> = rows.rows.iter().map(|pair_row| pair_row.row.clone()).collect();
            check_vocab(&path.display().to_string(), &tokens, &model.config)?;
            Ok((rows, tokens))
        };
        let ((train_rows, _), (eval_rows, heldout)) = (read(self.data)?, read(self.eval_data)?);
        let model_hash = Input::model(model_dir)?.hash;
        std::fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
        let values = |rows: &PairRows| reference(dir, &model_hash, model, rows, self.eval_batch, device);
        let (train_reference, eval_reference) = (values(&train_rows)?, values(&eval_rows)?);
        let eval = eval_set(&eval_rows, &eval_reference, self.eval_batch)?;
        let inputs =
            [("preferences".to_owned(), Input::tree(self.data)?), ("eval".to_owned(), Input::tree(self.eval_data)?)];
        let source = PairSource::new(Arc::new(train_rows), Arc::new(train_reference), self.seq_len, config)?;
        Ok(TuningData { source: Box::new(source), eval, heldout, inputs: inputs.into() })
    }
}

fn eval_set(rows: &PairRows, reference: &[[f32; 2]], batch: usize) -> Result<EvalSet, TrainError> {
    let all: Vec<usize> = (0..rows.rows.len()).collect();
    let batches: Result<Vec<MicroBatch>, TrainError> =
        all.chunks(batch).map(|which| rows.batch(which, Some(reference))).collect();
    Ok(EvalSet { batches: batches?, text_bytes: None })
}

/// Batches of pairs with their reference values; the order is a pure function of the seed and the step.
#[derive(Debug)]
pub struct PairSource {
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
    pub fn new(
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
    use model_core::{Experts, Family, GptOss, Harmony, ModelConfig};

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
