//! Gate policies: for every transition, the rules that must all hold.
//!
//! ```toml
//! version = 1
//!
//! [[transitions.pretrain-to-sft.rules]]
//! metric = "bits_per_byte"                               # as named in the report
//! op = "<"                                               # < <= > >=, never implied by the name
//! bound = "upper"                                        # point, lower or upper end of the 95 % interval
//! min_n = 200                                            # measured on at least so many items
//! threshold = { baseline = "ngram5_bits_per_byte" }      # or a number, or { metric = "other" }
//! ```
//!
//! A reference takes `bound` (default point), `times` (default 1) and `plus` (default 0): the threshold is
//! `times * bound + plus`. With `metric` it means another metric of the same model, with `baseline` a metric of a
//! report given as baseline; both must have been measured on the same data as the rule's metric.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::artifact;
use crate::error::{GateError, Result};
use crate::report::Metric;

/// Policies beyond this size are not ours.
const MAX_BYTES: u64 = 1 << 20;

/// A policy file.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    transitions: BTreeMap<String, Vec<Rule>>,
    hash: String,
}

/// One condition of a transition.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the metric in the report.
    pub metric: String,
    /// How it must compare with the threshold.
    pub op: Op,
    /// Which end of its interval is compared.
    pub bound: Bound,
    /// Items that it must have been measured on at least.
    pub min_n: u64,
    /// What it is compared with.
    pub threshold: Threshold,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Strictly less.
    #[serde(rename = "<")]
    Less,
    /// At most.
    #[serde(rename = "<=")]
    AtMost,
    /// Strictly more.
    #[serde(rename = ">")]
    Greater,
    /// At least.
    #[serde(rename = ">=")]
    AtLeast,
}

/// Which number of a metric is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The estimate itself.
    #[default]
    Point,
    /// The lower end of the 95 % interval.
    Lower,
    /// The upper end of the 95 % interval.
    Upper,
}

/// What a metric is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Threshold {
    /// A number.
    Number(f64),
    /// Another metric.
    Reference(Reference),
}

/// Another metric as a threshold: `times * bound + plus`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Whose metric it is.
    pub of: Side,
    /// Its name.
    pub metric: String,
    /// Which number of it.
    pub bound: Bound,
    /// Factor.
    pub times: f64,
    /// Summand.
    pub plus: f64,
}

/// Whose metric a reference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The model's own.
    Model,
    /// That of a baseline report.
    Baseline,
}

impl Op {
    /// Whether `value op threshold` holds; never for NaN.
    pub fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::Less => value < threshold,
            Self::AtMost => value <= threshold,
            Self::Greater => value > threshold,
            Self::AtLeast => value >= threshold,
        }
    }

    /// The sign, as in the policy.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }
}

impl Bound {
    /// This number of a metric; NaN when the metric has no interval.
    pub fn of(self, metric: &Metric) -> f64 {
        match self {
            Self::Point => metric.value,
            Self::Lower => metric.ci_low,
            Self::Upper => metric.ci_high,
        }
    }

    /// The word, as in the policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Point => "point",
            Self::Lower => "lower",
            Self::Upper => "upper",
        }
    }
}

impl Policy {
    /// The version that this build reads.
    pub const VERSION: u32 = 1;

