//! From reports and a policy to a verdict: every rule is decided, and says what it saw.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::policy::{Bound, Op, Policy, Reference, Rule, Side, Threshold};
use crate::report::{Direction, EvalReport, Metric, or_null};

/// A report and the hash of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The report.
    pub report: EvalReport,
    /// BLAKE3 (hex) of its file.
    pub hash: String,
}

/// The outcome of a gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The transition that was checked.
    pub transition: String,
    /// Whether every rule passed and no evidence was refused.
    pub passed: bool,
    /// Evidence that was refused; a single entry fails the gate.
    pub problems: Vec<String>,
    /// One entry per rule of the policy, in its order.
    pub rules: Vec<RuleVerdict>,
}

/// The outcome of one rule, with the numbers that decided it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleVerdict {
    /// The metric.
    pub metric: String,
    /// The comparison.
    pub op: Op,
    /// Which number of the metric was compared.
    pub bound: Bound,
    /// Items required.
    pub min_n: u64,
    /// Items found, 0 without the metric.
    pub n: u64,
    /// The number that was compared; NaN (`null`) without one.
    #[serde(with = "or_null")]
    pub value: f64,
    /// The threshold as a number; NaN (`null`) without one.
    #[serde(with = "or_null")]
    pub threshold: f64,
    /// Whether the rule holds.
    pub passed: bool,
    /// Why it does not; empty when it does.
    pub reason: String,
}

impl RuleVerdict {
    /// Whether the recorded numbers themselves say that the rule holds.
    pub(crate) fn follows(&self) -> bool {
        self.value.is_finite()
            && self.threshold.is_finite()
            && self.n >= self.min_n
            && self.min_n > 0
            && self.op.holds(self.value, self.threshold)
    }
}

impl std::fmt::Display for RuleVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mark, op) = (if self.passed { "pass" } else { "FAIL" }, self.op.sign());
        write!(f, "{mark}  {} ({}) {:.4} {op} {:.4}", self.metric, self.bound.name(), self.value, self.threshold)?;
        write!(f, ", n {} (at least {})", self.n, self.min_n)?;
        if self.passed { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "gate {}: {}", self.transition, if self.passed { "passed" } else { "FAILED" })?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  FAIL  {problem}"))?;
        self.rules.iter().try_for_each(|rule| writeln!(f, "  {rule}"))
    }
}

/// Checks every rule of a transition on the evidence for one model.
///
/// Evidence is refused, and fails the gate, when a report is of another model (stale), when two reports carry the same
/// metric (which one counts would be a choice), or when a baseline is the model itself.
///
/// # Errors
/// [`crate::GateError::UnknownTransition`]. A gate that is not passed is no error but a verdict.
pub fn check(
    policy: &Policy,
    transition: &str,
    model_hash: &str,
    evals: &[Evidence],
    baselines: &[Evidence],
) -> Result<Verdict> {
    let rules = policy.rules(transition)?;
    let mut problems = Vec::new();
    for Evidence { report, hash } in evals.iter().filter(|e| e.report.model_hash != model_hash) {
        let found = &report.model_hash;
        problems.push(format!("stale report {hash}: it is of model {found}, this model is {model_hash}"));
    }
    for Evidence { hash, .. } in baselines.iter().filter(|b| b.report.model_hash == model_hash) {
        problems.push(format!("baseline report {hash} is of the model itself, so the comparison would be empty"));
    }
    let own: Vec<&Metric> = metrics(evals.iter().filter(|e| e.report.model_hash == model_hash));
    let other: Vec<&Metric> = metrics(baselines.iter().filter(|b| b.report.model_hash != model_hash));
    let rules: Vec<RuleVerdict> = rules.iter().map(|rule| decide(rule, &own, &other)).collect();
    let passed = problems.is_empty() && rules.iter().all(|r| r.passed);
    Ok(Verdict { transition: transition.into(), passed, problems, rules })
}

fn metrics<'a>(evidence: impl Iterator<Item = &'a Evidence>) -> Vec<&'a Metric> {
    evidence.flat_map(|e| &e.report.metrics).collect()
}

