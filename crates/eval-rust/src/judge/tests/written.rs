//! R14: tests that a candidate writes are worth the mutants that they kill.

use super::*;
use crate::judge::Status;

const TASK: &str = "id = \"written\"\ndescription = \"Test it.\"\nkind = \"write_tests\"\n[limits]\ntest_s = 3\n\
                    [write_tests]\ntests = [\"own\"]\n";
/// Kills every mutant of the task.
const HONEST: &str = "//! Tests.\n\nuse two::*;\n\n#[test]\nfn adds() {\n    assert_eq!(add(2, 3), 5);\n    \
                      assert_eq!(add(u32::MAX, 1), u32::MAX);\n}\n\n#[test]\nfn longest_first() {\n    \
                      assert_eq!(words(\"a  bcd ef\"), [\"bcd\", \"ef\", \"a\"]);\n}\n";

struct Written(tempfile::TempDir);

impl Written {
    fn new() -> Self {
        Self::with(TASK)
    }

    fn with(task: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mutant = |old: &str, new: &str| SOLUTION.replace(old, new);
        let wraps = mutant("a.saturating_add(b)", "a.wrapping_add(b)");
        let unsorted =
            mutant("    words.sort_by_key(|word| std::cmp::Reverse(word.len()));\n", "    words.reverse();\n");
        write(
            dir.path(),
            &[
                ("task.toml", task),
                ("start/Cargo.toml", MANIFEST),
                ("start/src/lib.rs", SOLUTION),
                ("solution/Cargo.toml", MANIFEST),
                ("solution/src/lib.rs", SOLUTION),
                ("solution/tests/own.rs", HONEST),
                ("hidden/mutants/wraps/src/lib.rs", &wraps),
                ("hidden/mutants/unsorted/src/lib.rs", &unsorted),
            ],
        );
        Self(dir)
    }

    fn judge(&self, files: &[(&str, &str)]) -> Judgement {
        let dir = self.0.path().join("candidate");
        let _ = fs::remove_dir_all(&dir);
        crate::judge::cache::copy(&self.0.path().join("start"), &dir).unwrap();
        write(&dir, files);
        judge().judge(&Task::load(self.0.path()).unwrap(), &dir, SEED)
    }

    /// Judged, and without reward.
    #[track_caller]
    fn unrewarded(&self, tests: &str) -> Judgement {
        let got = self.judge(&[("tests/own.rs", tests)]);
        assert!(got.status == Status::Judged && !got.passed && !got.tests_passed, "{tests}\n{got:#?}");
        got
    }
}

#[test]
fn r14_a_task_of_written_tests_says_what_it_means() {
    let set = Written::new();
    judge().check_task(&Task::load(set.0.path()).unwrap(), SEED).unwrap();
    let got = set.judge(&[("tests/own.rs", HONEST), ("tests/more.rs", "not Rust (")]);
    let mutants = got.mutants.clone().unwrap();
    assert!(got.passed && got.clippy_clean && got.formatted && got.compiled, "{got:#?}");
    assert_eq!((got.tests_expected, got.tests_ok, got.files_changed, got.diff_lines), (2, 2, 1, 14));
    assert_eq!((mutants.killed, mutants.survived.len(), mutants.neutral.len()), (2, 0, 0));
    assert_eq!(serde_json::from_str::<Judgement>(&serde_json::to_string(&got).unwrap()).unwrap(), got);
    // Lints and layout are those of the tests.
    let ugly = HONEST.replace("    assert_eq!(add(2, 3), 5);", "  let x = add(2, 3);\n    return assert_eq!(x, 5);");
    let got = set.judge(&[(
        "tests/own.rs",
        &ugly.replace("    assert_eq!(add(u32", "}\n#[test]\nfn b() {\n    assert_eq!(add(u32"),
    )]);
    assert!(got.passed && !got.clippy_clean && !got.formatted, "{got:#?}");
    // No tests are no success.
    let got = set.judge(&[]);
    assert!(got.status == Status::Judged && !got.passed && got.reason == "there is no test", "{got:#?}");
}

