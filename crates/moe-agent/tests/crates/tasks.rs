//! Tasks: made from pairs, taken by the judge, and not those that training has seen.

use std::collections::BTreeSet;
use std::path::Path;

use eval_rust::judge::{Judge, Options, Status, Task, find_toolchain};
use eval_rust::sandbox::Sandbox;
use moe_agent::tasks::{Overlap, TaskLine, TaskReport};

use super::{LIB, Place, TESTS, read, succeed};

/// Another crate, with one function that is also in [`LIB`].
const OTHER: &str = "//! Lists.\n\n/// The sum of the numbers of a list that are even.\npub fn even_sum(list: &[u8]) -> u64 {\n    \
    let mut total = 0;\n    for number in list {\n        if number % 2 == 0 {\n            total += u64::from(*number);\n        \
    }\n    }\n    total\n}\n\n/// The larger of two numbers.\npub fn larger(a: u32, b: u32) -> u32 {\n    if a > b { a } else { b }\n}\n";
const OTHER_TESTS: &str = "//! Tests.\n\nuse NAME::{even_sum, larger};\n\n#[test]\nfn sums() {\n    \
    assert_eq!(even_sum(&[1, 2, 4]), 6);\n}\n\n#[test]\nfn takes_the_larger() {\n    assert_eq!(larger(1, 2), 2);\n    \
    assert_eq!(larger(4, 3), 4);\n}\n";

fn lines(place: &Place, out: &str) -> Vec<TaskLine> {
    let text = read(&place.path(out).join("tasks.jsonl"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn s23_tasks_have_a_producer_and_the_judge_takes_what_it_makes() {
    let place = Place::new(&[("train", "numbers", LIB, TESTS), ("heldout", "lists", OTHER, OTHER_TESTS)]);
    let even = r#"[{"name": "src/lib.rs:7:23: replace == with !=", "file": "src/lib.rs", "function": null,
        "genre": "BinaryOperator", "replacement": "!=",
        "span": {"start": {"line": 7, "column": 23}, "end": {"line": 7, "column": 25}}},
        {"name": "src/lib.rs:16:10: replace > with <", "file": "src/lib.rs", "function": null,
        "genre": "BinaryOperator", "replacement": "<",
        "span": {"start": {"line": 16, "column": 10}, "end": {"line": 16, "column": 11}}}]"#;
    place.put("listed/lists.json", even);
    if succeed(place.mutate("pairs", &["--max-edits", "0"])).is_none() {
        return;
    }
    succeed(place.tasks("pairs", "tasks", &["--impossible", "1"])).unwrap();
    let report: TaskReport = serde_json::from_str(&read(&place.path("tasks/report.json"))).unwrap();
    assert_eq!(report.tasks.get("heldout"), Some(&1), "{report:?}");
    assert!(!report.tasks.contains_key("train") && report.impossible == 1, "{report:?}");
    // The other pair is of a function that training has.
    assert_eq!(report.overlap.get(&Overlap::Exact), Some(&1), "{report:?}");
    let lines = lines(&place, "tasks");
    let ids: BTreeSet<&str> = lines.iter().map(|line| line.id.as_str()).collect();
    assert_eq!((lines.len(), ids.len()), (2, 2));
    let sandbox = Sandbox::new(Path::new(env!("CARGO_BIN_EXE_moe-agent")), &[]).unwrap();
    let toolchain = find_toolchain(&|name| std::env::var_os(name)).unwrap();
    let judge = Judge::new(&sandbox, Options { toolchain, vendor: None, work: place.path("judge") }).unwrap();
    for line in &lines {
        let task = Task::load(&place.path("tasks").join(&line.task)).unwrap();
        assert_eq!(task.file.id, line.id);
        assert!(task.file.description.contains("lists") && !task.file.description.contains("!="), "{:?}", task.file);
        let solution = judge.judge(&task, &task.solution(), 1);
        let start = judge.judge(&task, &task.dir.join("start"), 1);
        assert_eq!((solution.status, start.status), (Status::Judged, Status::Judged));
        assert_eq!((solution.passed, start.passed), (!line.impossible, false), "{line:?} {solution:?}");
        if line.impossible {
            assert_eq!(solution.tests_failed.len(), 1, "{solution:?}");
        } else {
            judge.check_task(&task, 2).unwrap();
            assert_eq!((line.fail_to_pass, line.pass_to_pass), (1, 1));
        }
        // Nothing that a candidate sees says which is which, or has the tests.
        let start = task.dir.join("start");
        assert!(!start.join("tests").exists() && !read(&start.join("src/lib.rs")).contains("#[test]"));
        assert!(!task.file.description.contains("impossible"));
    }
}

#[test]
fn training_crates_and_visible_tests_are_asked_for() {
    let place = Place::new(&[("train", "numbers", LIB, TESTS)]);
    if succeed(place.mutate("pairs", &["--max-mutants", "2", "--max-edits", "2"])).is_none() {
        return;
    }
    let output = super::run(place.tasks("pairs", "none", &[])).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no task came out"), "{output:?}");
    succeed(place.tasks("pairs", "tasks", &["--train", "--visible-tests"])).unwrap();
    for line in lines(&place, "tasks") {
        assert!(line.task.starts_with("train/"), "{line:?}");
        assert!(place.path("tasks").join(&line.task).join("start/tests/numbers.rs").is_file());
    }
    let again = super::run(place.tasks("pairs", "tasks", &["--train"])).unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"), "{again:?}");
}
