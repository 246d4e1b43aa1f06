//! The repository: its root, its files, what cargo knows about it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Folders of the root that hold no source.
const NOT_SOURCE: [&str; 4] = ["target", "runs", ".git", "node_modules"];

/// The root of the checkout this program was built from, or of the current folder's workspace when it was moved.
pub(crate) fn root() -> Result<PathBuf> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
    let here = std::env::current_dir().context("cannot tell the current folder")?;
    let is_root = |dir: &Path| dir.join("Cargo.lock").is_file() && dir.join("xtask").is_dir();
    match here.ancestors().find(|dir| is_root(dir)) {
        Some(dir) => Ok(dir.to_path_buf()),
        None => built_from.filter(|dir| is_root(dir)).context("run this inside the checkout"),
    }
}

/// cargo itself, as cargo named it to this program.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// All files below `dir` with this extension, sorted, as paths relative to `root`.
pub(crate) fn files(root: &Path, dir: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let top = root.join(dir);
    if top.is_dir() {
        collect(&top, extension, &mut found)?;
    }
    let mut found: Vec<PathBuf> =
        found.into_iter().map(|path| path.strip_prefix(root).map(Path::to_path_buf).unwrap_or(path)).collect();
    found.sort();
    Ok(found)
}

fn collect(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().with_context(|| format!("cannot read {}", path.display()))?.is_dir() {
            if !NOT_SOURCE.iter().any(|skip| name == *skip) {
                collect(&path, extension, found)?;
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// Reads a text file of the repository.
pub(crate) fn read(root: &Path, path: &Path) -> Result<String> {
    std::fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// What `cargo metadata` says of the workspace's own crates.
pub(crate) fn metadata(root: &Path) -> Result<serde_json::Value> {
    let text = cargo_output(root, &["metadata", "--format-version", "1", "--locked", "--no-deps"])?;
    serde_json::from_str(&text).context("cargo metadata did not print JSON")
}

/// The packages that have a feature `cuda`, in what [`metadata`] says.
pub(crate) fn cuda_packages(metadata: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    metadata["packages"].as_array().into_iter().flatten().filter(|package| package["features"]["cuda"].is_array())
}

/// What cargo prints for these arguments.
pub(crate) fn cargo_output(root: &Path, args: &[&str]) -> Result<String> {
    let output = cargo(root).args(args).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("cargo {} did not print UTF-8", args.join(" ")))
}
