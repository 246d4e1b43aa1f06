//! Builds the programs of a pipeline once, in the profile of this program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::config::Pipeline;
use crate::failure::{ENVIRONMENT, Failure};
use crate::workspace;

/// Builds the workspace and returns where each program of the pipeline lies.
///
/// The programs lie beside this one: same target folder, same profile. So nothing has to be configured, and the
/// pipeline runs what was built from this checkout.
pub(crate) fn programs(root: &Path, pipeline: &Pipeline) -> Result<BTreeMap<String, PathBuf>> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let dir = own.parent().context("this program lies in no folder")?;
    let mut cargo = workspace::cargo(root);
    cargo.args(["build", "--locked"]).args(profile_args(dir));
    println!("building the programs: cargo build --locked {}", profile_args(dir).join(" "));
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        return Err(Failure::new(ENVIRONMENT, "the programs do not build; the compiler says why").into());
    }
    let mut found = BTreeMap::new();
    for name in pipeline.programs() {
        let path = dir.join(name).with_extension(std::env::consts::EXE_EXTENSION);
        if !path.is_file() {
            let message = format!("no program `{name}` in {}; is it a program of this workspace?", dir.display());
            return Err(Failure::new(ENVIRONMENT, message).into());
        }
        found.insert(name.to_owned(), path);
    }
    Ok(found)
}

/// cargo's profile arguments for the folder that a program lies in.
fn profile_args(dir: &Path) -> Vec<String> {
    match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => Vec::new(),
        Some(profile) => vec!["--profile".into(), profile.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_that_of_the_folder() {
        assert!(profile_args(Path::new("/t/debug")).is_empty());
        assert_eq!(profile_args(Path::new("/t/release")), ["--profile", "release"]);
    }
}
