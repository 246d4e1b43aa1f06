//! What a verdict lets through and what it refuses.

use std::path::Path;

use super::*;
use crate::interval::{Estimate, rate};

const MODEL: &str = "model-a";

fn policy(rules: &str) -> Policy {
    let text = format!("version = 1\n[transitions.t]\nrules = [{rules}]\n");
    Policy::parse(Path::new("p.toml"), text.as_bytes()).unwrap()
}

fn rule(metric: &str, op: &str, bound: &str, min_n: u64, threshold: &str) -> String {
    format!(
        "{{ metric = \"{metric}\", op = \"{op}\", bound = \"{bound}\", min_n = {min_n}, threshold = {threshold} }},"
    )
}

fn metric(name: &str, direction: Direction, value: f64, half: f64, n: u64) -> Metric {
    Metric::new(name, direction, Estimate { value, n, ci_low: value - half, ci_high: value + half }, "data")
}

fn evidence(model: &str, metrics: Vec<Metric>) -> Evidence {
    Evidence { report: EvalReport { metrics, ..EvalReport::new(model, "suite") }, hash: format!("report-of-{model}") }
}

fn verdict(rules: &str, evals: &[Evidence], baselines: &[Evidence]) -> Verdict {
    check(&policy(rules), "t", MODEL, evals, baselines).unwrap()
}

#[track_caller]
fn fails(rules: &str, evals: &[Evidence], baselines: &[Evidence], want: &str) {
    let got = verdict(rules, evals, baselines);
    assert!(!got.passed && got.to_string().contains(want), "{got}");
}

#[test]
fn a_gate_passes_when_every_rule_holds() {
    let evals = [evidence(MODEL, vec![metric("accuracy", Direction::Higher, 0.9, 0.05, 100)])];
    let got = verdict(&rule("accuracy", ">", "lower", 100, "0.8"), &evals, &[]);
    assert!(got.passed && got.problems.is_empty(), "{got}");
    assert_eq!((got.rules[0].n, got.rules[0].threshold), (100, 0.8));
    // The same number at the other end of its interval does not hold.
    fails(&rule("accuracy", ">", "lower", 100, "0.86"), &evals, &[], "wanted > 0.86");
}

#[test]
fn s01_missing_metric_fails() {
    let rules = [rule("gsm8k", ">=", "point", 1, "0.2"), rule("accuracy", ">=", "point", 1, "0.1")].concat();
    fails(&rules, &[], &[], "`gsm8k` is missing");
    let evals = [evidence(MODEL, vec![metric("accuracy", Direction::Higher, 0.9, 0.0, 10)])];
    fails(&rules, &evals, &[], "`gsm8k` is missing");
    let got = verdict(&rules, &evals, &[]);
    assert_eq!(got.rules.iter().map(|r| r.passed).collect::<Vec<_>>(), [false, true]);
    fails(&rule("accuracy", ">", "point", 1, "{ baseline = \"accuracy\" }"), &evals, &[], "missing from the baseline");
}

#[test]
fn s02_direction_is_explicit_not_guessed() {
    // The names that the original checker read backwards: each is judged by the written operator alone.
    for (name, direction, op, good, bad) in [
        ("function_call_success", Direction::Higher, ">=", 0.95, 0.1),
        ("function_call_format_valid", Direction::Higher, ">=", 0.9, 0.1),
        ("safety_baseline", Direction::Higher, ">=", 0.9, 0.0),
        ("no_repetition", Direction::Higher, ">=", 1.0, 0.0),
        ("coherent_reasoning", Direction::Higher, ">=", 1.0, 0.0),
        ("hallucinated_api_rate", Direction::Lower, "<=", 0.01, 0.9),
    ] {
        let rules = rule(name, op, "point", 1, "0.6");
        let evals = |value| [evidence(MODEL, vec![metric(name, direction, value, 0.0, 10)])];
        assert!(verdict(&rules, &evals(good), &[]).passed, "{name}");
        assert!(!verdict(&rules, &evals(bad), &[]).passed, "{name}");
        // An operator against the report's direction is an error in the policy, never a pass.
        let turned = rule(name, if op == ">=" { "<=" } else { ">=" }, "point", 1, "0.6");
        for value in [good, bad] {
            fails(&turned, &evals(value), &[], "correct the policy");
        }
    }
}

