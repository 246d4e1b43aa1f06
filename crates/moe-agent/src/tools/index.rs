//! A local index of crates: a JSON line each, made from manifests, searched without a network.

use std::path::Path;

use gates::artifact;
use serde::{Deserialize, Serialize};

use super::error::ExecutorError;

/// Most bytes of an index.
const MAX_INDEX_BYTES: u64 = 256 << 20;
/// Most bytes of a manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Most crates in an answer.
const MAX_FOUND: usize = 5;
/// Most characters of a description in an answer.
const MAX_DESCRIPTION: usize = 160;

/// One crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrateEntry {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it says of itself.
    #[serde(default)]
    pub description: String,
    /// Its keywords.
    #[serde(default)]
    pub keywords: Vec<String>,
}

/// Crates to search.
#[derive(Debug, Clone, Default)]
pub struct CrateIndex {
    entries: Vec<CrateEntry>,
    hash: String,
}

impl CrateIndex {
    /// Reads an index.
    ///
    /// # Errors
    /// [`ExecutorError::Artifact`] when the file cannot be read, [`ExecutorError::Index`] with the line that is no entry.
    pub fn load(path: &Path) -> Result<Self, ExecutorError> {
        let bytes = artifact::read_bounded(path, MAX_INDEX_BYTES)?;
        let hash = artifact::hash_bytes(&bytes);
        let lines = bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
        let entry = |(i, line): (usize, &[u8])| {
            let wrong = |error: serde_json::Error| ExecutorError::Index {
                path: path.into(),
                line: i + 1,
                reason: error.to_string(),
            };
            serde_json::from_slice(line).map_err(wrong)
        };
        Ok(Self { entries: lines.map(entry).collect::<Result<_, _>>()?, hash })
    }

    /// BLAKE3 of the file; empty for an index without one.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The best matches in words, a line each; `None` when there are none.
    pub(super) fn search(&self, query: &str) -> Option<String> {
        let query = query.to_lowercase();
        let words: Vec<&str> = query.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let mut found: Vec<(usize, &CrateEntry)> =
            self.entries.iter().map(|entry| (score(entry, &words), entry)).filter(|(score, _)| *score > 0).collect();
        found.sort_by(|(a, x), (b, y)| (b, &x.name, &x.version).cmp(&(a, &y.name, &y.version)));
        let line = |(_, entry): &(usize, &CrateEntry)| {
            let text: String = entry.description.split_whitespace().collect::<Vec<_>>().join(" ");
            let text: String = text.chars().take(MAX_DESCRIPTION).collect();
            format!("{} {}: {text}\n", entry.name, entry.version)
        };
        let lines: String = found.iter().take(MAX_FOUND).map(line).collect();
        (!lines.is_empty()).then_some(lines)
    }
}

/// How well a crate answers: its name counts most, then keywords, then the description.
fn score(entry: &CrateEntry, words: &[&str]) -> usize {
    let name = entry.name.to_lowercase();
    let description = entry.description.to_lowercase();
    let one = |word: &&str| {
        let alike = name.replace('_', "-") == word.replace('_', "-");
        let keyword = entry.keywords.iter().any(|keyword| keyword.to_lowercase() == **word);
        let described = description.split(|c: char| !c.is_alphanumeric()).any(|part| part == *word);
        usize::from(alike) * 20
            + usize::from(name.contains(*word)) * 5
            + usize::from(keyword) * 4
            + usize::from(described)
    };
    words.iter().map(one).sum()
}

/// Makes an index out of the manifests of the crates that lie in a folder, a newest version of each.
///
/// # Errors
/// [`ExecutorError::Io`] when the folder cannot be listed. Folders without a manifest that names a crate are left out.
pub fn index_sources(folder: &Path) -> Result<String, ExecutorError> {
    let entries = std::fs::read_dir(folder).map_err(super::error::io("list", folder))?;
    let mut crates: Vec<CrateEntry> = entries.flatten().filter_map(|entry| from_manifest(&entry.path())).collect();
    crates.sort_by(|a, b| (&a.name, order(&b.version)).cmp(&(&b.name, order(&a.version))));
    crates.dedup_by(|later, first| later.name == first.name);
    let line = |entry: &CrateEntry| serde_json::to_string(entry).expect("texts become JSON") + "\n";
    Ok(crates.iter().map(line).collect())
}

fn from_manifest(folder: &Path) -> Option<CrateEntry> {
    let bytes = artifact::read_bounded(&folder.join("Cargo.toml"), MAX_MANIFEST_BYTES).ok()?;
    let manifest: toml::Table = std::str::from_utf8(&bytes).ok()?.parse().ok()?;
    let package = manifest.get("package")?;
    let text = |key: &str| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let keywords = package.get("keywords").and_then(toml::Value::as_array);
    let keywords = keywords.into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect();
    let description = text("description").unwrap_or_default();
    let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(CrateEntry { name: text("name")?, version: text("version")?, description, keywords })
}

/// Numbers of a version, to compare by.
fn order(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_found_by_name_and_words() {
        let root = tempfile::tempdir().unwrap();
        for (folder, name, version, words) in [
            ("a-1", "strsim", "0.9.0", "Old"),
            ("a-2", "strsim", "0.10.1", "String\\n similarity"),
            ("b", "jaro", "1.0.0", "similarity of names"),
            ("c", "other", "1.0.0", "nothing"),
        ] {
            let path = root.path().join(folder);
            std::fs::create_dir(&path).unwrap();
            let manifest = format!(
                "[package]\nname = \"{name}\"\nversion = \"{version}\"\ndescription = \"{words}\"\nkeywords = [\"k-{name}\"]\n"
            );
            std::fs::write(path.join("Cargo.toml"), manifest).unwrap();
        }
        std::fs::create_dir(root.path().join("empty")).unwrap();
        let text = index_sources(root.path()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        let path = root.path().join("index.jsonl");
        std::fs::write(&path, &text).unwrap();
        let index = CrateIndex::load(&path).unwrap();
        assert_eq!(
            index.search("similarity strsim").unwrap(),
            "strsim 0.10.1: String similarity\njaro 1.0.0: similarity of names\n"
        );
        assert_eq!(index.search("k-other").unwrap(), "other 1.0.0: nothing\n");
        assert_eq!(index.search("absent !"), None);
        std::fs::write(&path, format!("{text}{{\"name\":1}}\n")).unwrap();
        assert!(matches!(CrateIndex::load(&path), Err(ExecutorError::Index { line: 4, .. })));
    }
}
