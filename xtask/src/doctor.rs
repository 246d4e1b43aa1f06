//! `cargo xtask doctor`: whether this machine can build and run the demo.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::args::Args;
use crate::failure::{ENVIRONMENT, Failure};
use crate::workspace;

/// Memory that the demo pipeline and the build of the largest program need.
const MIN_MEMORY_BYTES: u64 = 4 << 30;
/// Space that the target folder and a run of the demo need.
const MIN_DISK_BYTES: u64 = 8 << 30;

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    found: String,
    /// What is missing and how to get it.
    problem: Option<String>,
}

/// Runs the command; exit code 4 when something is missing.
pub(crate) fn command(args: Args) -> Result<()> {
    args.finish()?;
    let root = workspace::root()?;
    let findings = [compiler(&root)?, cores(), memory(), disk(&root), gpu()];
    for Finding { what, found, problem } in &findings {
        println!("{} {what:<9} {found}", if problem.is_some() { "MISSING" } else { "ok     " });
        if let Some(problem) = problem {
            println!("        {problem}");
        }
    }
    let missing: Vec<&str> = findings.iter().filter(|f| f.problem.is_some()).map(|f| f.what).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(ENVIRONMENT, format!("missing: {}", missing.join(", "))).into())
}

fn compiler(root: &Path) -> Result<Finding> {
    let needed = needed_version(&workspace::read(root, Path::new("Cargo.toml"))?).unwrap_or((1, 0));
    let found = output(Command::new("rustc").arg("--version")).unwrap_or_else(|| "no rustc".into());
    let enough = version(&found).is_some_and(|version| version >= needed);
    let problem = format!("Rust {}.{} or newer is needed: rustup update stable", needed.0, needed.1);
    Ok(Finding { what: "compiler", found, problem: (!enough).then_some(problem) })
}

/// The `rust-version` of the workspace.
fn needed_version(manifest: &str) -> Option<(u32, u32)> {
    let manifest: toml::Table = manifest.parse().ok()?;
    version(manifest.get("workspace")?.get("package")?.get("rust-version")?.as_str()?)
}

/// Major and minor of the first version in a text.
fn version(text: &str) -> Option<(u32, u32)> {
    let word = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = word.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn cores() -> Finding {
    let found = match std::thread::available_parallelism() {
        Ok(n) => format!("{n} usable"),
        Err(error) => format!("unknown ({error})"),
    };
    Finding { what: "cores", found, problem: None }
}

fn memory() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some((total, available)) = kib(&info, "MemTotal:").zip(kib(&info, "MemAvailable:")) else {
        return Finding { what: "memory", found: "unknown on this system".into(), problem: None };
    };
    let found = format!("{} total, {} available", gib(total * 1024), gib(available * 1024));
    let short = available * 1024 < MIN_MEMORY_BYTES;
    let problem = format!("{} available are needed: close other programs", gib(MIN_MEMORY_BYTES));
    Finding { what: "memory", found, problem: short.then_some(problem) }
}

fn kib(info: &str, key: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn disk(root: &Path) -> Finding {
    let Some(free) = output(Command::new("df").arg("-Pk").arg(root)).as_deref().and_then(free_bytes) else {
        return Finding { what: "disk", found: "unknown on this system".into(), problem: None };
    };
    let problem = format!("{} are needed for the build and a run: free some space", gib(MIN_DISK_BYTES));
    Finding { what: "disk", found: format!("{} free", gib(free)), problem: (free < MIN_DISK_BYTES).then_some(problem) }
}

/// The fourth column of the last line of `df -Pk`, in bytes.
fn free_bytes(df: &str) -> Option<u64> {
    let free: u64 = df.lines().last()?.split_whitespace().nth(3)?.parse().ok()?;
    Some(free * 1024)
}

fn gpu() -> Finding {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let line = driver.as_deref().and_then(|text| text.lines().next()).unwrap_or("none; the CPU default needs none");
    Finding { what: "gpu", found: line.trim().into(), problem: None }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_prints_is_understood() {
        assert_eq!(version("rustc 1.95.0 (59807616e 2026-04-14)"), Some((1, 95)));
        assert_eq!(version("1.92"), Some((1, 92)));
        assert_eq!(version("no rustc"), None);
        assert!(version("rustc 1.9.0") < version("rustc 1.10.0"));
        assert_eq!(kib("MemTotal:       24 kB\nMemAvailable:   12 kB\n", "MemAvailable:"), Some(12));
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 100 40 60 40% /\n";
        assert_eq!(free_bytes(df), Some(60 * 1024));
        assert_eq!(free_bytes(""), None);
        assert_eq!(needed_version("[workspace.package]\nrust-version = \"1.92\"\n"), Some((1, 92)));
    }
}