#[test]
fn r14_tests_that_assert_nothing_or_too_little_kill_nothing() {
    let set = Written::new();
    let got = set.unrewarded("#[test]\nfn a() { let _ = two::add(1, 2); }\n#[test]\nfn b() { two::words(\"a b\"); }\n");
    assert!(got.compiled && got.tests_ok == 2 && got.reason.contains("0 of 2 mutants"), "{got:#?}");
    let got = set.unrewarded("#[test]\nfn a() { assert_eq!(two::add(u32::MAX, 1), u32::MAX); }\n");
    assert_eq!(got.mutants.unwrap().survived, ["unsorted"]);
    let half = Written::with(&format!("{TASK}min_killed = 0.5\n"));
    let got = half.judge(&[("tests/own.rs", "#[test]\nfn a() { assert_eq!(two::add(u32::MAX, 1), u32::MAX); }\n")]);
    assert!(got.passed, "{got:#?}");
}

#[test]
fn r14_tests_that_fail_or_pass_whatever_the_crate_does_gain_nothing() {
    let set = Written::new();
    let got = set.unrewarded("#[test]\nfn a() { assert_eq!(two::add(2, 2), 5); }\n");
    assert!(got.compiled && got.mutants.is_none() && got.tests_failed == ["own::a"], "{got:#?}");
    for body in [
        "std::process::exit(0)",
        "std::process::exit(two::add(u32::MAX, 1).count_zeros() as i32)",
        "std::panic::set_hook(Box::new(|_| std::process::exit(0))); panic!()",
    ] {
        let got = set.unrewarded(&format!("#[test]\nfn a() {{ {body} }}\n"));
        assert!(got.mutants.is_none() && got.tests_ok == 0, "{body}: {got:#?}");
    }
    // Leaving on a mutant says nothing of it, and what does not compile on it neither.
    let leaves = "#[test]\nfn a() { if two::add(u32::MAX, 1) == 0 { std::process::exit(0) } }\n";
    assert_eq!(set.unrewarded(leaves).mutants.unwrap().killed, 0);
    // By chance: passes and fails on the same code.
    let chance = "#[test]\nfn a() { let n = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap(); \
                  let home = std::collections::hash_map::RandomState::new(); \
                  use std::hash::BuildHasher; assert!((home.hash_one(n) % 16) != 0) }\n";
    let many: String = (0..40).map(|i| chance.replace("fn a()", &format!("fn a{i}()"))).collect();
    set.unrewarded(&many);
}

#[test]
fn r14_a_mutant_that_never_ends_is_neutral_and_too_few_that_count_are_a_failure() {
    let set = Written::new();
    let endless = SOLUTION.replace("    0\n", "    loop {\n        std::thread::yield_now();\n    }\n");
    write(set.0.path(), &[("hidden/mutants/endless/src/lib.rs", &endless)]);
    let tests = format!("{HONEST}\n#[test]\nfn zeroes() {{\n    assert_eq!(zero(), 0);\n}}\n");
    let got = set.judge(&[("tests/own.rs", &tests)]);
    let mutants = got.mutants.clone().unwrap();
    assert!(got.passed && mutants.neutral == ["endless"] && mutants.killed == 2, "{got:#?}");
    write(set.0.path(), &[("task.toml", &format!("{TASK}min_counted = 3\n"))]);
    let got = set.judge(&[("tests/own.rs", &tests)]);
    assert!(!got.passed && got.reason.contains("in time on 2 mutants only"), "{got:#?}");
    // A mutant that is no Rust is the task's fault.
    write(set.0.path(), &[("task.toml", TASK), ("hidden/mutants/endless/src/lib.rs", "pub fn zero() -> u32 {}")]);
    let got = set.judge(&[("tests/own.rs", &tests)]);
    assert!(got.status == Status::Error && got.reason.contains("hidden/mutants/endless does not compile"), "{got:#?}");
}

