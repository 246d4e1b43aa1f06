//! Solutions are accepted, and the judge's own faults are no rewards.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::judge::{JudgeError, Status, read_list, wire};
use crate::sandbox::{Command, Outcome, Run, SandboxError};

#[test]
fn a_task_of_tests_says_what_it_means() {
    judge().check_task(&Set::tests().task(), SEED).unwrap();
}

#[test]
fn a_task_of_functions_says_what_it_means() {
    judge().check_task(&Set::functions().task(), SEED).unwrap();
}

#[test]
fn an_honest_candidate_passes_with_its_own_tests_notes_and_leftovers() {
    let set = Set::tests();
    let files = [
        ("tests/mine.rs", "#[test] fn mine() { panic!() }"),
        ("NOTES.md", "x"),
        ("Cargo.lock", "x"),
        ("target/debug/x", "x"),
        ("src/lib.rs", &format!("{SOLUTION}\n#[cfg(test)]\nmod tests {{\n    #[test]\n    fn unit() {{}}\n}}\n")),
    ];
    let got = set.judge("solution", &files);
    assert!(got.passed && got.clippy_clean && got.formatted, "{got:#?}");
    assert_eq!((got.status, got.tests_expected, got.tests_ok, got.files_changed), (Status::Judged, 4, 4, 1));
    assert_eq!((got.diff_lines, got.unsafe_added, got.reason.as_str()), (12, 0, ""));
    assert_eq!((got.task_hash, got.error_codes.len(), got.lints.len()), (set.task().hash, 0, 0));
}

#[test]
fn partial_success_is_told_apart() {
    let set = Set::tests();
    let half = SOLUTION.replace("a.saturating_add(b)", "let r = a + b;\n    return r;");
    let got = set.judge("start", &[("src/lib.rs", &half)]);
    assert!(got.compiled && !got.passed && !got.clippy_clean && got.formatted, "{got:#?}");
    assert_eq!((got.tests_ok, got.tests_failed.as_slice()), (3, ["hidden::saturates".to_owned()].as_slice()));
    assert!(got.diagnostics.contains("let_and_return") || got.diagnostics.contains("needless_return"), "{got:#?}");
    let got = set.judge("start", &[("src/lib.rs", &SOLUTION.replace("words\n}", "wordz\n}"))]);
    assert!(!got.compiled && got.tests_failed.len() == 4 && got.diagnostics.contains("wordz"), "{got:#?}");
    assert_eq!((got.error_codes.as_slice(), got.formatted), (["E0425".to_owned()].as_slice(), false));
    // What only the build finds does not compile either; what only clippy calls an error does.
    let late =
        SOLUTION.replace("a.saturating_add(b)", "const { assert!(size_of::<u8>() > 1) }\n    a.saturating_add(b)");
    let got = set.judge("start", &[("src/lib.rs", &late)]);
    assert!(!got.compiled && !got.passed && got.error_codes == ["E0080"], "{got:#?}");
    let strict = SOLUTION.replace("a.saturating_add(b)", "let _ = a == a;\n    a.saturating_add(b)");
    let got = set.judge("start", &[("src/lib.rs", &strict)]);
    assert!(got.compiled && got.passed && !got.clippy_clean && got.lints == ["clippy::eq_op"], "{got:#?}");
    let got = set.judge("start", &[("src/lib.rs", &SOLUTION.replace("    a.", "  a."))]);
    assert!(got.passed && !got.formatted, "{got:#?}");
}

#[test]
fn unsafe_is_counted_where_functions_alone_decide() {
    let set = Set::new("functions", &format!("allow_unsafe = true\n{FUNCTIONS}"));
    let with = SOLUTION.replace("a.saturating_add(b)", "unsafe { a.checked_add(b).unwrap_or(u32::MAX) }");
    let got = set.judge("solution", &[("src/lib.rs", &with)]);
    assert!(got.passed && got.unsafe_added == 1 && !got.clippy_clean, "{got:#?}");
}

