//! Crates of Rust as `cargo vendor --versioned-dirs` lays them out: each becomes a source of its own.

use std::collections::BTreeSet;
use std::path::Path;

use super::SourceConfig;
use crate::error::{DataError, Result};
use crate::folder::read_bounded;

/// Largest manifest of a crate.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// The crates in the folders of `source`, by the names of their folders: a source each, with the crate's name and the
/// licence of its manifest. A crate without a file that is read is left out; what `skip` names is, too.
pub(super) fn expand(source: &SourceConfig) -> Result<Vec<SourceConfig>> {
    let (mut crates, mut unused) = (Vec::new(), source.skip.iter().collect::<BTreeSet<_>>());
    for root in &source.paths {
        let mut dirs = Vec::new();
        for entry in std::fs::read_dir(root).map_err(DataError::io("list", root))? {
            dirs.push(entry.map_err(DataError::io("list", root))?.path());
        }
        dirs.retain(|dir| dir.join("Cargo.toml").is_file());
        dirs.sort();
        if dirs.is_empty() {
            return Err(DataError::NoInput { path: root.clone(), expected: "folders with a Cargo.toml" });
        }
        for dir in dirs {
            let (name, licence) = manifest(&dir.join("Cargo.toml"))?;
            let folder = dir.file_name().unwrap_or_default().to_string_lossy();
            let skips: Vec<_> = source.skip.iter().filter(|s| matches(s, &name) || matches(s, &folder)).collect();
            skips.iter().for_each(|skip| _ = unused.remove(skip));
            let one =
                SourceConfig { name, licence: Some(licence), paths: vec![dir], recursive: true, ..source.clone() };
            if skips.is_empty() && !one.found(&one.paths[0])?.is_empty() {
                crates.push(one);
            }
        }
    }
    match unused.first() {
        Some(skip) => {
            let expected = "crates that are there, by name, folder or beginning and `*`";
            Err(DataError::BadConfig { key: "source.skip", expected, found: (*skip).clone() })
        }
        None => Ok(crates),
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or_else(|| pattern == name, |start| name.starts_with(start))
}

/// Name and licence; a crate without an SPDX expression has an empty one, which no policy allows. Cargo's old `A/B` means OR.
fn manifest(path: &Path) -> Result<(String, String)> {
    let bytes = read_bounded(path, "file size in bytes", MAX_MANIFEST_BYTES)?;
    let table = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let package = table.as_ref().and_then(|t| t.get("package"));
    let key = |key: &str| package.and_then(|p| p.get(key)).and_then(toml::Value::as_str);
    let Some(name) = key("name") else {
        let found = "something else".to_owned();
        return Err(DataError::WrongFormat { path: path.into(), expected: "a manifest of a crate with a name", found });
    };
    let choices: Vec<&str> = key("license").unwrap_or_default().split('/').map(str::trim).collect();
    Ok((name.to_owned(), choices.join(" OR ")))
}
