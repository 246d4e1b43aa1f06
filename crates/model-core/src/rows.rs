//! Batches of token rows: which token belongs to which document, what each query may see, and the tensors made of it.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels_cubecl::Spans;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::layers::Attention;

/// Segment number of a padding position.
pub const PADDING: i32 = -1;

/// Token rows on the host, with everything the decoder needs to know about them; all vectors are `rows · seq_len` long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row.
    pub seq_len: usize,
    /// Token ids.
    pub ids: Vec<i32>,
    /// Position of each token for the rotary embedding.
    pub positions: Vec<i32>,
    /// Document number within the row; documents are unbroken runs. [`PADDING`] marks tokens that nobody sees and nothing
    /// trains. As queries they see the document before them, as a causal model does behind right padding.
    pub segments: Vec<i32>,
}

/// Token rows on the device, ready for [`crate::Decoder::hidden`].
#[derive(Clone, Debug)]
pub struct Input<B: Backend> {
    /// Token ids, `[b, t]`.
    pub ids_bt: Tensor<B, 2, Int>,
    /// Cosines of the rotary embedding, `[b, t, d_head / 2]`, f32 whatever the backend's float type.
    pub cos: Tensor<B, 3>,
    /// Sines of the rotary embedding, likewise.
    pub sin: Tensor<B, 3>,
    /// What each query sees.
    pub spans: Spans<B>,
    /// What each query sees in blocks with a window; `None` where the model has none.
    pub sliding: Option<Spans<B>>,
}

impl<B: Backend> Input<B> {
    /// What each query sees in a block.
    pub fn spans_of(&self, attention: &Attention<B>) -> &Spans<B> {
        self.sliding.as_ref().filter(|_| attention.window.is_some()).unwrap_or(&self.spans)
    }
}

impl Rows {
    /// Rows of packed documents; positions restart with each document.
    ///
    /// # Errors
    /// [`ModelError::Rows`] when a vector has another length than `rows · seq_len`, or a document comes back after another
    /// one began.
    pub fn from_segments(rows: usize, seq_len: usize, ids: Vec<i32>, segments: Vec<i32>) -> Result<Self, ModelError> {
        check_shape(rows, seq_len, &[("ids", ids.len()), ("segments", segments.len())])?;
        let mut positions = vec![0; ids.len()];
        for (row, (segments, positions)) in
            std::iter::zip(segments.chunks(seq_len), positions.chunks_mut(seq_len)).enumerate()
        {
            check_runs(row, segments)?;
            for i in 1..seq_len {
                let goes_on = segments[i] == segments[i - 1] && segments[i] != PADDING;
                positions[i] = if goes_on { positions[i - 1] + 1 } else { 0 };
            }
        }
        Ok(Rows { rows, seq_len, ids, positions, segments })
    }

    /// Rows in the form that a Hugging Face model takes them.
    ///
    /// Keys where `mask` is 0 are not seen. Without a mask, a position that does not follow the one before it begins a new
    /// document; with a mask, positions only turn. Absent positions count from 0.
    ///
    /// # Errors
    /// [`ModelError::Rows`] for lengths and values that do not fit, [`ModelError::MaskHole`] for a mask with a gap.
    pub fn from_mask_and_positions(
        rows: usize,
        seq_len: usize,
        ids: Vec<i32>,
        mask: Option<&[i64]>,
        positions: Option<&[i64]>,
    ) -> Result<Self, ModelError> {
        let (mask_len, positions_len) = (mask.map_or(ids.len(), <[_]>::len), positions.map_or(ids.len(), <[_]>::len));
        let lengths = [("input_ids", ids.len()), ("attention_mask", mask_len), ("position_ids", positions_len)];
        check_shape(rows, seq_len, &lengths)?;
        let positions = match positions {
            Some(given) => given.iter().map(|p| position(*p)).collect::<Result<Vec<i32>, _>>()?,
            None => (0..rows).flat_map(|_| 0..seq_len as i32).collect(),
        };
        let segments = match mask {
            Some(mask) => segments_of_mask(mask, seq_len)?,
            None => segments_of_positions(&positions, seq_len),
        };
        Ok(Rows { rows, seq_len, ids, positions, segments })
    }

    /// Checks that every id has an embedding.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] names the first one without.
    pub fn check_vocab(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let outside = |id: &i32| usize::try_from(*id).map_or(true, |id| id >= config.vocab_size);
        let Some(i) = self.ids.iter().position(outside) else { return Ok(()) };
        Err(ModelError::TokenOutOfRange {
            row: i / self.seq_len,
            position: i % self.seq_len,
            id: i64::from(self.ids[i]),
            vocab_size: config.vocab_size,
        })
    }

    /// What each query sees: first key and one past the last key, half-open, `rows · seq_len` each.
    pub fn spans(&self) -> (Vec<i32>, Vec<i32>) {
        let (mut starts, mut ends) = (Vec::with_capacity(self.ids.len()), Vec::with_capacity(self.ids.len()));
        for segments in self.segments.chunks(self.seq_len) {
            let (mut start, mut end) = (0, 0);
            for (i, segment) in segments.iter().enumerate() {
                if *segment != PADDING {
                    if i == 0 || segments[i - 1] != *segment {
                        start = i as i32;
                    }
                    end = i as i32 + 1;
                }
                starts.push(start);
                ends.push(end);
            }
        }
        (starts, ends)
    }

