//! `cargo xtask ci`: everything that has to pass before a commit, in one command.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::failure::{FAILED, Failure};
use crate::{tidy, workspace};

/// cargo's arguments of a check, and what must stand in its environment.
struct Check {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
}

const FMT: Check = Check { name: "fmt", args: &["fmt", "--all", "--check"], env: None };
const CLIPPY: Check = Check {
    name: "clippy",
    args: &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    env: None,
};
const TEST: Check = Check { name: "test", args: &["test", "--workspace", "--locked"], env: None };
const DOC: Check = Check {
    name: "doc",
    args: &["doc", "--workspace", "--no-deps", "--locked"],
    env: Some(("RUSTDOCFLAGS", "-D warnings")),
};

/// Runs every check, also behind a failed one, and fails when any did.
pub(crate) fn command(mut args: Args) -> Result<()> {
    let skip_tests = args.flag("--skip-tests");
    args.finish()?;
    let root = workspace::root()?;
    let mut failed = Vec::new();
    let mut note = |name: &'static str, passed: bool, start: Instant| {
        println!("ci: {name} {} in {:.0} s", if passed { "passed" } else { "FAILED" }, start.elapsed().as_secs_f64());
        if !passed {
            failed.push(name);
        }
    };
    let start = Instant::now();
    note("tidy", tidy::run(&root)?.is_empty(), start);
    for check in [FMT, CLIPPY, DOC, TEST] {
        if skip_tests && check.name == TEST.name {
            continue;
        }
        let start = Instant::now();
        let mut cargo = workspace::cargo(&root);
        let status = cargo.args(check.args).envs(check.env).status().context("cannot start cargo")?;
        note(check.name, status.success(), start);
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(FAILED, format!("ci: failed: {}", failed.join(", "))).into())
}
