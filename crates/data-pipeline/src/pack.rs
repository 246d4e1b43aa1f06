//! Packs documents into rows of equal length: best fit, longest first, whole documents wherever they fit.
//!
//! Documents are placed in order of falling length, each into the open row with the least room that still holds it,
//! the oldest such row first; when none does, a new row is opened. A document longer than a row is cut into row-sized
//! pieces ([`Overlong::Split`], nothing is lost) or loses its tail ([`Overlong::Truncate`]).
//!
//! The room of open rows is an ordered map, so a search costs O(log of the number of different rooms) and the whole
//! run O(n log n).
//!
//! # Source
//! Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830. Ties (equal lengths, equal rooms) are
//! resolved as in TRL's `bfd` and `bfd_split`, so that both give the same rows; `tests/fixtures/bfd.json` holds theirs.

use std::collections::{BTreeMap, VecDeque};

use crate::rows::{PADDING_SEGMENT, TokenRow};

/// What happens to a document that is longer than a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlong {
    /// Cut it into pieces of at most one row; no token is dropped.
    Split,
    /// Keep its first `capacity` tokens and drop the rest.
    Truncate,
}

/// A run of tokens of one document, placed in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the document.
    pub doc: usize,
    /// First token of the document that belongs to the piece.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

/// Assigns documents of the given lengths to rows of `capacity` tokens.
///
/// Documents of length 0 appear in no row. The result is a function of the arguments alone.
///
/// # Panics
/// If `capacity` is 0.
pub fn pack_best_fit(lengths: &[usize], capacity: usize, mode: Overlong) -> Vec<Vec<Piece>> {
    assert!(capacity > 0, "rows must hold at least one token");
    let mut pieces = cut(lengths, capacity, mode);
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len));
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    let mut open: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for piece in pieces {
        let (row, room) = match open.range_mut(piece.len..).next() {
            Some((&room, waiting)) => {
                let row = waiting.pop_front().expect("a room without rows is removed at once");
                if waiting.is_empty() {
                    open.remove(&room);
                }
                (row, room)
            }
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, capacity)
            }
        };
        rows[row].push(piece);
        if room > piece.len {
            open.entry(room - piece.len).or_default().push_back(row);
        }
    }
    rows
}

fn cut(lengths: &[usize], capacity: usize, mode: Overlong) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(lengths.len());
    for (doc, &length) in lengths.iter().enumerate() {
        let kept = if mode == Overlong::Truncate { length.min(capacity) } else { length };
        let starts = (0..kept).step_by(capacity);
        pieces.extend(starts.map(|start| Piece { doc, start, len: capacity.min(kept - start) }));
    }
    pieces
}

/// A document on its way into rows: its tokens and the loss weight of each token as a label.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sequence {
    /// Token ids, the end token included.
    pub ids: Vec<u32>,
    /// Loss weights, one per id. The weight of the first token of every piece is set to 0 while packing.
    pub weights: Vec<f32>,
}

impl Sequence {
    /// A sequence whose every token is trained.
    pub fn supervised(ids: Vec<u32>) -> Self {
        let weights = vec![1.0; ids.len()];
        Self { ids, weights }
    }
}

/// Packs sequences into rows of exactly `seq_len` tokens; each piece is its own segment, the tail is padding with
/// id `pad_id`.
///
/// # Panics
/// If `seq_len` is 0, or if a sequence has not as many weights as ids.
pub fn pack_rows(sequences: &[Sequence], seq_len: usize, mode: Overlong, pad_id: u32) -> Vec<TokenRow> {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    for (i, s) in sequences.iter().enumerate() {
        assert_eq!(s.ids.len(), s.weights.len(), "sequence {i} needs one weight per id");
    }
    let rows = pack_best_fit(&lengths, seq_len, mode);
    rows.iter().map(|pieces| fill_row(pieces, sequences, seq_len, pad_id)).collect()
}

