//! `cargo xtask tools` and `cargo xtask crates`: what data of the Rust-agent line needs from the crate registry.

use std::path::Path;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::failure::{ENVIRONMENT, Failure};
use crate::workspace;

/// The generator of mutants, at the version whose list is read.
const MUTANTS: (&str, &str) = ("cargo-mutants", "=27.1.0");
/// Where programs are installed.
const TOOLS: &str = "target/tools";
/// The manifest that pins crates to mutate.
const MANIFEST: &str = "data/crates/Cargo.toml";
/// Where their sources are laid out.
const CRATES: &str = "target/crates";

/// Installs `cargo-mutants` into the target folder; cargo leaves what is there as it is.
pub(crate) fn tools(args: Args) -> Result<()> {
    args.finish()?;
    let (name, version) = MUTANTS;
    let root = workspace::root()?;
    cargo(&root, &["install", name, "--version", version, "--locked", "--root", TOOLS])?;
    println!("{TOOLS}/bin/{name}");
    Ok(())
}

/// Lays out the sources of the pinned crates and of what they depend on.
pub(crate) fn crates(mut args: Args) -> Result<()> {
    let manifest = args.option("--manifest")?.unwrap_or_else(|| MANIFEST.into());
    let out = args.option("--out")?.unwrap_or_else(|| CRATES.into());
    args.finish()?;
    let root = workspace::root()?;
    cargo(&root, &["vendor", "--locked", "--versioned-dirs", "--manifest-path", &manifest, &out])?;
    println!("{out}");
    Ok(())
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    // What cargo prints about a configuration is for people who build with it; its progress goes to standard error.
    let output = workspace::cargo(root).args(args).stderr(std::process::Stdio::inherit()).output();
    if output.context("cannot start cargo")?.status.success() {
        return Ok(());
    }
    let message = format!("cargo {} failed; it needs the crate registry", args.join(" "));
    Err(Failure::new(ENVIRONMENT, message).into())
}
