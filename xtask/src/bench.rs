//! `cargo xtask bench`: runs the package `perf` in the profile of this program.

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::failure::Failure;
use crate::workspace;

/// Runs `perf` with the words and options given; only `cpu` exists today.
pub(crate) fn command(mut args: Args) -> Result<()> {
    match args.positional().as_deref() {
        Some("cpu") => {}
        other => bail!("expected `bench cpu`, found {other:?}"),
    }
    let root = workspace::root()?;
    let release = if cfg!(debug_assertions) { None } else { Some("--release") };
    let status = workspace::cargo(&root)
        .args(["run", "--locked", "--package", "perf"])
        .args(release)
        .args(["--", "cpu"])
        .args(args.rest())
        .status()
        .context("cannot start cargo")?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    Err(Failure::new(code, "the benchmark failed").into())
}