#[test]
fn lists_are_judged_in_their_order_and_errors_are_neither_verdict_nor_reward() {
    let set = Set::functions();
    let dir = set.0.path();
    let list = dir.join("list.jsonl");
    let line = |task: &str, candidate: &str| format!("{{\"task\": \"{task}\", \"candidate\": \"{candidate}\"}}\n");
    fs::write(&list, line(".", "solution") + &line(".", "start") + &line("gone", "start") + &line(".", "gone"))
        .unwrap();
    let got = judge().judge_all(&read_list(&list).unwrap(), 3, SEED);
    let short: Vec<(Status, bool)> = got.iter().map(|one| (one.status, one.passed)).collect();
    let (judged, error) = (Status::Judged, Status::Error);
    assert_eq!(short, [(judged, true), (judged, false), (error, false), (error, false)], "{got:#?}");
    assert!(got[2].reason.contains("gone"));
    assert_eq!(got.iter().map(|one| one.seed).collect::<Vec<_>>(), [7, 8, 9, 10]);
    fs::write(&list, "{\"task\": \"a\"}\n").unwrap();
    assert!(matches!(read_list(&list), Err(JudgeError::List { line: 1, .. })));
}

/// R10: whoever brings the sandbox down gets nothing for it.
#[test]
fn a_sandbox_that_fails_is_tried_three_times_and_then_an_error() {
    struct Broken(std::sync::atomic::AtomicU32);
    impl Run for Broken {
        fn run(&self, _: &Command) -> Result<Outcome, SandboxError> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Err(SandboxError::Host { what: "start", source: std::io::Error::other("no namespace") })
        }
    }
    let set = Set::tests();
    let broken = Broken(0.into());
    let work = tempfile::tempdir().unwrap();
    let options = Options { toolchain: toolchain(), vendor: None, work: work.path().into() };
    let judge = Judge::new(&broken, options).unwrap();
    let got = judge.judge(&set.task(), &set.task().solution(), SEED);
    assert!(got.status == Status::Error && !got.passed, "{got:#?}");
    assert!(got.reason.contains("no namespace"));
    assert_eq!(broken.0.into_inner(), 3);
    assert_eq!(fs::read_dir(work.path().join("runs")).unwrap().count(), 0, "nothing is left behind");
}