fn fill_row(pieces: &[Piece], sequences: &[Sequence], seq_len: usize, pad_id: u32) -> TokenRow {
    let mut row = TokenRow {
        ids: Vec::with_capacity(seq_len),
        segments: Vec::with_capacity(seq_len),
        weights: Vec::with_capacity(seq_len),
    };
    for (segment, piece) in pieces.iter().enumerate() {
        let range = piece.start..piece.start + piece.len;
        let first = row.weights.len();
        row.ids.extend_from_slice(&sequences[piece.doc].ids[range.clone()]);
        row.weights.extend_from_slice(&sequences[piece.doc].weights[range]);
        row.weights[first] = 0.0;
        row.segments.resize(row.ids.len(), segment as u32);
    }
    row.ids.resize(seq_len, pad_id);
    row.segments.resize(seq_len, PADDING_SEGMENT);
    row.weights.resize(seq_len, 0.0);
    row
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Fixture {
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        seq_length: usize,
        mode: String,
        lengths: Vec<usize>,
        rows: Vec<Vec<(usize, usize, usize)>>,
    }

    #[test]
    fn rows_equal_those_of_trl_in_both_modes() {
        let fixture: Fixture = serde_json::from_str(include_str!("../tests/fixtures/bfd.json")).unwrap();
        assert_eq!(fixture.cases.len(), 10);
        for case in fixture.cases {
            let mode = if case.mode == "split" { Overlong::Split } else { Overlong::Truncate };
            let rows = pack_best_fit(&case.lengths, case.seq_length, mode);
            let rows: Vec<Vec<_>> = rows.iter().map(|r| r.iter().map(|p| (p.doc, p.start, p.len)).collect()).collect();
            assert_eq!(rows, case.rows, "{} tokens, {}", case.seq_length, case.mode);
        }
    }

    /// The definition, by linear search over all rows: what the ordered map must reproduce.
    fn slow(lengths: &[usize], capacity: usize, mode: Overlong) -> Vec<Vec<Piece>> {
        let mut pieces = cut(lengths, capacity, mode);
        pieces.sort_by_key(|p| std::cmp::Reverse(p.len));
        // Rows with (room, time of the last change): equal rooms are used oldest first.
        let mut rows: Vec<(usize, usize, Vec<Piece>)> = Vec::new();
        for (time, piece) in pieces.into_iter().enumerate() {
            let fits = rows.iter_mut().filter(|r| r.0 >= piece.len).min_by_key(|r| (r.0, r.1));
            match fits {
                Some(row) => {
                    (row.0, row.1) = (row.0 - piece.len, time);
                    row.2.push(piece);
                }
                None => rows.push((capacity - piece.len, time, vec![piece])),
            }
        }
        rows.into_iter().map(|r| r.2).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

        #[test]
        fn packing_equals_its_definition(lengths in prop::collection::vec(0usize..50, 0..80), capacity in 1usize..32) {
            for mode in [Overlong::Split, Overlong::Truncate] {
                prop_assert_eq!(pack_best_fit(&lengths, capacity, mode), slow(&lengths, capacity, mode));
            }
        }

        #[test]
        fn s17_packing_keeps_every_token_exactly_once(lengths in prop::collection::vec(0usize..90, 0..60), seq_len in 1usize..40) {
            let mut next = 0;
            let sequences: Vec<Sequence> = lengths.iter().map(|&n| {
                next += n as u32;
                Sequence::supervised((next - n as u32..next).collect())
            }).collect();
            let rows = pack_rows(&sequences, seq_len, Overlong::Split, u32::MAX - 1);
            let mut seen: Vec<u32> = Vec::new();
            for (i, row) in rows.iter().enumerate() {
                row.check(i, seq_len, u32::MAX).unwrap();
                seen.extend(&row.ids[..row.n_used()]);
                for range in row.segment_ranges() {
                    // A segment is a run of consecutive tokens of one document, trained from its second token on.
                    let ids = &row.ids[range.clone()];
                    prop_assert!(ids.windows(2).all(|w| w[1] == w[0] + 1));
                    prop_assert_eq!(row.weights[range.start], 0.0);
                    prop_assert!(row.weights[range.start + 1..range.end].iter().all(|&w| w == 1.0));
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..next).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_long_list_packs_quickly_and_tightly() {
        let lengths: Vec<usize> = (0..200_000).map(|i| 1 + (i * 7919) % 1500).collect();
        let rows = pack_best_fit(&lengths, 2048, Overlong::Split);
        let tokens: usize = lengths.iter().sum();
        assert!(tokens as f64 / (rows.len() * 2048) as f64 > 0.999, "{} rows for {tokens} tokens", rows.len());
    }
}
