//! The commands that run in the sandbox, and what they see.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eval_rust::sandbox::{Command, Limits, Mount, Scratch, system_mounts};

use super::executor::Setup;
use super::files::Workspace;

/// The crate, inside.
pub(super) const WORKSPACE: &str = "/agent/ws";
/// The target folder, inside.
pub(super) const TARGET: &str = "/agent/target";
/// The toolchain, inside.
pub(super) const TOOLCHAIN: &str = "/agent/toolchain";

const MIB: u64 = 1 << 20;

/// Has cargo take dependencies from the vendored sources.
const VENDORED: [&str; 4] = [
    "--config",
    "source.crates-io.replace-with=\"vendored\"",
    "--config",
    "source.vendored.directory=\"/agent/vendor\"",
];

/// A program of the toolchain in the crate's folder, which it sees but cannot write unless `writable`.
pub(super) fn tool(setup: &Setup, workspace: &Workspace, program: &str, args: &[&str], writable: bool) -> Command {
    let mut mounts: Vec<Mount> = system_mounts();
    let mut mount = |host: &Path, inside: &str, writable| {
        mounts.push(Mount { host: host.into(), inside: inside.into(), writable });
    };
    mount(&setup.toolchain, TOOLCHAIN, false);
    mount(&workspace.crate_folder(), WORKSPACE, writable);
    mount(&workspace.target_folder(), TARGET, true);
    if let Some(vendor) = &setup.vendor {
        mount(vendor, "/agent/vendor", false);
    }
    let path = format!("{TOOLCHAIN}/bin:/usr/bin:/bin");
    let rustc = format!("{TOOLCHAIN}/bin/rustc");
    let env = [
        ("PATH", path.as_str()),
        ("HOME", "/agent/tmp"),
        ("TMPDIR", "/agent/tmp"),
        ("CARGO_HOME", "/agent/home"),
        ("CARGO_TARGET_DIR", TARGET),
        ("CARGO_NET_OFFLINE", "true"),
        ("CARGO_TERM_COLOR", "never"),
        ("CARGO_BUILD_JOBS", "2"),
        ("CARGO_PROFILE_DEV_DEBUG", "0"),
        ("CARGO_INCREMENTAL", "0"),
        ("RUSTC", &rustc),
        ("RUST_BACKTRACE", "0"),
        ("LANG", "C.UTF-8"),
    ];
    let scratch = |inside: &str, bytes| Scratch { inside: inside.into(), bytes, inodes: 4096 };
    let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
    if program == "cargo" && setup.vendor.is_some() {
        args.splice(1..1, VENDORED.map(OsString::from));
    }
    let wall = Duration::from_secs(setup.seconds);
    Command {
        program: PathBuf::from(TOOLCHAIN).join("bin").join(program),
        args,
        env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cwd: WORKSPACE.into(),
        stdin: Vec::new(),
        mounts,
        scratch: vec![scratch("/agent/home", 16 * MIB), scratch("/agent/tmp", 64 * MIB)],
        limits: Limits {
            wall,
            cpu: wall * 2,
            memory: setup.memory_mib * MIB,
            pids: 128,
            output: 4 * MIB,
            file_size: 256 * MIB,
            open_files: 1024,
        },
    }
}
