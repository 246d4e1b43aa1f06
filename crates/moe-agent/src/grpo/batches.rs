//! Episodes as packed rows, each a segment of its own.

use data_pipeline::{Overlong, PADDING_SEGMENT, TokenRow, pack_best_fit};
use trainer::{MicroBatch, Sample, TrainError};

use super::record::SampleRecord;

/// Sizes of micro-batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Row length.
    pub(super) seq_len: usize,
    /// Rows of a micro-batch; missing ones are padding, so that every micro-batch has one shape.
    pub(super) rows: usize,
    /// Fills rows.
    pub(super) pad: u32,
}

/// A micro-batch, and the place of each of its episodes in what it was made of.
pub(super) struct Packed {
    pub(super) batch: MicroBatch,
    pub(super) members: Vec<usize>,
}

/// Micro-batches of episodes that were sampled `age` updates ago.
pub(super) fn pack(samples: &[&SampleRecord], age: u64, shape: Shape) -> Result<Vec<Packed>, TrainError> {
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.ids.len()).collect();
    if let Some(longest) = lengths.iter().find(|n| **n > shape.seq_len) {
        let problem = format!("an episode of {longest} tokens, a row holds {}; raise seq_len", shape.seq_len);
        return Err(TrainError::Batch { problem });
    }
    let rows = pack_best_fit(&lengths, shape.seq_len, Overlong::Truncate);
    rows.chunks(shape.rows).map(|rows| micro_batch(rows, samples, age, shape)).collect()
}

fn micro_batch(
    rows: &[Vec<data_pipeline::Piece>],
    samples: &[&SampleRecord],
    age: u64,
    shape: Shape,
) -> Result<Packed, TrainError> {
    let (mut filled, mut placed, mut members) = (Vec::new(), Vec::new(), Vec::new());
    for (number, pieces) in rows.iter().enumerate() {
        let mut row = TokenRow::default();
        for (segment, piece) in pieces.iter().enumerate() {
            let sample = samples[piece.doc];
            let start = number * shape.seq_len + row.ids.len();
            row.ids.extend_from_slice(&sample.ids);
            row.weights.extend(sample.weights());
            row.segments.resize(row.ids.len(), segment as u32);
            placed.push(Sample {
                tokens: start..start + sample.ids.len(),
                advantage: sample.advantage,
                old: sample.old.clone(),
                reference: (!sample.reference.is_empty()).then(|| sample.reference.clone()),
                sampled: sample.sampler.clone(),
                age,
            });
            members.push(piece.doc);
        }
        filled.push(row);
    }
    filled.resize(shape.rows, TokenRow::default());
    for row in &mut filled {
        row.ids.resize(shape.seq_len, shape.pad);
        row.segments.resize(shape.seq_len, PADDING_SEGMENT);
        row.weights.resize(shape.seq_len, 0.0);
    }
    let mut batch = MicroBatch::new(&filled.iter().collect::<Vec<_>>())?;
    batch.samples = placed;
    Ok(Packed { batch, members })
}
