//! How the queries × keys plane is cut: blocks of queries with the keys they see.

use std::ops::Range;

use super::super::{Problem, Rows};
use crate::simd_math::LANES;

/// Rows of a tile: queries times the heads that share a key head.
const ROWS_PER_TILE: usize = 64;
/// Fewest queries of a block, however many heads share a key head.
const MIN_QUERIES: usize = 16;

/// Number of queries in each block but the last.
pub(super) fn queries_per_block(problem: &Problem) -> usize {
    (ROWS_PER_TILE / problem.heads.group()).max(MIN_QUERIES).min(problem.t.max(1))
}

/// Neighbouring queries of one batch row.
pub(super) struct QueryBlock {
    /// The batch row.
    pub(super) b: usize,
    /// The first query.
    pub(super) t: usize,
    spans: Vec<Range<usize>>,
    /// From the first to the last key that some query sees.
    keys: Range<usize>,
}

impl QueryBlock {
    /// The block that begins at query `t`.
    pub(super) fn new(problem: &Problem, b: usize, t: usize) -> Self {
        let len = queries_per_block(problem).min(problem.t - t);
        let spans: Vec<Range<usize>> = (t..t + len).map(|t| problem.span(b, t)).collect();
        let mut seen = spans.iter().filter(|span| !span.is_empty());
        let keys = seen.next().map_or(0..0, |first| {
            seen.fold(first.clone(), |all, span| all.start.min(span.start)..all.end.max(span.end))
        });
        Self { b, t, spans, keys }
    }

    /// Number of queries.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Ranges of at most `max_keys` keys, in order, without those that no query sees.
    pub(super) fn tiles(&self, max_keys: usize) -> impl Iterator<Item = Range<usize>> {
        let end = self.keys.end;
        let tiles = self.keys.clone().step_by(max_keys).map(move |at| at..(at + max_keys).min(end));
        tiles.filter(|keys| self.spans.iter().any(|span| !intersection(span, keys).is_empty()))
    }

    /// Which of a tile's keys its row sees, counted from the tile's first key.
    pub(super) fn seen(&self, row: usize, keys: &Range<usize>) -> Range<usize> {
        let seen = intersection(&self.spans[row % self.len()], keys);
        seen.start - keys.start..seen.end - keys.start
    }

    /// Copies the rows of the group's heads into `[rows, h]`.
    pub(super) fn gather(&self, to: &mut Vec<f32>, from: Rows, problem: &Problem, kv: usize) {
        let (group, h) = (problem.heads.group(), problem.heads.d_head);
        to.clear();
        for n in kv * group..(kv + 1) * group {
            for t in self.t..self.t + self.len() {
                to.extend_from_slice(&from.at(self.b, t, n * h)[..h]);
            }
        }
    }
}

/// The common part; empty, inside `b`, where there is none.
fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.clamp(b.start, b.end);
    start..a.end.clamp(start, b.end)
}

/// Prepares a row of scores for the exponential: hidden ones become 0, but a few behind the last visible one become −∞ and
/// go along, so that the visible ones fill whole vectors. Returns the part to exponentiate; empty when nothing is seen.
pub(super) fn hide(row: &mut [f32], seen: Range<usize>) -> &mut [f32] {
    let full = (seen.start + seen.len().next_multiple_of(LANES)).min(row.len());
    row[..seen.start].fill(0.0);
    row[seen.end..full].fill(f32::NEG_INFINITY);
    row[full..].fill(0.0);
    &mut row[seen.start..full]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeadLayout;

    fn problem<'a>(t: usize, group: usize, start: &'a [i32], end: &'a [i32]) -> Problem<'a> {
        let heads = HeadLayout { n_heads: group, n_kv_heads: 1, d_head: 4 };
        Problem { heads, b: 1, t, s: t, scale: 1.0, start, end, sinks: None }
    }

    #[test]
    fn hidden_scores_vanish() {
        let mut row = [1.0; 40];
        let live = hide(&mut row, 3..8);
        assert_eq!(live.len(), LANES);
        live.iter_mut().for_each(|x| *x = x.exp());
        let seen = |i| (3..8).contains(&i);
        assert!(row.iter().enumerate().all(|(i, &x)| (x != 0.0) == seen(i)), "{row:?}");
        assert!(hide(&mut row, 40..40).is_empty() && row.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn intersections_stay_inside() {
        assert_eq!(intersection(&(3..9), &(5..20)), 5..9);
        assert!(intersection(&(0..4), &(5..20)).is_empty());
        assert!(intersection(&(30..40), &(5..20)).is_empty());
        assert_eq!(intersection(&(30..40), &(5..20)).start, 20);
        assert!(intersection(&(7..7), &(5..20)).is_empty());
    }

    #[test]
    fn window_skips_old_tiles() {
        let t = 1024;
        let (start, end): (Vec<i32>, Vec<i32>) = (0..t as i32).map(|t| ((t - 99).max(0), t + 1)).unzip();
        let problem = problem(t, 1, &start, &end);
        let block = QueryBlock::new(&problem, 0, 960);
        assert!(block.tiles(512).eq(std::iter::once(861..1024)));
        assert!(block.tiles(100).eq([861..961, 961..1024]));
        assert_eq!(block.seen(0, &(861..1024)), 0..100);
        assert_eq!(block.seen(63, &(861..1024)), 63..163);
    }

    #[test]
    fn empty_spans_have_no_tiles() {
        let zeros = [0; 8];
        let problem = problem(8, 2, &zeros, &zeros);
        assert_eq!(QueryBlock::new(&problem, 0, 0).tiles(512).count(), 0);
    }

    #[test]
    fn groups_share_a_tile() {
        assert_eq!(queries_per_block(&problem(1000, 1, &[], &[])), 64);
        assert_eq!(queries_per_block(&problem(1000, 4, &[], &[])), 16);
        assert_eq!(queries_per_block(&problem(1000, 8, &[], &[])), 16);
        assert_eq!(queries_per_block(&problem(3, 1, &[], &[])), 3);
    }
}