fn decide(rule: &Rule, own: &[&Metric], other: &[&Metric]) -> RuleVerdict {
    let mut verdict = RuleVerdict {
        metric: rule.metric.clone(),
        op: rule.op,
        bound: rule.bound,
        min_n: rule.min_n,
        n: 0,
        value: f64::NAN,
        threshold: f64::NAN,
        passed: false,
        reason: String::new(),
    };
    verdict.reason = match compare(rule, own, other, &mut verdict) {
        Ok(()) => String::new(),
        Err(reason) => reason,
    };
    verdict.passed = verdict.reason.is_empty() && verdict.follows();
    verdict
}

/// Fills in the numbers; the error is the reason for failing.
fn compare(rule: &Rule, own: &[&Metric], other: &[&Metric], out: &mut RuleVerdict) -> Result<(), String> {
    let metric = find(&rule.metric, own, "the reports of this model")?;
    (out.n, out.value) = (metric.n, rule.bound.of(metric));
    let reference = match &rule.threshold {
        Threshold::Number(number) => {
            out.threshold = *number;
            None
        }
        Threshold::Reference(reference) => {
            let found = referenced(reference, own, other)?;
            out.threshold = reference.times * reference.bound.of(found) + reference.plus;
            Some(found)
        }
    };
    agrees(metric, rule.op)?;
    finite(rule.bound, metric)?;
    enough(rule.min_n, metric)?;
    if let (Some(found), Threshold::Reference(reference)) = (reference, &rule.threshold) {
        finite(reference.bound, found)?;
        enough(rule.min_n, found)?;
        if found.dataset_hash != metric.dataset_hash {
            let (left, right) = (&metric.dataset_hash, &found.dataset_hash);
            return Err(format!("measured on data {left}, `{}` on data {right}: not comparable", found.name));
        }
    }
    if rule.op.holds(out.value, out.threshold) {
        return Ok(());
    }
    let mut reason = format!("wanted {} {}", rule.op.sign(), out.threshold);
    if let Threshold::Reference(reference) = &rule.threshold {
        let _ = write!(reason, " (from `{}`)", reference.metric);
    }
    Err(reason)
}

fn referenced<'a>(reference: &Reference, own: &[&'a Metric], other: &[&'a Metric]) -> Result<&'a Metric, String> {
    match reference.of {
        Side::Model => find(&reference.metric, own, "the reports of this model"),
        Side::Baseline => find(&reference.metric, other, "the baseline reports"),
    }
}

fn find<'a>(name: &str, metrics: &[&'a Metric], place: &str) -> Result<&'a Metric, String> {
    let mut found = metrics.iter().filter(|m| m.name == name);
    match (found.next(), found.next()) {
        (Some(metric), None) => Ok(metric),
        (None, _) => Err(format!("`{name}` is missing from {place}")),
        (Some(_), Some(_)) => Err(format!("`{name}` is in more than one of {place}: evidence must be unique")),
    }
}

/// The policy's operator must not ask for what the report calls worse.
fn agrees(metric: &Metric, op: Op) -> Result<(), String> {
    let contradiction = match metric.direction {
        Direction::Higher => matches!(op, Op::Less | Op::AtMost),
        Direction::Lower => matches!(op, Op::Greater | Op::AtLeast),
        Direction::Neither => false,
    };
    if !contradiction {
        return Ok(());
    }
    Err(format!(
        "the rule wants {} but the report says that {:?} is better; correct the policy",
        op.sign(),
        metric.direction
    ))
}

fn finite(bound: Bound, metric: &Metric) -> Result<(), String> {
    let value = bound.of(metric);
    if value.is_finite() {
        return Ok(());
    }
    Err(format!("the {} of `{}` is {value}: not a number that can be compared", bound.name(), metric.name))
}

fn enough(min_n: u64, metric: &Metric) -> Result<(), String> {
    if metric.n >= min_n {
        return Ok(());
    }
    Err(format!("`{}` was measured on {} items, the rule needs {min_n}", metric.name, metric.n))
}

#[cfg(test)]
mod tests;
