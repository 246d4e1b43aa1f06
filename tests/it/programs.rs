//! The programs of the workspace: built once per test run, found beside this test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Where a program of the workspace lies.
pub(crate) fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(build).join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.is_file(), "no program {}", path.display());
    path
}

/// Builds as `cargo xtask pipeline` does, so that what is built is shared; into the target folder and the profile that
/// this test lies in.
fn build() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository()).args(["build", "--locked", "--quiet", "--target-dir"]);
    cargo.arg(folder.parent().unwrap());
    let profile = folder.file_name().unwrap();
    if profile != "debug" {
        cargo.arg("--profile").arg(profile);
    }
    assert!(cargo.status().unwrap().success(), "the programs do not build");
    folder.to_path_buf()
}
