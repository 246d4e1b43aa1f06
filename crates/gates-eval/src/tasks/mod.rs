//! The kinds of tasks: each turns data into rows to score and scores into metrics.

pub mod answers;
pub mod preferences;
pub mod refusals;
pub mod repetition;
pub mod text;
pub mod weights;

#[cfg(test)]
pub(crate) mod fixture;

use std::collections::BTreeMap;

use data_pipeline::Sequence;
use gates::interval::{self, Estimate};
use gates::{Direction, Metric};

use crate::score::ScoredRow;

/// A rendered conversation of which the weighted tokens from `from` on are scored; what follows them is left out.
fn row_of(sequence: Sequence, from: usize) -> ScoredRow {
    let mut ids = sequence.ids;
    let scored: Vec<usize> = (from.max(1)..ids.len()).filter(|&i| sequence.weights[i] > 0.0).collect();
    ids.truncate(scored.last().map_or(0, |last| last + 1));
    ScoredRow { segments: vec![0; ids.len()], ids, scored }
}

/// `<name>.accuracy` over all items, and `<name>.accuracy.<task>` for each kind of exercise.
///
/// An item without a verdict (the model returned something that is no number) makes its rates NaN, which no gate
/// accepts.
fn accuracies(name: &str, items: &[(String, Option<bool>)], dataset_hash: &str) -> Vec<Metric> {
    let mut groups: BTreeMap<String, Vec<Option<bool>>> = BTreeMap::new();
    groups.insert(format!("{name}.accuracy"), items.iter().map(|item| item.1).collect());
    for (task, hit) in items.iter().filter(|item| !item.0.is_empty()) {
        groups.entry(format!("{name}.accuracy.{task}")).or_default().push(*hit);
    }
    let metric =
        |(name, hits): (String, Vec<Option<bool>>)| Metric::new(&name, Direction::Higher, share(&hits), dataset_hash);
    groups.into_iter().map(metric).collect()
}

fn share(hits: &[Option<bool>]) -> Estimate {
    let n = hits.len() as u64;
    match hits.iter().copied().collect::<Option<Vec<bool>>>() {
        Some(hits) => interval::rate(hits.iter().filter(|hit| **hit).count() as u64, n),
        None => Estimate::without_interval(f64::NAN, n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracies_are_split_by_exercise_and_nan_spoils_only_its_own() {
        let item = |task: &str, hit| (task.to_owned(), hit);
        let items =
            [item("spell", Some(true)), item("count", Some(false)), item("spell", Some(true)), item("", Some(false))];
        let got: Vec<(String, f64, u64)> =
            accuracies("answers", &items, "d").into_iter().map(|m| (m.name, m.value, m.n)).collect();
        let want =
            [("answers.accuracy", 0.5, 4), ("answers.accuracy.count", 0.0, 1), ("answers.accuracy.spell", 1.0, 2)];
        assert_eq!(got, want.map(|(name, value, n)| (name.to_owned(), value, n)));
        let got = accuracies("a", &[item("x", None), item("y", Some(true))], "d");
        assert!(got[0].value.is_nan() && got[1].value.is_nan() && got[2].value == 1.0, "{got:?}");
    }
}
