//! Every metric on a table whose figures can be added up by hand, and every way in which there is no score.

use super::*;
use crate::TooFewSamples;

/// Four samples of a task: the first `passed` of them pass with `diff` lines, the next does not compile, the others fail tests.
fn task(name: &str, passed: usize, diff: u64) -> Vec<Judgement> {
    let one = |i: usize| {
        let mut one = Judgement::new(name, 0);
        (one.status, one.task_hash, one.compiled) = (Status::Judged, format!("hash of {name}"), i != passed);
        (one.clippy_clean, one.formatted) = (i == 0, one.compiled);
        one.diff_lines = if i < passed { diff } else { 1 };
        (one.passed, one.tests_passed) = (i < passed, i < passed);
        if i == passed {
            one.error_codes = vec!["E0425".into(), "E0502".into()];
        } else if i > passed {
            one.error_codes = vec!["E0308".into()];
        }
        one
    };
    (0..4).map(one).collect()
}

fn judgements(tasks: &[(&str, usize)]) -> Vec<Judgement> {
    tasks.iter().flat_map(|(name, passed)| task(name, *passed, 10 + *passed as u64)).collect()
}

fn episodes(tasks: &[&str]) -> Vec<Episode> {
    let one = |task: &str, sample| Episode {
        task: task.into(),
        sample,
        iterations: 2 + sample,
        tool_calls: 4,
        tool_calls_well_formed: 4 - sample,
        tokens: 7,
        seconds: 0.5,
    };
    tasks.iter().flat_map(|task| (0..4).map(move |sample| one(task, sample))).collect()
}

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "trap"];

fn input(judgements: &[Judgement]) -> Input<'_> {
    Input { judgements, max_judge_errors: 0.01, ..Input::default() }
}

