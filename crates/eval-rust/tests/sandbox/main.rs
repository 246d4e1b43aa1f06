//! The sandbox under attack. Each test is named after the attack that it mounts and shows that nothing got out.
//!
//! Where this machine lacks a layer, the tests check that runs are refused with its name, then go on with what may be
//! missing, or say what they could not check.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod compiler;
mod isolation;
mod launcher;
mod limits;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::OnceLock;
use std::time::Duration;

use eval_rust::sandbox::{
    Command, End, Layer, Limits, Mount, Outcome, Run, Sandbox, SandboxError, Scratch, system_mounts,
};

/// The program that is the sandbox's helper.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_eval-rust");

/// Where the scratch folder of a run is.
pub(crate) const SCRATCH: &str = "/scratch";

/// Says what a test left out, past the capture of a test that passes.
pub(crate) fn not_checked(what: &str) {
    std::io::stderr().write_all(format!("NOT CHECKED: {what}\n").as_bytes()).unwrap();
}

/// A sandbox as strong as this machine can have it; `None`, with the reason on standard error, where it can hold nothing.
pub(crate) fn sandbox() -> Option<Sandbox> {
    static ALLOWED: OnceLock<Option<Vec<Layer>>> = OnceLock::new();
    let allowed = ALLOWED.get_or_init(find_layers);
    let allowed = allowed.as_ref()?;
    Some(Sandbox::new(Path::new(HELPER), allowed).unwrap())
}

/// The layers that must be left out here. Each was named by a refusal first: the sandbox never leaves one out by itself.
fn find_layers() -> Option<Vec<Layer>> {
    let mut allowed = Vec::new();
    loop {
        let sandbox = Sandbox::new(Path::new(HELPER), &allowed).unwrap();
        match sandbox.run(&attack("find-layers", &["exit", "0"])) {
            Ok(outcome) => {
                assert_eq!(outcome.end, End::Exit(0));
                let mut weaker = outcome.weaker;
                weaker.sort_unstable();
                allowed.sort_unstable();
                assert_eq!(weaker, allowed, "the outcome names what was missing");
                if !allowed.is_empty() {
                    not_checked(&format!(
                        "limits that need {allowed:?}, which this machine lacks; without leave runs were refused"
                    ));
                }
                return Some(allowed);
            }
            Err(SandboxError::Missing { layer, detail }) if layer.stand_in().is_some() && !allowed.contains(&layer) => {
                eprintln!("refused as it must be: {layer}: {detail}");
                allowed.push(layer);
            }
            Err(SandboxError::Missing { layer, detail }) => {
                not_checked(&format!("this machine holds no command, every run is refused: {layer}: {detail}"));
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether the groups that this test is about are there.
pub(crate) fn has(layer: Layer) -> bool {
    let Some(sandbox) = sandbox() else { return false };
    let there = !sandbox.run(&attack("has", &["exit", "0"])).unwrap().weaker.contains(&layer);
    if !there {
        not_checked(&format!("this machine lacks {layer}"));
    }
    there
}

/// The attacker, compiled once.
pub(crate) fn attacker() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/attacker.rs");
        // A copy of this program that a test starts uses what the first one compiled, which runs see meanwhile.
        if let Some(built) = std::env::var_os(launcher::ROLE) {
            return built.into();
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacker");
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let built = Program::new(rustc)
            .args(["--edition", "2024", "-O", "-o"])
            .args([program.as_os_str(), source.as_ref()])
            .status();
        assert!(built.unwrap().success(), "compiling {source}");
        program
    })
}

/// An attack; `name` is the name of its program inside, which tells its processes from those of other tests.
pub(crate) fn attack(name: &str, args: &[&str]) -> Command {
    let inside = PathBuf::from(format!("/attacker-{name}"));
    let mut mounts = system_mounts();
    mounts.push(Mount { host: attacker().into(), inside: inside.clone(), writable: false });
    Command {
        program: inside,
        args: args.iter().map(Into::into).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        stdin: Vec::new(),
        mounts,
        scratch: vec![Scratch { inside: SCRATCH.into(), bytes: 8 << 20, inodes: 100 }],
        limits: Limits {
            wall: Duration::from_secs(20),
            cpu: Duration::from_secs(15),
            memory: 64 << 20,
            pids: 16,
            output: 1 << 20,
            file_size: 64 << 20,
            open_files: 64,
        },
    }
}

/// Runs an attack and checks that no process of it is left.
pub(crate) fn run(sandbox: &Sandbox, command: &Command) -> Outcome {
    let outcome = sandbox.run(command).unwrap();
    let name = command.program.to_str().unwrap();
    assert_eq!(processes(name), Vec::<String>::new(), "left behind");
    outcome
}

/// Processes of this machine whose command line begins with `name`.
pub(crate) fn processes(name: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.starts_with(name)).collect()
}

/// What an attack wrote, as text.
pub(crate) fn text(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).trim().to_owned()
}
