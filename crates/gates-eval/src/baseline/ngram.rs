//! Baseline: an interpolated modified Kneser-Ney model over token ids, what counting alone can reach.
//!
//! A language model that does not beat it has learnt nothing beyond short phrases. It counts the same token rows that
//! the model trains on and is scored on the same held-out tokens, so that both pay for the same text. A segment of a
//! row is one sequence: no context crosses its start.
//!
//! # Numerics
//! Counts are exact integers, probabilities and sums f64; the result does not depend on the number of threads.
//!
//! # Source
//! S. Chen, J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", Harvard TR-10-98, 1998:
//! section 4.1.6 (modified Kneser-Ney, the discounts of equation 26, interpolated form).

use data_pipeline::TokenRow;
use rayon::prelude::*;

/// Bits of a packed n-gram that one token takes.
const TOKEN_BITS: u32 = 24;
/// Largest n: what fits in the 128 bits of a packed n-gram.
pub const MAX_ORDER: usize = (u128::BITS / TOKEN_BITS) as usize;
/// Stands before the first token of a sequence.
const START: u32 = (1 << TOKEN_BITS) - 1;

/// What the rows do not allow.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum NgramError {
    /// An n that the packed form does not hold.
    #[error("n-gram order must lie in 1..={MAX_ORDER}, found {0}; choose another order")]
    Order(usize),
    /// A token that is not of the vocabulary.
    #[error("token id {id} in row {row}, the vocabulary has {vocab_size}; use the tokenizer that made the rows")]
    Id {
        /// The row, from 0.
        row: usize,
        /// The id found.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: u32,
    },
    /// Nothing to count, or nothing to score.
    #[error("the {0} rows have no token that can be predicted; give rows with text")]
    Empty(&'static str),
}

/// The score of held-out rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NgramScore {
    /// Bits that the model needs for all scored tokens: the sum of -log2 p.
    pub bits: f64,
    /// Tokens scored: those with a weight above 0.
    pub tokens: u64,
}

impl NgramScore {
    /// Bits per byte of text, with the bytes that the scored tokens stand for.
    pub fn bits_per_byte(&self, text_bytes: u64) -> f64 {
        self.bits / text_bytes as f64
    }
}

/// Trains an `order`-gram on `train` and scores `heldout`.
///
/// Every token of a training row is counted; in the held-out rows those with a weight above 0 are scored.
///
/// # Errors
/// [`NgramError`]: an order out of range, an id outside the vocabulary, rows without tokens.
pub fn score(
    train: &[TokenRow],
    heldout: &[TokenRow],
    vocab_size: u32,
    order: usize,
) -> Result<NgramScore, NgramError> {
    let model = KneserNey::train(train, vocab_size, order)?;
    check(heldout, vocab_size)?;
    let parts: Vec<(f64, u64)> = heldout.par_iter().map(|row| model.score_row(row)).collect();
    let tokens = parts.iter().map(|p| p.1).sum();
    if tokens == 0 {
        return Err(NgramError::Empty("held-out"));
    }
    Ok(NgramScore { bits: parts.iter().map(|p| p.0).sum(), tokens })
}

/// The trained model: `levels[k]` holds the (k + 1)-grams.
struct KneserNey {
    levels: Vec<Level>,
    vocab_size: f64,
}

impl KneserNey {
    fn train(rows: &[TokenRow], vocab_size: u32, order: usize) -> Result<Self, NgramError> {
        if order == 0 || order > MAX_ORDER {
            return Err(NgramError::Order(order));
        }
        check(rows, vocab_size)?;
        // Every token is counted once, with the longest context it has. An n-gram of the highest order keeps its plain
        // count, and so does a shorter one at the start of a sequence, since nothing can stand to its left.
        let mut counted = vec![Vec::new(); order];
        for row in rows {
            for range in row.segment_ranges() {
                let sequence: Vec<u32> = std::iter::once(START).chain(row.ids[range].iter().copied()).collect();
                for end in 2..=sequence.len() {
                    let n = end.min(order);
                    counted[n - 1].push(pack(&sequence[end - n..end]));
                }
            }
        }
        if counted.iter().all(Vec::is_empty) {
            return Err(NgramError::Empty("training"));
        }
        let mut levels = Vec::with_capacity(order);
        let mut above: Option<Level> = None;
        for (k, mut grams) in counted.into_iter().enumerate().rev() {
            // The continuation count of a shorter n-gram: how many different tokens stand to its left.
            let keep = (1_u128 << (TOKEN_BITS * (k as u32 + 1))) - 1;
            grams.extend(above.iter().flat_map(|level| &level.grams).map(|gram| gram & keep));
            levels.extend(above.replace(Level::new(grams)));
        }
        levels.extend(above);
        levels.reverse();
        Ok(Self { levels, vocab_size: f64::from(vocab_size) })
    }