#[test]
fn r14_what_is_not_a_test_of_behaviour_is_refused() {
    let set = Written::new();
    let test = |body: &str| format!("#[test]\nfn a() {{ {body} }}\n");
    for (path, text, why) in [
        ("src/lib.rs", START.to_owned(), "only tests are asked for"),
        ("src/more.rs", String::new(), "only tests are asked for"),
        ("tests/own.rs", test("assert!(include_str!(\"../src/lib.rs\").contains(\"saturating\"))"), "include_str"),
        ("tests/own.rs", test("unsafe { std::hint::unreachable_unchecked() }"), "unsafe"),
        ("tests/own.rs", format!("#[path = \"../src/lib.rs\"]\nmod two;\n{}", test("")), "path"),
        ("tests/own.rs", format!("mod inner {{ {} }}", test("")), "1 tests, 0 of them"),
        ("tests/own.rs", format!("# [ignore]\n{}", test("")), "ignore"),
        ("build.rs", "fn main() {}".to_owned(), "steers the build"),
    ] {
        let got = set.judge(&[(path, &text)]);
        assert!(got.status == Status::Refused && !got.passed && got.reason.contains(why), "{text}: {got:#?}");
    }
    for (task, want) in [
        (TASK.replace("[write_tests]\ntests = [\"own\"]\n", ""), "needs [write_tests]"),
        (TASK.replace("\"own\"", ""), "at least one"),
        (TASK.replace("\"own\"", "\"../own\""), "letters"),
        (format!("{TASK}min_killed = 0.0\n"), "min_killed"),
        (format!("{TASK}min_counted = 3\n"), "must count"),
        (TASK.replace("[limits]", "fail_to_pass = [\"own::a\"]\n[limits]"), "own::a"),
        (TASK.replace("write_tests\"", "tests\""), "needs kind"),
    ] {
        let got = Task::load(Written::with(&task).0.path()).unwrap_err().to_string();
        assert!(got.contains(want), "{task}: {got}");
    }
    let set = Written::new();
    write(set.0.path(), &[("hidden/mutants/same/src/lib.rs", SOLUTION)]);
    let got = Task::load(set.0.path()).unwrap_err().to_string();
    assert!(got.contains("hidden/mutants/same/src/lib.rs must replace"), "{got}");
}

#[test]
fn r14_lines_of_panics_are_no_behaviour() {
    let set = Written::new();
    // A sum that panics: a mutant on other lines would be told apart by the line.
    let source = SOLUTION.replace("a.saturating_add(b)", "a + b");
    let moved = format!("//! Moved.\n{source}");
    let wrong = source.replace("a + b", "a - b");
    for (name, text) in [("start", &source), ("solution", &source)] {
        write(set.0.path(), &[(&format!("{name}/src/lib.rs"), text)]);
    }
    write(set.0.path(), &[("hidden/mutants/wraps/src/lib.rs", &moved), ("hidden/mutants/unsorted/src/lib.rs", &wrong)]);
    let line = "#[test]\nfn a() {\n    static LINE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);\n    \
                std::panic::set_hook(Box::new(|info| LINE.store(info.location().unwrap().line(), std::sync::atomic::Ordering::SeqCst)));\n    \
                assert!(std::panic::catch_unwind(|| two::add(u32::MAX, 1)).is_err());\n    \
                assert_eq!(LINE.load(std::sync::atomic::Ordering::SeqCst), 5);\n}\n";
    let got = set.unrewarded(line);
    assert!(got.compiled && got.mutants.is_none() && got.reason.contains("more than what the crate does"), "{got:#?}");
    // The same without the line is a test, and the moved mutant survives it.
    let honest = line.replace("    assert_eq!(LINE.load(std::sync::atomic::Ordering::SeqCst), 5);\n", "");
    let got = set.unrewarded(&honest);
    assert_eq!(got.mutants.unwrap().survived, ["wraps"], "{}", got.reason);
}