    /// One for every token that is no padding, zero for padding: what averages over tokens weigh them with, `[b · t]`, f32
    /// whatever the backend's float type.
    pub fn real_tokens<B: Backend>(&self, device: &B::Device) -> Tensor<B, 1> {
        let real: Vec<f32> = self.segments.iter().map(|s| if *s == PADDING { 0.0 } else { 1.0 }).collect();
        let n = real.len();
        Tensor::from_data(TensorData::new(real, [n]), (device, DType::F32))
    }

    /// The tensors that the decoder takes.
    pub fn to_input<B: Backend>(&self, config: &ModelConfig, device: &B::Device) -> Input<B> {
        let dims = [self.rows, self.seq_len];
        let int = |values: Vec<i32>| Tensor::<B, 2, Int>::from_data(TensorData::new(values, dims), device);
        let (cos, sin) = self.rotation(config);
        let half = config.d_head / 2;
        let float = |values: Vec<f32>| {
            let data = TensorData::new(values, [self.rows, self.seq_len, half]);
            Tensor::<B, 3>::from_data(data, (device, DType::F32))
        };
        let (start, end) = self.spans();
        let sliding = config.as_gpt_oss().map(|gpt_oss| windowed(&start, &end, gpt_oss.window));
        let end = int(end);
        let sliding = sliding.map(|start| Spans { start: int(start), end: end.clone() });
        let spans = Spans { start: int(start), end };
        Input { ids_bt: int(self.ids.clone()), cos: float(cos), sin: float(sin), spans, sliding }
    }

    /// Cosines and sines of every token's position, each `rows · seq_len · d_head / 2` long.
    fn rotation(&self, config: &ModelConfig) -> (Vec<f32>, Vec<f32>) {
        let half = config.d_head / 2;
        let mut distinct = self.positions.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let (cos_table, sin_table) = config.rope.table(config.d_head, &distinct);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in &self.positions {
            let at = half * distinct.binary_search(position).expect("every position is in the list of distinct ones");
            cos.extend_from_slice(&cos_table[at..at + half]);
            sin.extend_from_slice(&sin_table[at..at + half]);
        }
        (cos, sin)
    }
}

/// The first key of each query where it sees at most the last `window` keys of its span.
pub(crate) fn windowed(start: &[i32], end: &[i32], window: usize) -> Vec<i32> {
    let window = i32::try_from(window).unwrap_or(i32::MAX);
    std::iter::zip(start, end).map(|(start, end)| (*start).max(end - window)).collect()
}

fn check_shape(rows: usize, seq_len: usize, lengths: &[(&'static str, usize)]) -> Result<(), ModelError> {
    if rows == 0 || seq_len == 0 {
        let got = format!("{rows} rows of {seq_len} tokens");
        return Err(ModelError::Rows { what: "shape", expected: "at least one row of one token".to_owned(), got });
    }
    let want = rows.checked_mul(seq_len).filter(|n| i32::try_from(*n).is_ok());
    for (what, len) in lengths {
        if Some(*len) != want {
            let expected = format!("{rows} rows of {seq_len} values");
            return Err(ModelError::Rows { what, expected, got: format!("{len} values") });
        }
    }
    Ok(())
}

/// A segment number may not come back later in its row: its second run would see nothing of the first.
fn check_runs(row: usize, segments: &[i32]) -> Result<(), ModelError> {
    let mut seen = std::collections::HashSet::new();
    for (i, segment) in segments.iter().enumerate() {
        let begins = *segment != PADDING && (i == 0 || segments[i - 1] != *segment);
        if *segment < PADDING || (begins && !seen.insert(*segment)) {
            return Err(ModelError::Rows {
                what: "segments",
                expected: format!("unbroken runs of numbers from 0 on, or {PADDING} for padding"),
                got: format!("segment {segment} again at row {row} position {i}"),
            });
        }
    }
    Ok(())
}

fn position(given: i64) -> Result<i32, ModelError> {
    i32::try_from(given).ok().filter(|p| *p >= 0).ok_or_else(|| ModelError::Rows {
        what: "position_ids",
        expected: format!("values from 0 to {}", i32::MAX),
        got: given.to_string(),
    })
}

/// One document per row, padding outside its ones.
fn segments_of_mask(mask: &[i64], seq_len: usize) -> Result<Vec<i32>, ModelError> {
    let mut segments = Vec::with_capacity(mask.len());
    for (row, mask) in mask.chunks(seq_len).enumerate() {
        let mut n_runs = 0;
        for (i, value) in mask.iter().enumerate() {
            if *value != 0 && *value != 1 {
                let got = format!("{value} at row {row} position {i}");
                return Err(ModelError::Rows { what: "attention_mask", expected: "zeros and ones".to_owned(), got });
            }
            if *value == 1 && (i == 0 || mask[i - 1] == 0) {
                n_runs += 1;
                if n_runs > 1 {
                    return Err(ModelError::MaskHole { row, position: i });
                }
            }
            segments.push(if *value == 1 { 0 } else { PADDING });
        }
    }
    Ok(segments)
}

/// A new document wherever a position is not the one before it plus one.
fn segments_of_positions(positions: &[i32], seq_len: usize) -> Vec<i32> {
    let mut segments = Vec::with_capacity(positions.len());
    for positions in positions.chunks(seq_len) {
        let mut segment = 0;
        for (i, position) in positions.iter().enumerate() {
            if i > 0 && i64::from(*position) != i64::from(positions[i - 1]) + 1 {
                segment += 1;
            }
            segments.push(segment);
        }
    }
    segments
}

#[cfg(test)]
mod tests;