    /// p(token | history), from the uniform distribution up through the orders.
    fn probability(&self, history: &[u32], token: u32) -> f64 {
        let mut p = 1.0 / self.vocab_size;
        for (n, level) in self.levels.iter().enumerate().take(history.len() + 1) {
            let context = pack(&history[history.len() - n..]);
            // A context never seen has no longer one that was.
            let Ok(found) = level.contexts.binary_search(&context) else { break };
            let mass = level.masses[found];
            let count = level.count((context << TOKEN_BITS) | u128::from(token));
            let kept = if count == 0 { 0.0 } else { f64::from(count) - level.discounts[kind(count)] };
            let left_over: f64 = level.discounts.iter().zip(mass.kinds).map(|(d, n)| d * f64::from(n)).sum();
            p = (kept + left_over * p) / mass.total as f64;
        }
        p
    }

    /// Bits and number of the scored tokens of a row.
    fn score_row(&self, row: &TokenRow) -> (f64, u64) {
        let (mut bits, mut tokens) = (0.0, 0);
        for range in row.segment_ranges() {
            let mut history = vec![START];
            for i in range {
                if row.weights[i] > 0.0 {
                    let longest = history.len().min(self.levels.len() - 1);
                    bits -= self.probability(&history[history.len() - longest..], row.ids[i]).log2();
                    tokens += 1;
                }
                history.push(row.ids[i]);
            }
        }
        (bits, tokens)
    }
}

/// Counts of one order, ready to be asked.
struct Level {
    /// Packed n-grams, ascending.
    grams: Vec<u128>,
    /// Count of each n-gram.
    counts: Vec<u32>,
    /// Packed contexts, ascending.
    contexts: Vec<u128>,
    /// What is known of each context.
    masses: Vec<Mass>,
    /// Discounts of n-grams with count 1, 2, and 3 or more.
    discounts: [f64; 3],
}

/// Of one context: the sum of its counts, and how many of its n-grams have count 1, 2, and 3 or more.
#[derive(Clone, Copy, Default)]
struct Mass {
    total: u64,
    kinds: [u32; 3],
}

impl Level {
    /// Counts a list of n-grams.
    fn new(mut list: Vec<u128>) -> Self {
        list.par_sort_unstable();
        let (mut grams, mut counts) = (Vec::new(), Vec::<u32>::new());
        for run in list.chunk_by(|a, b| a == b) {
            grams.push(run[0]);
            counts.push(u32::try_from(run.len()).unwrap_or(u32::MAX));
        }
        let (mut contexts, mut masses) = (Vec::new(), Vec::<Mass>::new());
        for (gram, &count) in grams.iter().zip(&counts) {
            let context = gram >> TOKEN_BITS;
            if contexts.last() != Some(&context) {
                contexts.push(context);
                masses.push(Mass::default());
            }
            let mass = masses.last_mut().expect("pushed with its context");
            mass.total += u64::from(count);
            mass.kinds[kind(count)] += 1;
        }
        let discounts = discounts(&counts);
        Self { grams, counts, contexts, masses, discounts }
    }

    fn count(&self, gram: u128) -> u32 {
        self.grams.binary_search(&gram).map_or(0, |found| self.counts[found])
    }
}

/// Equation 26: D_r = r - (r + 1) Y n_(r+1) / n_r with Y = n_1 / (n_1 + 2 n_2), n_r the number of n-grams seen r times.
///
/// Where the text is too small for the estimate a constant stands in, and every discount stays above 0, so that each
/// context leaves some mass to the shorter one and no token has probability 0.
fn discounts(counts: &[u32]) -> [f64; 3] {
    const FALLBACK: f64 = 0.5;
    const SMALLEST: f64 = 0.05;
    let mut seen = [0.0_f64; 4];
    for &count in counts.iter().filter(|&&c| (1..=4).contains(&c)) {
        seen[count as usize - 1] += 1.0;
    }
    let y = seen[0] / (seen[0] + 2.0 * seen[1]);
    [1.0_f64, 2.0, 3.0].map(|r| {
        let (n_r, n_next) = (seen[r as usize - 1], seen[r as usize]);
        let discount = r - (r + 1.0) * y * n_next / n_r;
        if discount.is_finite() { discount.clamp(SMALLEST, r) } else { FALLBACK }
    })
}