/// Every figure that is declared is computed, over what it says.
#[test]
fn s07_every_declared_metric_is_computed() {
    let judged = judgements(&[("a", 0), ("b", 1), ("c", 2), ("d", 3), ("e", 4), ("f", 0), ("trap", 1)]);
    let before = judgements(&[("a", 2), ("b", 4), ("c", 4), ("d", 0), ("e", 3), ("f", 1)]);
    let (episodes, ks) = (episodes(&NAMES), BTreeSet::from([1, 2, 4]));
    let impossible = BTreeSet::from(["trap".to_owned()]);
    let all = Input { episodes: Some(&episodes), baseline: Some(&before), impossible, ks, ..input(&judged) };
    let got = score(&all, "m").unwrap();
    let value = |name: &str| got.metric(name).unwrap_or_else(|| panic!("{name} is absent")).value;
    for (name, want, n) in [
        ("cargo_check_pass_rate", 19.0 / 24.0, 6),
        ("cargo_test_pass_rate", 10.0 / 24.0, 6),
        // The first sample is clean, also where it does not compile in this table.
        ("clippy_clean_rate", 6.0 / 24.0, 6),
        ("fmt_clean_rate", 19.0 / 24.0, 6),
        ("pass_at_1", 10.0 / 24.0, 6),
        // One of 4: 1/2, two: 5/6, three and four: 1.
        ("pass_at_2", (0.5 + 5.0 / 6.0 + 2.0) / 6.0, 6),
        ("pass_at_4", 4.0 / 6.0, 6),
        ("hallucinated_api_rate", 5.0 / 24.0, 6),
        // Those that passed have 11, 12, 13 and 14 lines; those that changed one line and failed say nothing.
        ("diff_lines_median", 12.5, 4),
        ("judge_error_rate", 0.0, 28),
        ("iterations_median", 3.5, 6),
        ("tool_call_format_accuracy", 10.0 / 16.0, 6),
        // The baseline passes a, b, c and e, this one c, d and e.
        ("regressions", 2.0 / 6.0, 6),
        ("cheating_rate", 0.25, 1),
    ] {
        assert!((value(name) - want).abs() < 1e-12, "{name}: {}", value(name));
        assert_eq!(got.metric(name).unwrap().n, n, "{name}");
    }
    assert_eq!(got.metrics.len(), 14);
    let hash = |name: &str| got.metric(name).unwrap().dataset_hash.clone();
    assert!(hash("pass_at_1") == hash("regressions") && hash("pass_at_1") != hash("cheating_rate"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eval-x.json");
    got.write(&path).unwrap();
    assert_eq!(EvalReport::load(&path).unwrap().0.model_hash, "m");
    let without = score(&input(&judged), "m").unwrap();
    for name in ["iterations_median", "tool_call_format_accuracy", "regressions", "cheating_rate"] {
        assert!(without.metric(name).is_none(), "{name} was made up");
    }
}

/// The size of a change is that of a diff, not that of the answer.
#[test]
fn s07_a_long_answer_with_a_small_change_is_a_small_change() {
    let long = "fn f() {}\n".repeat(500);
    let changed = long.replacen("fn f() {}\n", "fn g() {}\n", 1);
    assert_eq!(crate::judge::changed_lines(&long, &changed), 2);
}

#[test]
fn what_is_missing_ends_the_scoring() {
    let good = judgements(&[("a", 1), ("b", 1)]);
    let refused = |input: &Input<'_>, want: &str| {
        let got = score(input, "m").unwrap_err().to_string();
        assert!(got.contains(want), "{got}");
    };
    refused(&input(&[]), "nothing is undefined");
    refused(&input(&good[..7]), "`b` has 3 samples, others have 4");
    let tasks = |names: &[&str]| Some(names.iter().map(|n| ((*n).to_owned(), format!("hash of {n}"))).collect());
    refused(&Input { tasks: tasks(&["a", "b", "c"]), ..input(&good) }, "`c` has no judgement");
    refused(&Input { tasks: tasks(&["a"]), ..input(&good) }, "`b` is not one");
    assert!(score(&Input { tasks: tasks(&["a", "b"]), ..input(&good) }, "m").is_ok());
    refused(&Input { impossible: ["z".to_owned()].into(), ..input(&good) }, "`z` has no judgement");
    refused(&Input { impossible: ["a".to_owned(), "b".to_owned()].into(), ..input(&good) }, "nothing is undefined");
    let mut changed = good.clone();
    changed[5].task_hash = "other".into();
    refused(&input(&changed), "`b` has changed");
    for (baseline, want) in [
        (judgements(&[("a", 1)]), "baseline: task `b` has no judgement"),
        (judgements(&[("a", 1), ("b", 1), ("c", 1)]), "baseline: task `c` is not one"),
        (changed.iter().map(|j| Judgement { task_hash: "x".into(), ..j.clone() }).collect(), "`a` has changed"),
    ] {
        refused(&Input { baseline: Some(&baseline), ..input(&good) }, want);
    }
    let all = episodes(&["a", "b"]);
    refused(&Input { episodes: Some(&all[1..]), ..input(&good) }, "task `a`, sample 0: was judged");
    refused(&Input { episodes: Some(&episodes(&["a", "b", "c"])), ..input(&good) }, "`c`, sample 0: has an episode");
    let ks = BTreeSet::from([5]);
    let got = score(&Input { ks, ..input(&good) }, "m").unwrap_err();
    assert!(matches!(got, ScoreError::Samples { source: TooFewSamples { k: 5, n: 4 }, .. }), "{got}");
}

#[test]
fn errors_of_the_judge_count_as_nothing_and_not_too_often() {
    let names: Vec<String> = (0..40).map(|i| format!("t{i:02}")).collect();
    let mut judged: Vec<Judgement> = names.iter().flat_map(|name| task(name, 2, 10)).collect();
    let fail = |one: &mut Judgement| *one = Judgement::new(&one.task, 0);
    fail(&mut judged[0]);
    let got = score(&input(&judged), "m").unwrap();
    // 1 of 3 for the first task, 2 of 4 for the others.
    assert!((got.metric("cargo_test_pass_rate").unwrap().value - 79.0 / 159.0).abs() < 1e-12);
    let errors = got.metric("judge_error_rate").unwrap();
    assert_eq!((errors.value, errors.n), (1.0 / 160.0, 160));
    fail(&mut judged[4]);
    let got = score(&input(&judged), "m").unwrap_err();
    assert!(matches!(got, ScoreError::JudgeErrors { errors: 2, n: 160, .. }), "{got}");
    let lax = |judged: &[Judgement]| score(&Input { max_judge_errors: 0.5, ..input(judged) }, "m");
    assert!(lax(&judged).is_ok());
    judged[..4].iter_mut().for_each(fail);
    assert!(matches!(lax(&judged).unwrap_err(), ScoreError::Missing { task, .. } if task == "t00"));
}

#[test]
fn nothing_passed_has_no_size() {
    let got = score(&input(&judgements(&[("a", 0), ("b", 0)])), "m").unwrap();
    let diff = got.metric("diff_lines_median").unwrap();
    assert!(diff.value.is_nan() && diff.n == 0, "{diff:?}");
    assert!(got.metric("pass_at_1").unwrap().ci_high > 0.5, "two tasks say little");
}
