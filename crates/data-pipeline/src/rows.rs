//! The row that training consumes: token ids, the segment of each token, the loss weight of each token.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result, RowProblem};

/// Segment id of the unused tail of a row. Such a token is neither seen by attention nor trained.
pub const PADDING_SEGMENT: u32 = u32::MAX;

/// One row of `seq_len` tokens.
///
/// `weights[i]` belongs to token `i` as a label: it is 0 for the first token of a segment (nothing in the segment
/// stands before it, so nothing can predict it), 0 for tokens that are not supervised, and 0 for padding.
/// Segments count 0, 1, 2, ... from the left; a token sees only tokens of its own segment. The unused tail, if any,
/// has segment [`PADDING_SEGMENT`], the tokenizer's end-of-text id and weight 0.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TokenRow {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub segments: Vec<u32>,
    /// Loss weight of each token as a label.
    pub weights: Vec<f32>,
}

/// A source of text with its terms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name, unique in a configuration.
    pub name: String,
    /// Licence as an SPDX expression, or `LicenseRef-public-domain`.
    pub licence: String,
    /// BLAKE3 (hex) of the source's files.
    pub hash: String,
}

/// What a folder of token rows says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMeta {
    /// Version of the row format: [`ShardMeta::VERSION`].
    pub version: u32,
    /// BLAKE3 (hex) of the `tokenizer.json` that made the ids.
    pub tokenizer_hash: String,
    /// Size of the vocabulary, special tokens included.
    pub vocab_size: u32,
    /// Length of every row.
    pub seq_len: u32,
    /// Where the text came from and under which terms.
    pub sources: Vec<Source>,
    /// What the rows are for: `pretrain`, `sft`, ...
    pub kind: String,
    /// UTF-8 bytes of the tokens that are predicted, that is of all tokens with a weight above 0; special tokens
    /// count 0 bytes. Divides the summed loss when bits per byte are computed.
    pub text_bytes: u64,
}

impl ShardMeta {
    /// The version that this build writes and reads.
    pub const VERSION: u32 = 1;
}

impl TokenRow {
    /// Tokens of the row, padding included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the row has no token at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens that are not padding.
    pub fn n_used(&self) -> usize {
        self.segments.iter().filter(|&&s| s != PADDING_SEGMENT).count()
    }

    /// Sum of the loss weights: the units of the row for a next-token loss.
    pub fn weight_sum(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// Token ranges of the segments, in order, without the padding.
    pub fn segment_ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
        for (i, &segment) in self.segments.iter().enumerate() {
            match ranges.last_mut() {
                _ if segment == PADDING_SEGMENT => break,
                Some(last) if self.segments[last.start] == segment => last.end = i + 1,
                _ => ranges.push(i..i + 1),
            }
        }
        ranges
    }

    /// Checks the rules of the format; `row` is the number used in the message.
    ///
    /// # Errors
    /// [`DataError::BadRow`] names the row, the position and the rule.
    pub fn check(&self, row: usize, seq_len: usize, vocab_size: u32) -> Result<()> {
        let bad = |problem| Err(DataError::BadRow { row, problem });
        let (ids, segments, weights) = (self.ids.len(), self.segments.len(), self.weights.len());
        if ids != seq_len || segments != seq_len || weights != seq_len {
            return bad(RowProblem::Lengths { seq_len, ids, segments, weights });
        }
        let mut previous: i64 = -1;
        for position in 0..seq_len {
            let (id, segment, weight) = (self.ids[position], self.segments[position], self.weights[position]);
            if id >= vocab_size {
                return bad(RowProblem::Id { position, id, vocab_size });
            }
            let found = i64::from(segment);
            let padding = segment == PADDING_SEGMENT;
            let starts = found == previous + 1;
            if !(starts || (found == previous && position > 0) || (padding && position > 0)) {
                return bad(RowProblem::Segment { position, previous, found: segment });
            }
            if !weight.is_finite() || weight < 0.0 || (weight > 0.0 && (padding || starts)) {
                return bad(RowProblem::Weight { position, weight });
            }
            previous = found;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> TokenRow {
        TokenRow {
            ids: vec![1, 2, 3, 4, 0],
            segments: vec![0, 0, 1, 1, PADDING_SEGMENT],
            weights: vec![0., 1., 0., 1., 0.],
        }
    }

    #[test]
    fn a_good_row_passes_and_knows_its_parts() {
        let row = row();
        row.check(0, 5, 5).unwrap();
        assert_eq!(row.segment_ranges(), [0..2, 2..4]);
        assert_eq!((row.n_used(), row.weight_sum()), (4, 2.0));
    }

    #[test]
    fn every_broken_rule_is_named() {
        let check = |change: &dyn Fn(&mut TokenRow), want: &str| {
            let mut row = row();
            change(&mut row);
            let message = row.check(7, 5, 5).unwrap_err().to_string();
            assert!(message.starts_with("row 7: ") && message.contains(want), "{message}");
        };
        check(&|r| _ = r.ids.pop(), "expected 5 ids");
        check(&|r| r.ids[1] = 5, "id 5, the vocabulary has 5");
        check(&|r| r.segments[2] = 2, "segment 2 after 0");
        check(&|r| r.segments[3] = 0, "segment 0 after 1");
        check(&|r| r.segments[0] = PADDING_SEGMENT, "after -1");
        check(&|r| r.segments[3] = PADDING_SEGMENT, "weight 1");
        check(&|r| r.weights[0] = 1.0, "token 0 has weight 1");
        check(&|r| r.weights[1] = f32::NAN, "weight NaN");
        check(&|r| r.weights[1] = -1.0, "weight -1");
    }
}
