//! R10: whoever brings down what runs it has failed; whatever goes wrong with everybody is an error.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::judge::Status;
use crate::judge::commands::INSIDE;
use crate::sandbox::{Command, End, Outcome, Run, SandboxError};

/// What a candidate prints, or has in its source, to bring this runner down.
const BOOM: &str = "BOOM";

/// A runner that a candidate can bring down: by what its process prints, or at the build by its source.
struct Fragile {
    fault: fn() -> SandboxError,
    /// Faults that are left; afterwards everything goes well.
    faults: AtomicU32,
    /// Harmless programs go wrong, too.
    all: bool,
}

impl Fragile {
    fn new(fault: fn() -> SandboxError, faults: u32) -> Self {
        Self { fault, faults: faults.into(), all: false }
    }

    fn goes_wrong(&self) -> bool {
        self.faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Run for Fragile {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        let workspace = command.mounts.iter().find(|mount| mount.inside == Path::new("/judge/ws"));
        let lib = workspace.map(|mount| fs::read_to_string(mount.host.join("candidate/src/lib.rs")).unwrap());
        let builds = command.args.first().is_some_and(|arg| arg == "build");
        if lib.is_some_and(|lib| lib.contains("BOOM at the build")) && builds && self.goes_wrong() {
            let mut outcome = Direct.run(command)?;
            (outcome.end, outcome.stdout, outcome.stderr) = (End::Exit(101), Vec::new(), b"error: disk".to_vec());
            return Ok(outcome);
        }
        let harmless = !command.program.starts_with(INSIDE);
        if harmless && self.all {
            return Err((self.fault)());
        }
        let outcome = Direct.run(command)?;
        let boom = String::from_utf8_lossy(&outcome.stdout).lines().any(|line| line == BOOM);
        if boom && self.goes_wrong() { Err((self.fault)()) } else { Ok(outcome) }
    }
}

fn lost() -> SandboxError {
    SandboxError::Lost("its first process ended without a report".into())
}

fn judged(runner: &Fragile, set: &Set, source: &str) -> Judgement {
    let exe = std::env::current_exe().unwrap();
    let work = exe.parent().unwrap().join("judge-tests");
    fs::create_dir_all(&work).unwrap();
    let options = Options { toolchain: toolchain(), vendor: None, work: work.canonicalize().unwrap() };
    let judge = Judge::new(runner, options).unwrap();
    judge.judge(&set.task(), &set.candidate("start", &[("src/lib.rs", source)]), SEED)
}

#[test]
fn r10_a_candidate_that_brings_its_runner_down_has_failed() {
    // Even the right answers do not help who brings it down.
    let source = SOLUTION.replace("a.saturating_add(b)", "println!(\"BOOM\");\n    a.saturating_add(b)");
    let faults: [fn() -> SandboxError; 4] = [
        lost,
        || SandboxError::Left("a process that holds an output pipe".into()),
        || SandboxError::Host { what: "listening", source: std::io::Error::other("half a record") },
        || SandboxError::Start { program: "driver".into(), detail: "out of memory".into() },
    ];
    for fault in faults {
        for set in [Set::tests(), Set::functions()] {
            let got = judged(&Fragile::new(fault, u32::MAX), &set, &source);
            assert!(got.status == Status::Judged && !got.passed && !got.tests_passed && got.unsound, "{got:#?}");
            assert!(got.reason.contains("brings it about") && got.compiled, "{got:#?}");
            assert_eq!((got.retries, got.tests_ok), (2, 0));
            assert_eq!(got.tests_failed.len() as u64, got.tests_expected);
            let text = serde_json::to_string(&got).unwrap();
            assert_eq!(serde_json::from_str::<Judgement>(&text).unwrap(), got);
        }
    }
    let got = judged(&Fragile::new(lost, u32::MAX), &Set::tests(), &format!("{SOLUTION}// BOOM at the build\n"));
    assert!(got.status == Status::Judged && !got.passed && !got.compiled && !got.clippy_clean, "{got:#?}");
    assert!(got.reason.contains("error: disk") && got.retries == 2, "{got:#?}");
}

#[test]
fn r10_a_fault_that_passes_is_tried_again_twice_in_all() {
    let source = SOLUTION.replace("a.saturating_add(b)", "println!(\"BOOM\");\n    a.saturating_add(b)");
    let got = judged(&Fragile::new(lost, 2), &Set::tests(), &source);
    assert!(got.passed && got.retries == 2, "{got:#?}");
    assert!(serde_json::to_string(&got).unwrap().contains("\"retries\":2"));
    // Three faults in three tests are one too many.
    let got = judged(&Fragile::new(lost, 3), &Set::tests(), &source);
    assert!(got.status == Status::Judged && !got.passed && got.retries == 2, "{got:#?}");
    let got = judged(&Fragile::new(lost, 0), &Set::tests(), SOLUTION);
    assert!(got.passed && !serde_json::to_string(&got).unwrap().contains("retries"), "{got:#?}");
}

#[test]
fn r10_what_goes_wrong_with_the_harmless_too_is_an_error() {
    let source = SOLUTION.replace("a.saturating_add(b)", "println!(\"BOOM\");\n    a.saturating_add(b)");
    let got = judged(&Fragile { all: true, ..Fragile::new(lost, u32::MAX) }, &Set::tests(), &source);
    assert!(got.status == Status::Error && !got.passed && got.reason.contains("without a report"), "{got:#?}");
    // A layer that is missing is nobody's doing.
    let missing = || SandboxError::Missing { layer: crate::sandbox::Layer::MemoryGroup, detail: "none".into() };
    let got = judged(&Fragile::new(missing, u32::MAX), &Set::tests(), &source);
    assert!(got.status == Status::Error && got.reason.contains("memory-group"), "{got:#?}");
}
