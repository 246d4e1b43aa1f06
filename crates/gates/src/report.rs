//! The report of an evaluation, `eval-*.json`: metrics bound to the model and the data they were measured on.

use std::collections::BTreeSet;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::error::{GateError, Result};
use crate::interval::Estimate;

/// Reports beyond this size are not ours.
const MAX_BYTES: u64 = 16 << 20;

/// What was measured on one model, with everything a gate needs to believe it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalReport {
    /// Version of the format: [`EvalReport::VERSION`].
    pub version: u32,
    /// [`artifact::model_hash`] of the model, or [`EvalReport::NO_MODEL`] for baselines that need none.
    pub model_hash: String,
    /// BLAKE3 (hex) of the suite that says what was measured and how.
    pub suite_hash: String,
    /// The metrics; names are unique.
    pub metrics: Vec<Metric>,
}

/// One measured number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Unique name.
    pub name: String,
    /// The point estimate; NaN (`null` in the file) fails every rule.
    #[serde(with = "or_null")]
    pub value: f64,
    /// Which way is better. Stated by who measures it, never guessed from the name.
    pub direction: Direction,
    /// Items it was measured on.
    pub n: u64,
    /// Lower end of the 95 % interval; NaN (`null`) when there is none.
    #[serde(with = "or_null")]
    pub ci_low: f64,
    /// Upper end of the 95 % interval; NaN (`null`) when there is none.
    #[serde(with = "or_null")]
    pub ci_high: f64,
    /// BLAKE3 (hex) of the data it was measured on.
    pub dataset_hash: String,
}

/// Which way a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More is better: accuracies.
    Higher,
    /// Less is better: losses, error rates.
    Lower,
    /// Neither: a quantity that should lie in a range.
    Neither,
}

impl Metric {
    /// A metric from an estimate.
    pub fn new(name: &str, direction: Direction, estimate: Estimate, dataset_hash: &str) -> Self {
        let Estimate { value, n, ci_low, ci_high } = estimate;
        Self { name: name.into(), value, direction, n, ci_low, ci_high, dataset_hash: dataset_hash.into() }
    }
}

impl EvalReport {
    /// The version that this build writes and reads.
    pub const VERSION: u32 = 1;
    /// Stands for the model in reports of baselines that need none (n-gram counts, a compressor).
    pub const NO_MODEL: &str = "no-model";

    /// A report without metrics.
    pub fn new(model_hash: &str, suite_hash: &str) -> Self {
        let (model_hash, suite_hash) = (model_hash.into(), suite_hash.into());
        Self { version: Self::VERSION, model_hash, suite_hash, metrics: Vec::new() }
    }

    /// The metric of this name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|m| m.name == name)
    }

    /// Reads a report; also returns the BLAKE3 (hex) of the file.
    ///
    /// # Errors
    /// [`GateError::Json`] (unknown keys are errors), [`GateError::Version`], [`GateError::BadMetric`] for duplicate
    /// names and intervals that do not hold their value.
    pub fn load(path: &Path) -> Result<(Self, String)> {
        let bytes = artifact::read_bounded(path, MAX_BYTES)?;
        let report: Self = parse_versioned("report", "gates eval", path, &bytes, Self::VERSION)?;
        report.validate(path)?;
        Ok((report, artifact::hash_bytes(&bytes)))
    }

    /// Writes the report atomically.
    ///
    /// # Errors
    /// [`GateError::BadMetric`] for what [`EvalReport::load`] would refuse; [`GateError::Artifact`].
    pub fn write(&self, path: &Path) -> Result<()> {
        self.validate(path)?;
        Ok(artifact::write_atomic(path, to_json(self).as_bytes())?)
    }

    fn validate(&self, path: &Path) -> Result<()> {
        let mut seen = BTreeSet::new();
        for metric in &self.metrics {
            let bad = |problem| Err(GateError::BadMetric { path: path.into(), metric: metric.name.clone(), problem });
            if metric.name.is_empty() {
                return bad("has no name");
            }
            if !seen.insert(&metric.name) {
                return bad("is there twice");
            }
            if metric.ci_low > metric.value || metric.ci_high < metric.value {
                return bad("has a value outside its own interval");
            }
        }
        Ok(())
    }
}

/// Pretty JSON with a final newline; the types of this crate always serialise.
pub(crate) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("string keys and plain numbers always serialise") + "\n"
}

/// Parses a JSON file of ours; its version is read before the rest is believed.
pub(crate) fn parse_versioned<T: DeserializeOwned>(
    kind: &'static str,
    maker: &'static str,
    path: &Path,
    bytes: &[u8],
    expected: u32,
) -> Result<T> {
    #[derive(Deserialize)]
    struct Header {
        version: u64,
    }
    let json = |source| GateError::Json { kind, path: path.into(), source, maker };
    let header: Header = serde_json::from_slice(bytes).map_err(json)?;
    if header.version != u64::from(expected) {
        return Err(GateError::Version { kind, path: path.into(), expected, found: header.version });
    }
    serde_json::from_slice(bytes).map_err(json)
}

/// JSON has no NaN: a number that is not finite is written as `null` and read as NaN, which no rule accepts.
pub(crate) mod or_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> EvalReport {
        let mut report = EvalReport::new("m", "s");
        report.metrics.push(Metric::new("accuracy", Direction::Higher, crate::interval::rate(3, 4), "d"));
        report
    }

    #[test]
    fn a_report_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval-x.json");
        let mut want = report();
        want.metrics[0].ci_low = 0.1 + 0.2;
        want.write(&path).unwrap();
        let (got, hash) = EvalReport::load(&path).unwrap();
        assert_eq!((got, hash), (want, artifact::hash_file(&path).unwrap()));
    }

    #[test]
    fn what_is_not_finite_becomes_nan_not_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval-x.json");
        let mut bad = report();
        bad.metrics[0].value = f64::INFINITY;
        bad.metrics[0].ci_high = f64::NAN;
        bad.metrics[0].ci_low = f64::NAN;
        bad.write(&path).unwrap();
        let got = EvalReport::load(&path).unwrap().0;
        assert!(got.metrics[0].value.is_nan() && got.metrics[0].ci_high.is_nan());
    }

    #[test]
    fn bad_files_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval-x.json");
        let good = to_json(&report());
        let check = |text: &str, want: &str| {
            std::fs::write(&path, text).unwrap();
            let message = EvalReport::load(&path).unwrap_err().to_string();
            assert!(message.contains(want) && message.contains("eval-x.json"), "{message}");
        };
        check(&good.replace("\"version\": 1", "\"version\": 2"), "version 2, this build reads version 1");
        check(&good.replace("\"direction\": \"higher\",", ""), "missing field `direction`");
        check(&good.replace("\"higher\"", "\"better\""), "unknown variant `better`");
        check(&good.replace("\"suite_hash\"", "\"suit_hash\""), "unknown field `suit_hash`");
        check(&good.replace("\"value\": 0.75", "\"value\": 7.5"), "outside its own interval");
        check(&good[..good.len() / 2], "EOF");
        check("", "EOF");
        let twice = EvalReport { metrics: [report().metrics, report().metrics].concat(), ..report() };
        check(&to_json(&twice), "`accuracy` is there twice");
        assert!(twice.write(&dir.path().join("new.json")).is_err() && !dir.path().join("new.json").exists());
    }
}
