//! What came of a run, in numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::source::{Refused, Source, Split};
use super::state::{Fate, State};

/// Version of the format of [`MutateReport`].
const VERSION: u32 = 1;

/// The yield of one crate or of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yield {
    /// Mutants that the generator listed.
    pub generated: usize,
    /// Mutants that were built and tested.
    pub mutants: usize,
    /// Mutants that tests noticed: pairs.
    pub caught: usize,
    /// Mutants that no test noticed.
    pub missed: usize,
    /// Mutants that do not compile.
    pub unviable: usize,
    /// Mutants whose tests took too long or died.
    pub timeouts: usize,
    /// Mutants whose tests did not say the same twice.
    pub flaky: usize,
    /// Mutants and edits that rustfmt cannot read or that change nothing.
    pub unchanged: usize,
    /// Pairs that were left out because they change most of their file.
    pub unfit: usize,
    /// Edits that were compiled.
    pub edits: usize,
    /// Edits that the compiler refused as wanted: pairs.
    pub edit_pairs: usize,
    /// Edits that compile.
    pub edits_compile: usize,
    /// Edits that the compiler refused for another reason.
    pub edits_other: usize,
    /// Seconds that sandboxes were busy with mutants and edits, over all jobs.
    pub busy_s: f64,
    /// Pairs by genre.
    pub genres: BTreeMap<String, usize>,
    /// Pairs of edits by code of the compiler.
    pub codes: BTreeMap<String, usize>,
    /// Bytes of the faulty file: the smallest, the middle one and the largest.
    pub bytes: [usize; 3],
    /// Pairs whose faulty file has at most 2048 bytes.
    pub small: usize,
    #[serde(skip)]
    sizes: Vec<usize>,
}

/// One crate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceReport {
    /// The crate.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence, as its manifest states it.
    pub licence: String,
    /// Its side.
    pub split: Split,
    /// Tests that pass unchanged.
    pub tests: usize,
    /// What came of it.
    pub result: Yield,
}

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutateReport {
    /// Version of this format.
    pub version: u32,
    /// Over all crates of a side.
    pub totals: BTreeMap<String, Yield>,
    /// Each crate that was used.
    pub sources: Vec<SourceReport>,
    /// Each crate that was not, and why.
    pub refused: Vec<Refused>,
}

impl MutateReport {
    pub(crate) fn new(done: &[(&Source, &State)], mut refused: Vec<Refused>) -> Self {
        let mut totals: BTreeMap<String, Yield> = BTreeMap::new();
        let mut sources = Vec::new();
        for (source, state) in done {
            if let Some(why) = &state.plan.refused {
                refused.push(Refused { name: source.name.clone(), why: why.clone() });
                continue;
            }
            let mut result = Yield { generated: state.plan.generated, ..Yield::default() };
            state.done.iter().for_each(|done| result.add(state, done));
            totals.entry(source.split.name().to_owned()).or_default().join(&result);
            result.finish();
            sources.push(SourceReport {
                name: source.name.clone(),
                version: source.version.clone(),
                licence: source.licence.clone(),
                split: source.split,
                tests: state.plan.tests,
                result,
            });
        }
        totals.values_mut().for_each(Yield::finish);
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        refused.sort_by(|a, b| a.name.cmp(&b.name));
        Self { version: VERSION, totals, sources, refused }
    }
}

impl Yield {
    fn add(&mut self, state: &State, done: &super::state::Done) {
        let Some(tried) = state.plan.tries.get(done.index) else { return };
        self.busy_s += done.busy_ms as f64 / 1000.0;
        let edit = !tried.codes.is_empty();
        *(if edit { &mut self.edits } else { &mut self.mutants }) += 1;
        let count = match (done.fate, edit) {
            (Fate::Pair, false) => &mut self.caught,
            (Fate::Pair, true) => &mut self.edit_pairs,
            (Fate::Missed, false) => &mut self.missed,
            (Fate::Missed, true) => &mut self.edits_compile,
            (Fate::Unviable, _) => &mut self.unviable,
            (Fate::Timeout, _) => &mut self.timeouts,
            (Fate::Flaky, _) => &mut self.flaky,
            (Fate::Unchanged, _) => &mut self.unchanged,
            (Fate::Unfit, _) => &mut self.unfit,
            (Fate::OtherError, _) => &mut self.edits_other,
        };
        *count += 1;
        if let Some(record) = &done.record {
            *self.genres.entry(tried.genre.clone()).or_default() += 1;
            for code in &record.error_codes {
                *self.codes.entry(code.clone()).or_default() += 1;
            }
            self.sizes.push(record.buggy_code.len());
        }
    }

    fn join(&mut self, other: &Self) {
        let Self { generated, mutants, caught, missed, unviable, timeouts, flaky, unchanged, .. } = other;
        let pairs = [
            (&mut self.generated, generated),
            (&mut self.mutants, mutants),
            (&mut self.caught, caught),
            (&mut self.missed, missed),
            (&mut self.unviable, unviable),
            (&mut self.timeouts, timeouts),
            (&mut self.flaky, flaky),
            (&mut self.unchanged, unchanged),
            (&mut self.unfit, &other.unfit),
            (&mut self.edits, &other.edits),
            (&mut self.edit_pairs, &other.edit_pairs),
            (&mut self.edits_compile, &other.edits_compile),
            (&mut self.edits_other, &other.edits_other),
        ];
        for (mine, theirs) in pairs {
            *mine += theirs;
        }
        self.busy_s += other.busy_s;
        for (mine, theirs) in [(&mut self.genres, &other.genres), (&mut self.codes, &other.codes)] {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
        self.sizes.extend(&other.sizes);
    }

    fn finish(&mut self) {
        self.sizes.sort_unstable();
        let at = |share: usize| self.sizes.get(self.sizes.len().saturating_sub(1) * share / 2).copied().unwrap_or(0);
        self.bytes = [at(0), at(1), at(2)];
        self.small = self.sizes.iter().filter(|bytes| **bytes <= 2048).count();
        self.busy_s = (self.busy_s * 10.0).round() / 10.0;
    }
}
