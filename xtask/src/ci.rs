//! `cargo xtask ci`: everything that has to pass before a commit, in one command.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::failure::{FAILED, Failure};
use crate::{tidy, workspace};

/// cargo's arguments of a check, and what must stand in its environment.
struct Check {
    name: &'static str,
    args: Vec<String>,
    env: Option<(&'static str, &'static str)>,
    /// Whether this is the README's test command, which the one CI entry runs by itself.
    is_readme: bool,
}

impl Check {
    fn new(name: &'static str, args: &str) -> Self {
        let args = args.split_whitespace().map(str::to_owned).collect();
        Self { name, args, env: None, is_readme: false }
    }
}

/// Every check that cargo does, in their order.
///
/// The feature `cuda` is built too, so that it cannot rot between two machines with a GPU: its lints, what of the CUDA
/// modules needs no GPU, and `perf check`, which says what it could not run here.
fn checks(metadata: &serde_json::Value) -> Vec<Check> {
    let cuda: Vec<&str> = workspace::cuda_packages(metadata).filter_map(|package| package["name"].as_str()).collect();
    let packages: Vec<String> = cuda.iter().map(|name| format!("--package {name}")).collect();
    let features: Vec<String> = cuda.iter().map(|name| format!("{name}/cuda")).collect();
    let (packages, features) = (packages.join(" "), features.join(","));
    vec![
        Check::new("fmt", "fmt --all --check"),
        Check::new("clippy", "clippy --workspace --all-targets --locked -- -D warnings"),
        Check::new(
            "clippy-cuda",
            &format!("clippy {packages} --all-targets --locked --features {features} -- -D warnings"),
        ),
        Check { env: Some(("RUSTDOCFLAGS", "-D warnings")), ..Check::new("doc", "doc --workspace --no-deps --locked") },
        Check { is_readme: true, ..Check::new("test", "test --workspace --locked") },
        Check::new("test-cuda", "test --locked --package kernels-cubecl --features cuda --lib -- cuda::"),
        Check::new("perf-cuda", "run --locked --package perf --features cuda -- check"),
    ]
}

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
    for check in checks(&workspace::metadata(&root)?) {
        if skip_tests && check.is_readme {
            continue;
        }
        let start = Instant::now();
        let mut cargo = workspace::cargo(&root);
        let status = cargo.args(&check.args).envs(check.env).status().context("cannot start cargo")?;
        note(check.name, status.success(), start);
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(FAILED, format!("ci: failed: {}", failed.join(", "))).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_with_cuda_is_linted_with_it() {
        let root = workspace::root().unwrap();
        let checks = checks(&workspace::metadata(&root).unwrap());
        let lint = checks.iter().find(|check| check.name == "clippy-cuda").unwrap();
        for name in ["kernels-cubecl", "trainer", "stage-pretrain", "gates-eval", "perf"] {
            assert!(lint.args.contains(&name.to_owned()), "{:?}", lint.args);
            assert!(lint.args.iter().any(|arg| arg.contains(&format!("{name}/cuda"))), "{:?}", lint.args);
        }
        assert!(!lint.args.contains(&"xtask".to_owned()));
    }
}
