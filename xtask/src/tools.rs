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

/// Installs `cargo-mutants` into the target folder; cargo leaves what is there as it is. `--out` has a copy in another folder.
pub(crate) fn tools(mut args: Args) -> Result<()> {
    let out = args.option("--out")?;
    args.finish()?;
    let (name, version) = MUTANTS;
    let root = workspace::root()?;
    cargo(&root, &["install", name, "--version", version, "--locked", "--root", TOOLS])?;
    let program = format!("{TOOLS}/bin/{name}");
    match out {
        Some(out) => println!("{}", copy(&root, &program, Path::new(&out), name)?),
        None => println!("{program}"),
    }
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

/// Copies a program into a folder.
fn copy(root: &Path, program: &str, out: &Path, name: &str) -> Result<String> {
    let dir = root.join(out);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let copied = std::fs::copy(root.join(program), dir.join(name));
    copied.with_context(|| format!("cannot copy {program} into {}", dir.display()))?;
    Ok(out.join(name).display().to_string())
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
