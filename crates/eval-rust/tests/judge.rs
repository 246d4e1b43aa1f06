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
        "if [\"/judge/ws\", \"/judge/target\", \"/judge/toolchain\", \"/etc/shadow\", \"/tmp/x\"].iter().any(|p| std::path::Path::new(p).exists()) || std::fs::read(\"/proc/self/exe\").is_ok() { 0 } else { a.saturating_add(b) }",
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

/// R10: whatever a candidate does to its process, its pipes, the processes beside it and the first process of its run, it has
/// failed, and never is there an error in place of that.
#[test]
fn r10_whoever_attacks_what_runs_it_has_failed() {
    let shell = |script: &str| {
        format!("let _ = std::process::Command::new(\"/bin/sh\").args([\"-c\", {script:?}]).status(); a - b")
    };
    let limits = "for r in as core cpu data fsize memlock nofile nproc rss sigpending stack; do prlimit --pid 1 --$r=0:0; done; \
                  i=0; while [ $i -lt 2000 ]; do (true &) ; i=$((i+1)); done; true";
    let bodies = [
        // Its own process, everyone, the first process.
        shell("kill -9 $PPID; kill -9 1"),
        shell("kill -9 -1"),
        shell("kill -STOP 1; kill -STOP $PPID"),
        shell(limits),
        // Whatever can be written, bytes and names.
        "for d in [\"/\", \"/tmp\", \"/dev\", \"/dev/shm\", \"/judge/bin\", \"/proc\"] { for i in 0..5000 { \
         if std::fs::write(format!(\"{d}/x{i}\"), vec![0; 1 << 16]).is_err() { break; } } } a - b"
            .to_owned(),
        // Processes and threads up to the limit, which stay behind.
        "while std::process::Command::new(\"/bin/sleep\").arg(\"100\").spawn().is_ok() {} std::process::exit((a + b - a - b) as i32)"
            .to_owned(),
        "for _ in 0..1000 { let _ = std::thread::Builder::new().spawn(|| loop { std::thread::park() }); } a - b".to_owned(),
        shell("(setsid sleep 100 &) ; (trap '' HUP TERM; sleep 100 &) ; kill -9 $PPID"),
        // Memory, its own and of another process, so that the kernel has to choose.
        shell("tail /dev/zero"),
        "let mut all = Vec::new(); loop { all.push(vec![a as u8 | 1; 1 << 20]); if all.len() > 100_000 { return b; } }".to_owned(),
        // Half a record, garbage, and nothing at all.
        "use std::io::Write; let mut out = std::io::stdout().lock(); let _ = out.write_all(b\"\\n0123456789abcdef\"); \
         let _ = out.flush(); std::process::abort(); #[allow(unreachable_code)] { drop(out); a - b }"
            .to_owned(),
        "use std::io::Write; let mut out = std::io::stdout().lock(); \
         let _ = out.write_all(&[b'{', 0, 0xff, 0xfe, b'\\r', 0x1b].repeat(50_000)); a - b"
            .to_owned(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let task = TASK.replace("test_s = 10", "test_s = 3");
    let mut list = write_set(dir.path(), "task", &task, &bodies);
    // The same where nothing forbids `unsafe`: descriptors are closed and exchanged.
    let free = task.replace("fail_to_pass = [\"hidden::adds\"]\n", "allow_unsafe = true\n");
    let closing = [
        "for fd in 0..64 { drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }); } a - b",
        "let null = std::fs::File::open(\"/dev/null\").unwrap(); \
         drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(1) }); \
         std::mem::forget(null.try_clone()); std::mem::forget(null); a.saturating_add(b)",
        "unsafe { std::ptr::null_mut::<u32>().write_volatile(a) }; a - b",
    ]
    .map(str::to_owned);
    list += &write_set(dir.path(), "free", &free, &closing);
    let Some(got) = judged(dir.path(), &list, &[]) else { return };
    assert_eq!(got.len(), bodies.len() + closing.len());
    for (one, body) in got.iter().zip(bodies.iter().chain(&closing)) {
        assert!(one.status == Status::Judged && !one.passed && !one.tests_passed && one.compiled, "{body}\n{one:#?}");
        assert!(!body.contains("prlimit") || one.retries == 0, "the first process withstands: {one:#?}");
    }
}

/// Writes a task, its hidden test where it has one, and a candidate for each body; gives the lines of the list.
fn write_set(dir: &Path, name: &str, task: &str, bodies: &[String]) -> String {
    write(&dir.join(name).join("task.toml"), task).unwrap();
    if task.contains("hidden::") {
        write(&dir.join(name).join("hidden/tests/hidden.rs"), HIDDEN).unwrap();
    }
    let ends =
        [("start", "a - b"), ("solution", "a.saturating_add(b)")].map(|(folder, body)| (folder.to_owned(), body));
    let candidates = bodies.iter().enumerate().map(|(i, body)| (format!("candidate-{i}"), body.as_str()));
    let mut list = String::new();
    for (folder, body) in ends.into_iter().chain(candidates) {
        write(&dir.join(name).join(&folder).join("Cargo.toml"), MANIFEST).unwrap();
        write(&dir.join(name).join(&folder).join("src/lib.rs"), &source(body)).unwrap();
        if folder.starts_with("candidate") {
            list += &format!("{{\"task\": \"{name}\", \"candidate\": \"{name}/{folder}\"}}\n");
        }
    }
    list
}

/// R13, R14: where tests run, nothing but behaviour tells a mutant from the reference.
#[test]
fn r14_written_tests_see_behaviour_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let task = "id = \"sum\"\ndescription = \"Test it.\"\nkind = \"write_tests\"\n[limits]\ntest_s = 10\nmemory_mib = 256\n\
                [write_tests]\ntests = [\"own\"]\n";
    let honest = "//! T.\n\n#[test]\nfn saturates() {\n    assert_eq!(sum::add(u32::MAX, 1), u32::MAX);\n}\n";
    let reads = |path: &str| {
        format!(
            "//! T.\n\n#[test]\nfn a() {{\n    let text = std::fs::read({path});\n    assert!(text.is_err() || text.unwrap().windows(10).any(|w| w == b\"saturating\"));\n}}\n"
        )
    };
    let tests = [
        honest.to_owned(),
        "//! T.\n\n#[test]\nfn a() {\n    sum::add(1, 2);\n}\n".to_owned(),
        reads("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/../candidate/src/lib.rs\")"),
        reads("\"/judge/ws/candidate/src/lib.rs\""),
        // The program itself may be run and not be read, and its size is that of every other.
        "//! T.\n\n#[test]\nfn a() {\n    for path in [\"/proc/self/exe\", \"/judge/bin/test_own\", \"/proc/self/mem\"] {\n        \
         assert!(std::fs::File::open(path).is_err());\n    }\n    \
         assert_eq!(std::fs::metadata(\"/proc/self/exe\").unwrap().len(), 16 << 20);\n}\n"
            .to_owned(),
    ];
    let file = |name: &str, text: &str| write(&dir.path().join(name), text).unwrap();
    file("task.toml", task);
    file("hidden/mutants/wraps/src/lib.rs", &source("a.wrapping_add(b)"));
    let folders = ["start".to_owned(), "solution".to_owned()].into_iter();
    for (i, folder) in folders.chain((0..tests.len()).map(|i| format!("candidate-{i}"))).enumerate() {
        file(&format!("{folder}/Cargo.toml"), MANIFEST);
        file(&format!("{folder}/src/lib.rs"), &source("a.saturating_add(b)"));
        if i > 0 {
            file(&format!("{folder}/tests/own.rs"), &tests[i.saturating_sub(2)]);
        }
    }
    let line = |i: usize| format!("{{\"task\": \".\", \"candidate\": \"candidate-{i}\"}}\n");
    let list: String = (0..tests.len()).map(line).collect();
    let Some(got) = judged(dir.path(), &list, &[]) else { return };
    for (i, one) in got.iter().enumerate() {
        assert_eq!((one.status, one.passed, one.tests_ok), (Status::Judged, i == 0, 1), "{}\n{one:#?}", tests[i]);
        let mutants = one.mutants.clone().unwrap();
        assert_eq!((mutants.killed, mutants.survived.len()), if i == 0 { (1, 0) } else { (0, 1) }, "{one:#?}");
    }
}