    /// Reads a policy.
    ///
    /// # Errors
    /// [`GateError::Toml`] for syntax, unknown, missing and duplicate keys; [`GateError::Version`];
    /// [`GateError::BadPolicy`] for a transition without rules, `min_n = 0`, and numbers that are not finite.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = artifact::read_bounded(path, MAX_BYTES)?;
        Self::parse(path, &bytes)
    }

    /// Parses the bytes of a policy; `path` is for messages.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let file: PolicyFile = toml::from_slice(bytes)
            .map_err(|source| GateError::Toml { path: path.into(), source: Box::new(source) })?;
        if file.version != u64::from(Self::VERSION) {
            let (expected, found) = (Self::VERSION, file.version);
            return Err(GateError::Version { kind: "policy", path: path.into(), expected, found });
        }
        let bad = |key: String, expected, found| GateError::BadPolicy { path: path.into(), key, expected, found };
        if file.transitions.is_empty() {
            return Err(bad("transitions".into(), "at least one transition", "none".into()));
        }
        for (name, transition) in &file.transitions {
            if transition.rules.is_empty() {
                return Err(bad(format!("transitions.{name}.rules"), "at least one rule", "none".into()));
            }
            for (i, rule) in transition.rules.iter().enumerate() {
                let at = |key: &str| format!("transitions.{name}.rules[{i}].{key}");
                rule.validate().map_err(|(key, expected, found)| bad(at(key), expected, found))?;
            }
        }
        let transitions = file.transitions.into_iter().map(|(name, t)| (name, t.rules)).collect();
        Ok(Self { transitions, hash: artifact::hash_bytes(bytes) })
    }

    /// BLAKE3 (hex) of the file.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Names of the transitions, sorted.
    pub fn names(&self) -> Vec<String> {
        self.transitions.keys().cloned().collect()
    }

    /// The rules of a transition, never empty.
    ///
    /// # Errors
    /// [`GateError::UnknownTransition`] lists the names that exist; there is no default.
    pub fn rules(&self, transition: &str) -> Result<&[Rule]> {
        match self.transitions.get(transition) {
            Some(rules) => Ok(rules),
            None => Err(GateError::UnknownTransition { wanted: transition.into(), known: self.names() }),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    version: u64,
    transitions: BTreeMap<String, Transition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transition {
    rules: Vec<Rule>,
}

impl Rule {
    /// The key, what is accepted and what came, of the first impossible value.
    fn validate(&self) -> std::result::Result<(), (&'static str, &'static str, String)> {
        if self.metric.is_empty() {
            return Err(("metric", "the name of a metric", "\"\"".into()));
        }
        if self.min_n == 0 {
            return Err(("min_n", "at least 1", "0".into()));
        }
        let numbers = match &self.threshold {
            Threshold::Number(number) => vec![("threshold", *number)],
            Threshold::Reference(r) => vec![("threshold.times", r.times), ("threshold.plus", r.plus)],
        };
        match numbers.into_iter().find(|(_, number)| !number.is_finite()) {
            Some((key, number)) => Err((key, "a finite number", number.to_string())),
            None => Ok(()),
        }
    }
}

/// A reference as written: exactly one of `metric` and `baseline`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferenceFile {
    metric: Option<String>,
    baseline: Option<String>,
    #[serde(default)]
    bound: Bound,
    times: Option<f64>,
    plus: Option<f64>,
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(ThresholdVisitor)
    }
}

struct ThresholdVisitor;

