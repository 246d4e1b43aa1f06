//! The folder of a Rust toolchain; rustup's proxies are not used, because they obey files of a candidate.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::{JudgeError, Result};

/// Finds rustup's default toolchain, or the one that a folder of `PATH` belongs to.
///
/// `env` looks up a variable.
///
/// # Errors
/// [`JudgeError::NoToolchain`] with where it was looked for.
pub fn find_toolchain(env: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let home = env("RUSTUP_HOME").map(PathBuf::from);
    let rustup = home.or_else(|| Some(PathBuf::from(env("HOME")?).join(".rustup")));
    let default = rustup.as_ref().and_then(|rustup| {
        let settings = std::fs::read_to_string(rustup.join("settings.toml")).ok()?;
        let settings: toml::Table = settings.parse().ok()?;
        Some(rustup.join("toolchains").join(settings.get("default_toolchain")?.as_str()?))
    });
    let path = env("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|bin| bin.parent().map(Path::to_path_buf));
    let found = default.into_iter().chain(on_path).find(|dir| is_toolchain(dir));
    found.ok_or_else(|| {
        let rustup = rustup.map(|dir| format!("{} and ", dir.display())).unwrap_or_default();
        JudgeError::NoToolchain { looked: format!("{rustup}PATH ({})", path.to_string_lossy()) }
    })
}

fn is_toolchain(dir: &Path) -> bool {
    dir.join("bin/cargo").is_file() && dir.join("bin/rustc").is_file() && dir.join("lib/rustlib").is_dir()
}

/// Names of the compiler's libraries, which carry a hash of its version.
pub(crate) fn version(toolchain: &Path) -> String {
    let entries = std::fs::read_dir(toolchain.join("lib")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.join(" ")
}
