//! Pairs: whole, verified, the same after a kill, and none from crates that cannot be used.

use moe_agent::mutate::{MutateReport, apply_diff};
use moe_agent::{MutationRecord, read_mutations};

use super::{LIB, Place, TESTS, read, run, succeed};

fn report(place: &Place, out: &str) -> MutateReport {
    serde_json::from_str(&read(&place.path(out).join("report.json"))).unwrap()
}

#[test]
fn s21_pairs_are_whole_files_with_what_the_failing_test_said() {
    let place = Place::new(&[("train", "numbers", LIB, TESTS)]);
    if succeed(place.mutate("out", &[])).is_none() {
        return;
    }
    let pairs = read_mutations(&place.path("out/train.jsonl")).unwrap();
    let total = &report(&place, "out").totals["train"];
    assert_eq!(
        (total.generated, total.mutants, total.caught, total.missed, total.unviable),
        (6, 6, 4, 1, 1),
        "{total:?}"
    );
    assert_eq!((total.timeouts, total.flaky, total.edits), (0, 0, 4), "{total:?}");
    assert_eq!(pairs.len(), total.caught + total.edit_pairs);
    assert!(total.edit_pairs > 0, "{total:?}");
    let mutants: Vec<&MutationRecord> = pairs.iter().filter(|pair| pair.error_codes.is_empty()).collect();
    for pair in &mutants {
        let message = &pair.error_message;
        assert!(message.contains("... FAILED") && message.contains("panicked at tests/numbers.rs:"), "{message}");
        assert!(message.contains("left: ") && !pair.failing_tests.is_empty(), "{message}");
    }
    for pair in &pairs {
        assert_eq!((pair.fixed_code.as_str(), pair.file.as_deref()), (LIB, Some("src/lib.rs")));
        assert_eq!(apply_diff(&pair.buggy_code, pair.diff.as_ref().unwrap()).as_deref(), Some(LIB));
        assert_eq!((pair.repo.as_deref(), pair.version.as_deref()), (Some("numbers"), Some("0.1.0")));
        assert_eq!(pair.licence.as_deref(), Some("MIT OR Apache-2.0"));
        for noise in ["Compiling", "Finished", "/bench", "finished in", "RUST_BACKTRACE", "cargo-mutants"] {
            assert!(!pair.error_message.contains(noise) && !pair.buggy_code.contains(noise), "{noise}: {pair:?}");
        }
    }
    let wrapping = mutants.iter().find(|pair| pair.buggy_code.contains("wrapping_add")).unwrap();
    assert_eq!(wrapping.failing_tests, ["numbers::saturates"]);
    for edit in pairs.iter().filter(|pair| !pair.error_codes.is_empty()) {
        assert!(edit.error_message.contains(&format!("error[{}]", edit.error_codes[0])), "{edit:?}");
        assert!(edit.error_message.contains("src/lib.rs:"), "{edit:?}");
    }
    assert_eq!(read(&place.path("out/heldout.jsonl")), "");
    assert_eq!(std::fs::read_dir(place.path("out/work")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_killed_run_goes_on_and_ends_as_one_that_was_not() {
    let place = Place::new(&[("train", "numbers", LIB, TESTS), ("heldout", "others", LIB, TESTS)]);
    if succeed(place.mutate("whole", &["--jobs", "1"])).is_none() {
        return;
    }
    let lines = |out: &str| {
        let file = place.path(out).join("state/numbers-0.1.0.jsonl");
        std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut child = place.mutate("killed", &["--jobs", "1"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    // The plan and two results; then it ends without a chance to say goodbye.
    while lines("killed").len() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = lines("killed");
    assert!(before.len() >= 3 && before.len() < lines("whole").len(), "{before:?}");
    succeed(place.mutate("killed", &["--jobs", "2"])).unwrap();
    let after = lines("killed");
    assert_eq!(after[..before.len() - 1], before[..before.len() - 1], "what was done is not done again");
    assert_eq!(after.len(), lines("whole").len());
    for file in ["train.jsonl", "heldout.jsonl"] {
        assert_eq!(read(&place.path("killed").join(file)), read(&place.path("whole").join(file)));
        assert!(!read(&place.path("whole").join(file)).is_empty());
    }
    // Everything is done: the third time nothing is built.
    succeed(place.mutate("killed", &[])).unwrap();
    assert_eq!(lines("killed"), after);
}

#[test]
fn crates_that_cannot_be_used_are_reported() {
    let failing = TESTS.replace("add(2, 3), 5", "add(2, 3), 6");
    let place = Place::new(&[
        ("train", "broken", &LIB.replace("-> u32", "-> u33"), TESTS),
        ("train", "failing", LIB, &failing),
        ("train", "silent", LIB, "//! No tests.\n"),
    ]);
    place.put("ours/train/bare/lib.rs", LIB);
    let Some(output) = run(place.mutate("out", &[])) else { return };
    assert!(!output.status.success(), "nothing could be used");
    let got = report(&place, "out");
    assert!(got.sources.is_empty() && got.totals.is_empty(), "{got:?}");
    let why = |name: &str| got.refused.iter().find(|refused| refused.name == name).unwrap().why.clone();
    assert!(why("broken").contains("do not build unchanged") && why("broken").contains("u33"), "{}", why("broken"));
    assert!(why("failing").contains("fail unchanged") && why("failing").contains("adds"), "{}", why("failing"));
    assert!(why("silent").contains("no tests"), "{}", why("silent"));
    assert!(why("bare").contains("lib.rs and tests.rs"), "{}", why("bare"));
    assert!(!got.refused.iter().any(|refused| refused.why.contains("/bench")), "{:?}", got.refused);
}
