//! The program `eval-rust judge` with its real sandbox: an honest candidate passes, hostile ones do not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;

use eval_rust::judge::{Judgement, Status};

const MANIFEST: &str = "[package]\nname = \"sum\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
const TASK: &str = "id = \"sum\"\ndescription = \"Add.\"\nkind = \"functions\"\nfail_to_pass = [\"hidden::adds\"]\n\
                    [limits]\ntest_s = 10\nmemory_mib = 256\n\
                    [[functions]]\npath = \"add\"\nargs = [\"u32\", \"u32\"]\nreturns = \"u32\"\n";
const HIDDEN: &str = "use sum::add;\n#[test]\nfn adds() { let r: u32 = add(2, 3); assert_eq!(r, 5); }\n";

fn source(body: &str) -> String {
    format!("//! A sum.\n\n/// The sum, at most `u32::MAX`.\npub fn add(a: u32, b: u32) -> u32 {{\n    {body}\n}}\n")
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, text)
}

/// Judges a list; `None`, with the reason on standard error, where this machine lacks a layer of the sandbox: then nothing is
/// rewarded either.
fn judged(dir: &Path, list: &str, more: &[&str]) -> Option<Vec<Judgement>> {
    write(&dir.join("list.jsonl"), list).unwrap();
    let out = dir.join("out.jsonl");
    let mut program = Command::new(env!("CARGO_BIN_EXE_eval-rust"));
    program.args(["judge", "--jobs", "2", "--tasks"]).arg(dir.join("list.jsonl")).args(more);
    let status = program.arg("--out").arg(&out).arg("--work").arg(dir.join("work")).status().unwrap();
    let text = std::fs::read_to_string(&out).unwrap();
    let got: Vec<Judgement> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    if got.iter().all(|one| one.status == Status::Error && one.reason.contains("is missing")) {
        let said = format!("NOT CHECKED: {}\n", got[0].reason);
        std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
        assert!(status.code() == Some(3) && got.iter().all(|one| !one.passed));
        return None;
    }
    assert_eq!(status.code(), Some(0), "{text}");
    assert_eq!(std::fs::read_dir(dir.join("work/runs")).unwrap().count(), 0, "nothing is left behind");
    Some(got)
}

/// Vendored sources are built once, inside, and used by a candidate.
#[test]
fn dependencies_are_built_in_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, task) = (dir.path().join("vendor/tiny"), dir.path().join("task"));
    let sum = "ab".repeat(32);
    for (path, text) in [
        (tiny.join("Cargo.toml"), "[package]\nname = \"tiny\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
        (tiny.join("src/lib.rs"), "pub fn join(a: u32, b: u32) -> u32 { a.saturating_add(b) }\n"),
        (tiny.join(".cargo-checksum.json"), &format!("{{\"files\":{{}},\"package\":\"{sum}\"}}")),
        (task.join("task.toml"), TASK),
        (task.join("hidden/tests/hidden.rs"), HIDDEN),
        (task.join("start/src/lib.rs"), &source("a - b")),
        (task.join("solution/src/lib.rs"), &source("tiny::join(a, b)")),
    ] {
        write(&path, text).unwrap();
    }
    let manifest = format!("{MANIFEST}[dependencies]\ntiny = \"1\"\n");
    for folder in ["start", "solution"] {
        write(&task.join(folder).join("Cargo.toml"), &manifest).unwrap();
    }
    let line = |folder| format!("{{\"task\": \"task\", \"candidate\": \"task/{folder}\"}}\n");
    let list = line("solution") + &line("start") + &line("solution");
    let vendor = dir.path().join("vendor");
    let Some(got) = judged(dir.path(), &list, &["--vendor", vendor.to_str().unwrap()]) else { return };
    let passed: Vec<(Status, bool)> = got.iter().map(|one| (one.status, one.passed)).collect();
    assert_eq!(passed, [(Status::Judged, true), (Status::Judged, false), (Status::Judged, true)], "{got:#?}");
}

#[test]
fn honest_candidates_pass_and_hostile_ones_do_not() {
    let bodies = [
        "a.saturating_add(b)",
        "a - b",
        "std::process::exit((a + b - a - b) as i32)",
        "println!(\"\\n{} adds passed\", std::env::args().count()); std::process::exit((a + b - a - b) as i32)",
        "let all = vec![1_u8; 1 << 30]; a - b + all.iter().map(|x| u32::from(*x)).sum::<u32>()",
        "let _ = std::process::Command::new(\"/bin/sh\").args([\"-c\", \"kill -9 -1\"]).status(); a - b",
        "loop { std::thread::sleep(std::time::Duration::from_secs(u64::from(a) + u64::from(b) + 1)) }",
        // Nothing of the judge's or the host's can be seen: whoever sees it answers wrongly.
        "if [\"/judge/ws\", \"/judge/target\", \"/judge/toolchain\", \"/etc/shadow\", \"/tmp/x\"].iter().any(|p| std::path::Path::new(p).exists()) { 0 } else { a.saturating_add(b) }",
    ];
    let passes = [true, false, false, false, false, false, false, true];
    let dir = tempfile::tempdir().unwrap();
    let task = dir.path().join("task");
    write(&task.join("task.toml"), TASK).unwrap();
    write(&task.join("hidden/tests/hidden.rs"), HIDDEN).unwrap();
    let mut list = String::new();
    let folders = ["task/start".to_owned(), "task/solution".to_owned()];
    let folders = folders.into_iter().chain((0..bodies.len()).map(|i| format!("candidate-{i}")));
    for (folder, body) in folders.zip(["a - b", bodies[0]].into_iter().chain(bodies)) {
        write(&dir.path().join(&folder).join("Cargo.toml"), MANIFEST).unwrap();
        write(&dir.path().join(&folder).join("src/lib.rs"), &source(body)).unwrap();
        if folder.starts_with("candidate") {
            list += &format!("{{\"task\": \"task\", \"candidate\": \"{folder}\"}}\n");
        }
    }
    let Some(got) = judged(dir.path(), &list, &[]) else { return };
    assert_eq!(got.len(), bodies.len());
    for (i, (one, passes)) in got.iter().zip(passes).enumerate() {
        assert_eq!((one.status, one.passed), (Status::Judged, passes), "{}: {one:#?}", bodies[i]);
    }
}
