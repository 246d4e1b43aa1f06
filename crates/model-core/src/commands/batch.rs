//! Batches in files, and the loss of their labels.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use model_core::hf::TensorFile;
use model_core::rows::PADDING;
use model_core::{ModelConfig, ModelError, Rows};

/// Label of a token that is not trained.
const IGNORED: i64 = -100;

/// A batch as a file gives it.
pub(super) struct Batch {
    /// The tokens.
    pub(super) rows: Rows,
    /// What each token should be, where the file says so.
    pub(super) labels: Option<Vec<i64>>,
}

impl Batch {
    /// Reads in.input_ids and where present in.attention_mask, in.position_ids and in.labels.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let shape = file.shape("in.input_ids")?.to_vec();
        let [rows, seq_len] = shape[..] else {
            let (path, tensor) = (file.path().to_path_buf(), "in.input_ids".to_owned());
            return Err(ModelError::TensorShape { path, tensor, expected: vec![1, 1], got: shape })
                .context("expected two dimensions, rows and tokens");
        };
        let optional = |name: &str| -> Result<Option<Vec<i64>>> {
            if !file.contains(name) {
                return Ok(None);
            }
            if file.shape(name)? != [rows, seq_len] {
                let (path, tensor, got) = (file.path().to_path_buf(), name.to_owned(), file.shape(name)?.to_vec());
                return Err(ModelError::TensorShape { path, tensor, expected: vec![rows, seq_len], got }.into());
            }
            Ok(Some(file.read_i64(name)?))
        };
        // An id beyond i32 becomes one that no vocabulary has and is reported as such.
        let ids = file.read_i64("in.input_ids")?.into_iter().map(|id| i32::try_from(id).unwrap_or(i32::MAX)).collect();
        let (mask, positions) = (optional("in.attention_mask")?, optional("in.position_ids")?);
        let rows = Rows::from_mask_and_positions(rows, seq_len, ids, mask.as_deref(), positions.as_deref())
            .map_err(|error| error.in_file(file.path()))?;
        Ok(Batch { rows, labels: optional("in.labels")? })
    }

    /// Checks that the model has every id and every label.
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        self.rows.check_vocab(config)?;
        let vocab_size = config.vocab_size;
        let outside = |label: &i64| *label != IGNORED && !(0..vocab_size as i64).contains(label);
        let found = self.labels.iter().flatten().position(outside);
        ensure!(
            found.is_none(),
            "in.labels position {}: expected {IGNORED} or an id below vocab_size {vocab_size}; tokenize with this model's own tokenizer",
            found.unwrap_or_default()
        );
        Ok(())
    }

    /// The labels; without any, every token is one that has another of its document before it.
    pub(super) fn all_labels(&self) -> Vec<i64> {
        let Rows { ids, segments, seq_len, .. } = &self.rows;
        let label = |at: usize| {
            let follows = !at.is_multiple_of(*seq_len) && segments[at] != PADDING && segments[at] == segments[at - 1];
            if follows { i64::from(ids[at]) } else { IGNORED }
        };
        self.labels.clone().unwrap_or_else(|| (0..ids.len()).map(label).collect())
    }

    /// The same rows in batches of one.
    pub(super) fn split(&self) -> Vec<Batch> {
        let Rows { rows, seq_len, ids, positions, segments } = &self.rows;
        let one = |row: usize| {
            let at = row * seq_len..(row + 1) * seq_len;
            let part = |all: &[i32]| all[at.clone()].to_vec();
            let rows = Rows {
                rows: 1,
                seq_len: *seq_len,
                ids: part(ids),
                positions: part(positions),
                segments: part(segments),
            };
            Batch { rows, labels: self.labels.as_ref().map(|labels| labels[at.clone()].to_vec()) }
        };
        (0..*rows).map(one).collect()
    }
}

/// The label that each position predicts; the last one of a row predicts nothing.
pub(super) fn shifted(labels: &[i64], seq_len: usize) -> Vec<i32> {
    let row = |row: &[i64]| -> Vec<i32> { row[1..].iter().chain(&[IGNORED]).map(|label| *label as i32).collect() };
    labels.chunks(seq_len).flat_map(row).collect()
}