/// Index of the discount of a count above 0.
fn kind(count: u32) -> usize {
    count.min(3) as usize - 1
}

/// First token in the highest bits, so that n-grams of one context lie side by side.
fn pack(tokens: &[u32]) -> u128 {
    tokens.iter().fold(0, |packed, &token| (packed << TOKEN_BITS) | u128::from(token))
}

fn check(rows: &[TokenRow], vocab_size: u32) -> Result<(), NgramError> {
    let limit = vocab_size.min(START);
    for (row, tokens) in rows.iter().enumerate() {
        if let Some(&id) = tokens.ids.iter().find(|&&id| id >= limit) {
            return Err(NgramError::Id { row, id, vocab_size });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(segments: &[&[u32]]) -> TokenRow {
        let mut row = TokenRow::default();
        for (number, ids) in segments.iter().enumerate() {
            for (i, &id) in ids.iter().enumerate() {
                row.ids.push(id);
                row.segments.push(number as u32);
                row.weights.push(if i == 0 { 0.0 } else { 1.0 });
            }
        }
        row
    }

    /// A text with structure: each token mostly follows from the two before it.
    fn text(length: usize, vocab: u32, mut state: u64) -> Vec<u32> {
        let mut ids = vec![1, 2];
        while ids.len() < length {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (a, b) = (ids[ids.len() - 1], ids[ids.len() - 2]);
            let noise = (state >> 40) as u32;
            ids.push(if noise.is_multiple_of(4) { (noise >> 8) % vocab } else { (3 * a + 5 * b + 1) % vocab });
        }
        ids
    }

    #[test]
    fn probabilities_sum_to_one_in_every_kind_of_context() {
        let rows = [row(&[&text(400, 17, 1), &text(300, 17, 2)])];
        for order in 1..=MAX_ORDER {
            let model = KneserNey::train(&rows, 17, order).unwrap();
            for history in [&[][..], &[START], &[START, 1], &[3], &[1, 2], &[16, 16, 16, 16], &[START, 1, 2, 13]] {
                let history = &history[history.len() - history.len().min(order - 1)..];
                let sum: f64 = (0..17).map(|token| model.probability(history, token)).sum();
                assert!((sum - 1.0).abs() < 1e-12, "order {order}, history {history:?}: {sum}");
            }
        }
    }

    #[test]
    fn a_hand_computed_bigram_model_is_reproduced() {
        // Sequence a b a b a c with START: bigrams Sa 1, ab 2, ba 2, ac 1. Continuation counts: a 2 (S, b), b 1, c 1.
        let model = KneserNey::train(&[row(&[&[0, 1, 0, 1, 0, 2]])], 4, 2).unwrap();
        // Bigrams: n1 = 2, n2 = 2, n3 = 0: Y = 1/3, D1 = 1 - 2/3 = 1/3, D2 = 2. Unigrams: n1 = 2, n2 = 1: Y = 1/2,
        // D1 = 1 - 1/2 = 1/2, D2 = 2.
        let unigram_b = (0.5 + (2.0 * 0.5 + 2.0) / 4.0) / 4.0;
        assert!((model.probability(&[], 1) - unigram_b).abs() < 1e-15);
        let unigram_d = (2.0 * 0.5 + 2.0) / 4.0 / 4.0;
        assert!((model.probability(&[], 3) - unigram_d).abs() < 1e-15);
        // Context a: total 3, ab kept 2 - 2 = 0, left over 2 + 1/3.
        let bigram = (7.0 / 3.0) * unigram_b / 3.0;
        assert!((model.probability(&[0], 1) - bigram).abs() < 1e-15);
    }

    /// The definition in plain words: counts by scanning lists, no packing, no sorting, no shared code but the discounts.
    fn by_definition(sequences: &[Vec<u32>], order: usize, vocab_size: u32, history: &[u32], token: u32) -> f64 {
        use std::collections::{BTreeMap, BTreeSet};
        let mut plain = BTreeMap::<Vec<u32>, u32>::new();
        let mut left = BTreeMap::<Vec<u32>, BTreeSet<u32>>::new();
        for sequence in sequences {
            let padded: Vec<u32> = std::iter::once(START).chain(sequence.iter().copied()).collect();
            for n in 1..=order {
                // A gram that ends before the first real token would predict the start itself.
                for gram in padded.windows(n).filter(|g| g[n - 1] != START) {
                    *plain.entry(gram.to_vec()).or_default() += 1;
                    left.entry(gram[1..].to_vec()).or_default().insert(gram[0]);
                }
            }
        }
        let count = |gram: &[u32]| -> u32 {
            if gram.len() == order || gram[0] == START {
                plain.get(gram).copied().unwrap_or(0)
            } else {
                left.get(gram).map_or(0, |l| l.len() as u32)
            }
        };
        let mut p = 1.0 / f64::from(vocab_size);
        for n in 1..=order.min(history.len() + 1) {
            let all: Vec<u32> = plain.keys().filter(|g| g.len() == n).map(|g| count(g)).collect();
            let d = discounts(&all);
            let context = &history[history.len() + 1 - n..];
            let row: Vec<u32> = (0..vocab_size).map(|t| count(&[context, &[t]].concat())).collect();
            let total: u32 = row.iter().sum();
            if total == 0 {
                break;
            }
            let left_over: f64 = row.iter().filter(|c| **c > 0).map(|c| d[(*c).min(3) as usize - 1]).sum();
            let own = row[token as usize];
            let kept = if own == 0 { 0.0 } else { f64::from(own) - d[own.min(3) as usize - 1] };
            p = (kept + left_over * p) / f64::from(total);
        }
        p
    }

    #[test]
    fn every_probability_is_that_of_the_definition() {
        let sequences = [text(60, 7, 8), text(45, 7, 9), vec![3, 3, 3, 1]];
        let rows = [row(&[&sequences[0], &sequences[1]]), row(&[&sequences[2]])];
        for order in 1..=4 {
            let model = KneserNey::train(&rows, 7, order).unwrap();
            let asked =
                [&[][..], &[START], &[START, 3], &[1], &[1, 2], &[6, 5], &[3, 3, 3], &[START, 3, 3], &[1, 2, 6]];
            for history in asked {
                let history = &history[history.len() - history.len().min(order - 1)..];
                for token in 0..7 {
                    let (got, want) =
                        (model.probability(history, token), by_definition(&sequences, order, 7, history, token));
                    assert!((got - want).abs() < 1e-14, "order {order}, {history:?} {token}: {got}, want {want}");
                }
            }
        }
    }

    #[test]
    fn longer_contexts_help_where_the_text_has_them() {
        let (train, heldout) = (row(&[&text(20_000, 29, 3)]), row(&[&text(2_000, 29, 4)]));
        let bits = |order| {
            let score = score(std::slice::from_ref(&train), std::slice::from_ref(&heldout), 29, order).unwrap();
            assert_eq!(score.tokens, 1999);
            score.bits / score.tokens as f64
        };
        let (one, two, three, five) = (bits(1), bits(2), bits(3), bits(5));
        // The source has 0.81 bits of choice and 1/4 of log2(29): about 2.0 bits, but only for who knows the last two tokens.
        assert!(one > 4.8 && two > 4.8 && three < 2.3 && five < 2.4, "{one} {two} {three} {five}");
    }

    #[test]
    fn segments_are_separate_and_only_weighted_tokens_count() {
        let train = [row(&[&text(300, 11, 5)])];
        let joined = score(&train, &[row(&[&[1, 2, 3], &[4, 5]])], 11, 4).unwrap();
        let apart = score(&train, &[row(&[&[1, 2, 3]]), row(&[&[4, 5]])], 11, 4).unwrap();
        assert_eq!(joined.tokens, 3);
        assert!((joined.bits - apart.bits).abs() < 1e-12);
        let mut silent = row(&[&[1, 2, 3]]);
        silent.weights.fill(0.0);
        assert_eq!(score(&train, &[silent], 11, 4), Err(NgramError::Empty("held-out")));
    }

    #[test]
    fn bad_input_is_named() {
        let good = [row(&[&[0, 1, 2]])];
        assert_eq!(score(&good, &good, 3, 0), Err(NgramError::Order(0)));
        assert_eq!(score(&good, &good, 3, MAX_ORDER + 1), Err(NgramError::Order(MAX_ORDER + 1)));
        assert_eq!(score(&good, &good, 2, 3), Err(NgramError::Id { row: 0, id: 2, vocab_size: 2 }));
        assert_eq!(score(&[], &good, 3, 3), Err(NgramError::Empty("training")));
    }
}
