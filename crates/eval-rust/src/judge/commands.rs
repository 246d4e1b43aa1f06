//! The commands that the judge runs in the sandbox, and what they see.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{JudgeError, Result};
use super::report::Judgement;
use crate::sandbox::{Command, End, Limits, Mount, Outcome, Run, SandboxError, Scratch, system_mounts};

/// Everything of the judge's inside a sandbox.
pub(crate) const INSIDE: &str = "/judge";
/// Tries of a run that the sandbox itself failed.
const TRIES: usize = 3;
const MIB: u64 = 1 << 20;
/// Memory of the compiler and the linker.
const BUILD_MEMORY: u64 = 2048 * MIB;

/// Has cargo take dependencies from the vendored sources.
const VENDORED: [&str; 2] =
    ["source.crates-io.replace-with=\"vendored\"", "source.vendored.directory=\"/judge/vendor\""];

/// Where things are outside.
#[derive(Debug, Clone)]
pub(crate) struct Places<'a> {
    pub(crate) toolchain: &'a Path,
    pub(crate) vendor: Option<&'a Path>,
    /// Of one judging only: `ws`, `target` and `bin` are below.
    pub(crate) private: &'a Path,
}

fn inside(name: &str) -> PathBuf {
    Path::new(INSIDE).join(name)
}

/// A program of the toolchain in a folder of the workspace.
pub(crate) fn tool(
    places: &Places<'_>,
    program: &str,
    args: &[&str],
    cwd: &str,
    writable: bool,
    wall: Duration,
) -> Command {
    let mut mounts: Vec<Mount> = system_mounts();
    let mut mount = |host: PathBuf, name: &str, writable| mounts.push(Mount { host, inside: inside(name), writable });
    mount(places.toolchain.into(), "toolchain", false);
    mount(places.private.join("ws"), "ws", writable);
    mount(places.private.join("target"), "target", true);
    if let Some(vendor) = places.vendor {
        mount(vendor.into(), "vendor", false);
    }
    let env = [
        ("PATH", "/judge/toolchain/bin:/usr/bin:/bin"),
        ("HOME", "/judge/tmp"),
        ("TMPDIR", "/judge/tmp"),
        ("CARGO_HOME", "/judge/home"),
        ("CARGO_TARGET_DIR", "/judge/target"),
        ("CARGO_NET_OFFLINE", "true"),
        ("CARGO_TERM_COLOR", "never"),
        ("CARGO_BUILD_JOBS", "2"),
        ("RUSTC", "/judge/toolchain/bin/rustc"),
        ("LANG", "C.UTF-8"),
    ];
    let scratch = |name: &str, bytes| Scratch { inside: inside(name), bytes, inodes: 4096 };
    let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
    if program == "cargo" && places.vendor.is_some() {
        args.splice(1..1, VENDORED.iter().flat_map(|config| ["--config".into(), config.into()]));
    }
    Command {
        program: inside("toolchain/bin").join(program),
        args,
        env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cwd: inside(cwd),
        stdin: Vec::new(),
        mounts,
        scratch: vec![scratch("home", 16 * MIB), scratch("tmp", 256 * MIB)],
        limits: Limits {
            wall,
            cpu: wall * 2,
            memory: BUILD_MEMORY,
            pids: 128,
            output: 4 * MIB,
            file_size: 512 * MIB,
            open_files: 1024,
        },
    }
}

/// A built program, which sees nothing but itself and the C library.
pub(crate) fn program(bin: &Path, name: &str, stdin: Vec<u8>, memory_mib: u64, wall: Duration) -> Command {
    let mount = Mount { host: bin.into(), inside: inside("bin"), writable: false };
    Command {
        program: inside("bin").join(name),
        args: Vec::new(),
        env: vec![("LANG".into(), "C.UTF-8".into())],
        cwd: inside("bin"),
        stdin,
        mounts: system_mounts().into_iter().chain([mount]).collect(),
        scratch: Vec::new(),
        limits: Limits {
            wall,
            cpu: wall,
            memory: memory_mib * MIB,
            pids: 64,
            output: 16 * MIB,
            file_size: MIB,
            open_files: 64,
        },
    }
}

/// Runs a command that is the judge's own, again where the sandbox itself failed, and adds what it took to the report.
pub(crate) fn run(runner: &dyn Run, command: &Command, report: &mut Judgement) -> Result<Outcome> {
    let mut last: Option<SandboxError> = None;
    for _ in 0..TRIES {
        match once(runner, command, report) {
            Ok(outcome) => return Ok(outcome),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| JudgeError::Own { step: "run", what: "was not tried".into() }, JudgeError::Sandbox))
}

/// Runs a command and adds what it took to the report.
pub(crate) fn once(runner: &dyn Run, command: &Command, report: &mut Judgement) -> Result<Outcome, SandboxError> {
    let outcome = runner.run(command)?;
    report.wall_ms += outcome.wall.as_millis() as u64;
    report.cpu_ms += outcome.cpu.as_millis() as u64;
    report.peak_memory_bytes = report.peak_memory_bytes.max(outcome.peak_memory);
    report.add_weaker(&outcome.weaker);
    Ok(outcome)
}

/// How a run ended, in words.
pub(crate) fn ended(end: End) -> String {
    match end {
        End::Exit(code) => format!("exit code {code}"),
        End::Signal(signal) => format!("signal {signal}"),
        End::WallTime => "limit of wall time".into(),
        End::CpuTime => "limit of CPU time".into(),
        End::Memory => "limit of memory".into(),
        End::Output => "limit of output".into(),
    }
}