#[test]
fn s04_stale_report_is_refused() {
    let good = vec![metric("accuracy", Direction::Higher, 0.9, 0.0, 100)];
    let rules = rule("accuracy", ">=", "point", 1, "0.5");
    fails(&rules, &[evidence("model-of-the-previous-stage", good.clone())], &[], "stale report");
    // A stale report beside a fresh one fails the gate too: somebody believes it.
    let both = [evidence(MODEL, good.clone()), evidence("other", good.clone())];
    fails(&rules, &both, &[], "stale report report-of-other");
    // Without a model it is no evidence about a model.
    fails(&rules, &[evidence(EvalReport::NO_MODEL, good)], &[], "stale report");
}

#[test]
fn a_value_that_is_not_finite_fails() {
    for (value, half) in [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (0.9, f64::NAN)] {
        let evals = [evidence(MODEL, vec![metric("accuracy", Direction::Higher, value, half, 100)])];
        fails(&rule("accuracy", ">=", "lower", 1, "0.5"), &evals, &[], "not a number");
        fails(&rule("accuracy", "<=", "upper", 1, "0.5"), &evals, &[], "FAIL");
    }
    let evals = [evidence(MODEL, vec![metric("x", Direction::Lower, 1.0, 0.1, 9)])];
    let baseline = [evidence("b", vec![metric("x", Direction::Lower, f64::NAN, 0.0, 9)])];
    fails(&rule("x", "<", "point", 1, "{ baseline = \"x\" }"), &evals, &baseline, "not a number");
}

#[test]
fn too_few_items_fail_on_either_side() {
    let own = |n| [evidence(MODEL, vec![metric("accuracy", Direction::Higher, 0.9, 0.0, n)])];
    fails(&rule("accuracy", ">=", "point", 200, "0.5"), &own(10), &[], "measured on 10 items, the rule needs 200");
    assert!(verdict(&rule("accuracy", ">=", "point", 200, "0.5"), &own(200), &[]).passed);
    let baseline = [evidence("b", vec![metric("accuracy", Direction::Higher, 0.1, 0.0, 3)])];
    let rules = rule("accuracy", ">=", "point", 200, "{ baseline = \"accuracy\" }");
    fails(&rules, &own(200), &baseline, "measured on 3 items");
}

#[test]
fn references_compare_with_other_metrics_on_the_same_data() {
    let evals = [evidence(
        MODEL,
        vec![metric("bpb", Direction::Lower, 2.0, 0.1, 50), metric("merged_bpb", Direction::Lower, 2.05, 0.1, 50)],
    )];
    let baseline = [evidence("before", vec![metric("bpb", Direction::Lower, 2.2, 0.05, 50)])];
    assert!(
        verdict(&rule("bpb", "<", "upper", 50, "{ baseline = \"bpb\", bound = \"lower\" }"), &evals, &baseline).passed
    );
    assert!(!verdict(&rule("bpb", "<", "upper", 50, "{ baseline = \"bpb\", plus = -0.2 }"), &evals, &baseline).passed);
    assert!(verdict(&rule("bpb", "<=", "point", 50, "{ baseline = \"bpb\", times = 0.95 }"), &evals, &baseline).passed);
    assert!(verdict(&rule("merged_bpb", "<=", "point", 50, "{ metric = \"bpb\", plus = 0.06 }"), &evals, &[]).passed);
    let mut elsewhere = baseline.clone();
    elsewhere[0].report.metrics[0].dataset_hash = "other data".into();
    fails(&rule("bpb", "<", "point", 50, "{ baseline = \"bpb\" }"), &evals, &elsewhere, "not comparable");
}

#[test]
fn ambiguous_and_empty_comparisons_are_refused() {
    let one = evidence(MODEL, vec![metric("accuracy", Direction::Higher, 0.9, 0.0, 100)]);
    let rules = rule("accuracy", ">=", "point", 1, "0.5");
    fails(&rules, &[one.clone(), one.clone()], &[], "more than one");
    let self_compare = rule("accuracy", ">=", "point", 1, "{ baseline = \"accuracy\" }");
    fails(&self_compare, std::slice::from_ref(&one), std::slice::from_ref(&one), "of the model itself");
}

#[test]
fn ten_items_cannot_pass_a_lower_bound_of_eighty_percent() {
    let evals = [evidence(MODEL, vec![Metric::new("refusal", Direction::Higher, rate(9, 10), "data")])];
    fails(&rule("refusal", ">=", "lower", 1, "0.8"), &evals, &[], "wanted >= 0.8");
}
