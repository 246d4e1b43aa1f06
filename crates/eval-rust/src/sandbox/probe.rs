//! Tries, from inside, what a sandbox must refuse, and says what came of it.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::inside::INSIDE_ID;
use super::sys;

/// Argument of the probe that only ends, for the time of a launch.
pub(crate) const QUIET: &str = "quiet";

/// One thing that must hold inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was tried.
    pub name: String,
    /// Whether the sandbox held.
    pub holds: bool,
    /// What was seen.
    pub detail: String,
}

/// Runs the probes and writes one JSON line for each to standard output. `args` are the arguments after
/// [`super::PROBE`].
///
/// For `main` of the helper program. Outside a sandbox it changes nothing, and most of what it reports does not hold.
#[must_use]
pub fn probe_main(args: &[std::ffi::OsString]) -> ExitCode {
    if args.first().is_some_and(|arg| arg == QUIET) {
        return ExitCode::SUCCESS;
    }
    let mut out = std::io::stdout().lock();
    for finding in findings() {
        let line = serde_json::to_string(&finding).unwrap_or_default();
        if writeln!(out, "{line}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn finding(name: &str, holds: bool, detail: impl std::fmt::Display) -> Finding {
    Finding { name: name.into(), holds, detail: detail.to_string() }
}

fn findings() -> Vec<Finding> {
    let mut all = vec![user(), privileges(), descriptors(), environment(), processes(), first_process(), host_name()];
    all.extend(system_files());
    all.extend(folders());
    all.extend(system_calls());
    all
}

fn user() -> Finding {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    finding("user-id", (user, group) == (INSIDE_ID, INSIDE_ID), format_args!("user {user}, group {group}"))
}

fn privileges() -> Finding {
    let sets = rustix::thread::capabilities(None);
    let none = sets.is_ok_and(|sets| sets.effective.is_empty() && sets.permitted.is_empty());
    // The question needs a call that the list refuses; a refusal comes only from the list.
    let locked = !matches!(rustix::thread::no_new_privs(), Ok(false));
    finding("no-privileges", none && locked, format_args!("no capabilities: {none}, no new privileges: {locked}"))
}

fn entries(folder: &str) -> Option<Vec<String>> {
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Some(names.collect())
}

fn descriptors() -> Finding {
    let Some(mut open) = entries("/proc/self/fd") else { return finding("descriptors", true, "no /proc to list them") };
    open.sort();
    // The fourth is the listing's own.
    finding("descriptors", open.len() <= 4, format_args!("open while listing: {}", open.join(" ")))
}

fn environment() -> Finding {
    let names: Vec<String> = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    finding("environment", names.is_empty(), format_args!("variables: {names:?}"))
}

fn processes() -> Finding {
    let all = entries("/proc").unwrap_or_default();
    let pids: Vec<&String> = all.iter().filter(|name| name.parse::<u32>().is_ok()).collect();
    finding("processes", pids.len() <= 2, format_args!("seen: {pids:?}"))
}

fn first_process() -> Finding {
    let secrets = ["/proc/1/environ", "/proc/1/maps", "/proc/1/mem"];
    let open: Vec<&str> = secrets.into_iter().filter(|path| std::fs::read(path).is_ok()).collect();
    finding("first-process", open.is_empty(), format_args!("readable: {open:?}"))
}

fn host_name() -> Finding {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    finding("host-name", name == "sandbox", &name)
}

fn system_files() -> Vec<Finding> {
    let paths = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/dev/kmsg"];
    let open = |path: &str| std::fs::File::options().write(true).open(path);
    let attempt = |path| match open(path) {
        Ok(_) => finding(path, false, "opened for writing"),
        Err(error) => finding(path, true, error),
    };
    paths.into_iter().map(attempt).collect()
}

fn folders() -> Vec<Finding> {
    let mut all = Vec::new();
    for folder in ["/", "/dev", "/usr"] {
        let place = Path::new(folder).join("firebrick-probe");
        all.push(match std::fs::File::create_new(&place) {
            Ok(_) => finding(&format!("writing below {folder}"), false, "created a file"),
            Err(error) => finding(&format!("writing below {folder}"), true, error),
        });
    }
    for path in ["/etc/shadow", "/etc/passwd", "/sys", "/var", "/run"] {
        all.push(finding(&format!("absence of {path}"), !Path::new(path).exists(), "looked for"));
    }
    all
}

fn system_calls() -> Vec<Finding> {
    let calls = [
        ("internet socket", libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM),
        ("local socket", libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM),
        ("vsock", libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM),
        ("netlink", libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW),
        ("ptrace", libc::SYS_ptrace, 0, 0),
        ("bpf", libc::SYS_bpf, 0, 0),
        ("keyctl", libc::SYS_keyctl, 0, 0),
        ("add_key", libc::SYS_add_key, 0, 0),
        ("io_uring", libc::SYS_io_uring_setup, 1, 0),
        ("userfaultfd", libc::SYS_userfaultfd, 0, 0),
        ("perf", libc::SYS_perf_event_open, 0, 0),
        ("mount", libc::SYS_mount, 0, 0),
        ("unmount", libc::SYS_umount2, 0, 0),
        ("unshare", libc::SYS_unshare, libc::CLONE_NEWUSER, 0),
        ("setns", libc::SYS_setns, 0, 0),
        ("chroot", libc::SYS_chroot, 0, 0),
        ("memfd_secret", libc::SYS_memfd_secret, 0, 0),
        ("memory of others", libc::SYS_process_vm_readv, 1, 0),
        ("limits of others", libc::SYS_prlimit64, 1, 0),
        ("files by handle", libc::SYS_open_by_handle_at, 0, 0),
    ];
    let attempt = |(name, number, first, second): (&str, _, i32, i32)| {
        let result = sys::probe(number, first.into(), second.into());
        finding(&format!("system call: {name}"), result == Err(libc::EPERM), format_args!("{result:?}"))
    };
    calls.into_iter().map(attempt).collect()
}