impl<'de> Visitor<'de> for ThresholdVisitor {
    type Value = Threshold;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, { metric = \"name\" } or { baseline = \"name\" }")
    }

    fn visit_f64<E>(self, number: f64) -> std::result::Result<Threshold, E> {
        Ok(Threshold::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Threshold, E> {
        Ok(Threshold::Number(number as f64))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Threshold, A::Error> {
        let file = ReferenceFile::deserialize(MapAccessDeserializer::new(map))?;
        let (of, metric) = match (file.metric, file.baseline) {
            (Some(name), None) => (Side::Model, name),
            (None, Some(name)) => (Side::Baseline, name),
            _ => return Err(serde::de::Error::custom("a threshold needs exactly one of `metric` and `baseline`")),
        };
        let (times, plus) = (file.times.unwrap_or(1.0), file.plus.unwrap_or(0.0));
        Ok(Threshold::Reference(Reference { of, metric, bound: file.bound, times, plus }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = r#"
[[transitions.a-to-b.rules]]
metric = "accuracy"
op = ">="
bound = "lower"
min_n = 50
threshold = 0.5
"#;

    fn parse(text: &str) -> Result<Policy> {
        Policy::parse(Path::new("policy.toml"), text.as_bytes())
    }

    fn good() -> String {
        format!("version = 1\n{RULE}")
    }

    #[test]
    fn s03_unknown_transition_is_an_error_and_every_transition_is_reachable() {
        let policy = parse(&format!("{}{}", good(), RULE.replace("a-to-b", "b-to-c"))).unwrap();
        assert_eq!(policy.names(), ["a-to-b", "b-to-c"]);
        for name in policy.names() {
            assert_eq!(policy.rules(&name).unwrap().len(), 1);
        }
        let message = policy.rules("a-to-c").unwrap_err().to_string();
        assert_eq!(message, "unknown transition `a-to-c`; the policy has a-to-b, b-to-c");
        // A transition under the wrong table is refused, not ignored.
        let message = parse(&format!("{}\n[benchmarks]\nx = 1\n", good())).unwrap_err().to_string();
        assert!(message.contains("unknown field `benchmarks`"), "{message}");
    }

    #[test]
    fn s02_operator_bound_and_n_must_be_written() {
        for line in ["op = \">=\"", "bound = \"lower\"", "min_n = 50", "threshold = 0.5", "metric = \"accuracy\""] {
            let message = parse(&good().replace(line, "")).unwrap_err().to_string();
            let key = line.split(' ').next().unwrap();
            assert!(message.contains(&format!("missing field `{key}`")), "{message}");
        }
    }

    #[test]
    fn thresholds_are_numbers_or_references() {
        let threshold = |text: &str| {
            let policy = parse(&good().replace("threshold = 0.5", text))?;
            Ok::<_, GateError>(policy.rules("a-to-b")?[0].threshold.clone())
        };
        assert_eq!(threshold("threshold = 3").unwrap(), Threshold::Number(3.0));
        let reference =
            Reference { of: Side::Baseline, metric: "x".into(), bound: Bound::Upper, times: 1.5, plus: 0.0 };
        let text = r#"threshold = { baseline = "x", bound = "upper", times = 1.5 }"#;
        assert_eq!(threshold(text).unwrap(), Threshold::Reference(reference));
        for (bad, want) in [
            ("threshold = \"0.5\"", "a number, { metric"),
            ("threshold = nan", "`transitions.a-to-b.rules[0].threshold` must be a finite number, found NaN"),
            ("threshold = { baseline = \"x\", plus = inf }", "threshold.plus"),
            ("threshold = { times = 2.0 }", "exactly one of"),
            ("threshold = { metric = \"x\", baseline = \"x\" }", "exactly one of"),
            ("threshold = { metric = \"x\", factor = 2.0 }", "unknown field `factor`"),
        ] {
            let message = threshold(bad).unwrap_err().to_string();
            assert!(message.contains(want), "{bad}: {message}");
        }
    }

    #[test]
    fn impossible_policies_are_refused() {
        for (text, want) in [
            ("version = 1\n[transitions]\n".to_owned(), "at least one transition"),
            (
                "version = 1\n[transitions.a]\nrules = []\n".to_owned(),
                "`transitions.a.rules` must be at least one rule",
            ),
            (good().replace("min_n = 50", "min_n = 0"), "rules[0].min_n` must be at least 1"),
            (good().replace("min_n = 50", "min_n = -1"), "min_n"),
            (good().replace("version = 1", "version = 2"), "version 2, this build reads version 1"),
            (good().replace(">=", "=>"), "unknown variant `=>`"),
            (good().replace("min_n = 50", "min_n = 50\nmin_n = 1"), "duplicate key"),
        ] {
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(want), "{text}: {message}");
        }
    }

    #[test]
    fn nan_never_holds() {
        for op in [Op::Less, Op::AtMost, Op::Greater, Op::AtLeast] {
            assert!(!op.holds(f64::NAN, 0.0) && !op.holds(0.0, f64::NAN), "{}", op.sign());
        }
    }
}