/// A dependency is built once, and what one candidate's build leaves reaches no other.
#[test]
fn dependencies_come_from_a_cache_that_is_checked() {
    let set = Set::functions();
    let work = tempfile::tempdir().unwrap();
    let vendor = work.path().join("vendor");
    let sum = "ab".repeat(32);
    write(
        &vendor.join("tiny"),
        &[
            ("Cargo.toml", "[package]\nname = \"tiny\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
            ("src/lib.rs", "pub fn join(a: u32, b: u32) -> u32 { a.saturating_add(b) }\n"),
            (".cargo-checksum.json", &format!("{{\"files\":{{}},\"package\":\"{sum}\"}}")),
        ],
    );
    let manifest = format!("{MANIFEST}[dependencies]\ntiny = \"1\"\n");
    let source = SOLUTION.replace("a.saturating_add(b)", "tiny::join(a, b)");
    for (folder, source) in [("start", START), ("solution", source.as_str())] {
        write(&set.0.path().join(folder), &[("Cargo.toml", &manifest), ("src/lib.rs", source)]);
    }
    let options = Options { toolchain: toolchain(), vendor: Some(vendor), work: work.path().join("work") };
    let judge = Judge::new(&Direct, options).unwrap();
    let task = set.task();
    let got = judge.judge(&task, &task.solution(), SEED);
    assert!(got.passed, "{got:#?}");
    let entries = || {
        let found = fs::read_dir(work.path().join("work/cache")).unwrap().map(|entry| entry.unwrap().path());
        found.collect::<std::collections::BTreeSet<_>>()
    };
    let before = entries();
    assert_eq!(before.len(), 2);
    assert!(judge.judge(&task, &task.solution(), SEED).passed);
    assert_eq!(entries(), before);
    let cached = before.iter().find(|path| path.to_str().unwrap().contains("dependencies")).unwrap();
    let lib = fs::read_dir(cached.join("tree/target/debug/deps")).unwrap().map(|entry| entry.unwrap().path());
    let lib = lib.into_iter().find(|path| path.to_str().unwrap().contains("libtiny")).unwrap();
    fs::set_permissions(&lib, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&lib, "poison").unwrap();
    let got = judge.judge(&task, &task.solution(), SEED);
    assert!(got.status == Status::Error && got.reason.contains("has changed"), "{got:#?}");
}

#[test]
fn tasks_that_mean_nothing_are_refused() {
    for (kind, rest, want) in [
        ("tests", "fail_to_pass = [\"hidden::adds\"]\n", "not expected"),
        ("tests", &TESTS.replace("hidden::adds", "hidden::gone"), "hidden::"),
        ("tests", &TESTS.replace("visible::nothing", "hidden::adds"), "cannot both"),
        ("tests", &format!("allow_unsafe = true\n{TESTS}"), "can forge"),
        ("tests", &format!("more = 1\n{TESTS}"), "unknown field"),
        ("functions", "", "needs [[functions]]"),
        ("functions", &FUNCTIONS.replace("u32", "f32"), "f32"),
        ("functions", &FUNCTIONS.replace("Vec<String>", "&str"), "reference"),
        ("functions", &FUNCTIONS.replace("\"add\"", "\"add()\""), "no path"),
    ] {
        let set = Set::new(kind, rest);
        let got = Task::load(set.0.path()).unwrap_err().to_string();
        assert!(got.contains(want), "{rest}: {got}");
    }
    for (name, text, want) in [
        ("start/build.rs", "fn main() {}", "build.rs"),
        ("start/Cargo.toml", &format!("{MANIFEST}[profile.dev]\n"), "profile"),
        ("start/Cargo.toml", &format!("{MANIFEST}links = \"x\"\n"), "package.links"),
        ("start/Cargo.toml", &format!("{MANIFEST}[lib]\nproc-macro = true\n"), "lib.proc-macro"),
        ("start/Cargo.toml", &format!("{MANIFEST}[dependencies]\nx = {{ path = \"/\" }}\n"), "`x`"),
    ] {
        let set = Set::tests();
        write(set.0.path(), &[(name, text)]);
        let got = Task::load(set.0.path()).unwrap_err().to_string();
        assert!(got.contains(want), "{name}: {got}");
    }
}

/// R16: a task that contradicts itself never gets as far as candidates.
#[test]
fn r16_a_contradictory_task_is_found_before_anybody_cheats() {
    let set = Set::tests();
    write(
        set.0.path(),
        &[("hidden/tests/hidden.rs", &HIDDEN.replace("assert_eq!(r, 5)", "assert_eq!(r, 5); assert_eq!(r, 6)"))],
    );
    let got = judge().check_task(&set.task(), SEED).unwrap_err().to_string();
    assert!(got.contains("the solution does not pass"), "{got}");
    let set = Set::tests();
    write(set.0.path(), &[("task.toml", &fs::read_to_string(set.0.path().join("task.toml")).unwrap())]);
    write(set.0.path(), &[("start/src/lib.rs", &START.replace("a - b", "a.saturating_add(b)"))]);
    let got = judge().check_task(&set.task(), SEED).unwrap_err().to_string();
    assert!(got.contains("`hidden::adds` passes already"), "{got}");
}

#[test]
fn values_survive_the_wire() {
    use wire::{Put, Take};
    fn back<T: Put + Take + PartialEq + std::fmt::Debug>(value: &T) {
        let mut words = String::new();
        value.put(&mut words);
        let mut split = words.split_whitespace();
        assert_eq!(T::take(&mut split), *value, "{words}");
        assert_eq!(split.next(), None);
    }
    back(&(-5_i64, u64::MAX, true, 'é'));
    back(&vec![Some("a \n🦀".to_owned()), None, Some(String::new())]);
    back(&(vec![vec![1_u8], vec![]], ()));
    let mut words = String::new();
    (Ok::<u8, ()>(3), Err::<u8, &str>("x")).put(&mut words);
    assert_eq!(words, " 1 3 0");
}
