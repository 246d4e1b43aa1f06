//! Where text comes from: plain text, JSONL and Parquet files, read record by record with provenance and licence.

mod crates;
pub mod jsonl;
pub mod parquet;
pub mod text;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::split::SplitName;

/// One document with its provenance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextRecord {
    /// Unique within its source; decides about the held-out split.
    pub id: String,
    /// The text.
    pub text: String,
    /// Name of the source.
    pub source: String,
    /// Licence of the source, an SPDX expression.
    pub licence: String,
}

/// The formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceFormat {
    /// UTF-8 text: a document per file, or per part between separators.
    Text,
    /// One JSON object per line.
    Jsonl,
    /// A Parquet table.
    Parquet,
}

impl SourceFormat {
    fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["txt", "md", "rs"],
            Self::Jsonl => &["jsonl"],
            Self::Parquet => &["parquet"],
        }
    }

    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        [Self::Text, Self::Jsonl, Self::Parquet].into_iter().find(|f| f.extensions().contains(&extension))
    }
}

/// What a reader does with JSON fields that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtraFields {
    /// They are an error that names line and field.
    #[default]
    Refuse,
    /// They are skipped, for files made by others.
    Ignore,
}

/// One source of text, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the source, used for records that carry none of their own.
    pub name: String,
    /// Files, and folders whose files are read in the order of their names. Relative to the configuration file.
    pub paths: Vec<PathBuf>,
    /// Whether folders are read with the folders in them; a document's id is then its path from the folder's
    /// own name on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
    /// Whether the folders in `paths` are crates, each a source of its own under its own licence; see [`SourceConfig::expand`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub crates: bool,
    /// Crates that are left out: names, names of folders, or how these begin and `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// The format; without it the file extension decides.
    #[serde(default)]
    pub format: Option<SourceFormat>,
    /// Licence of records that carry none of their own.
    #[serde(default)]
    pub licence: Option<String>,
    /// BLAKE3 (hex) that the source must have; see [`source_hash`].
    #[serde(default)]
    pub hash: Option<String>,
    /// Column or JSON field of the text.
    #[serde(default = "text_name")]
    pub text_column: String,
    /// Column or JSON field of the id; a record without it gets `file:line`.
    #[serde(default = "id_name")]
    pub id_column: String,
    /// What happens to other JSON fields.
    #[serde(default)]
    pub extra_fields: ExtraFields,
    /// Text format: what stands between two documents of a file; without it a file is one document.
    #[serde(default)]
    pub separator: Option<String>,
    /// The part that all records belong to, for data that is split already; without it the id decides.
    #[serde(default)]
    pub split: Option<SplitName>,
    /// Whether the quality rules apply, to crates those for code: lists and dictionaries are no prose and would fail them.
    #[serde(default = "yes")]
    pub quality: bool,
    /// Longest accepted JSONL line.
    #[serde(default = "max_line_bytes")]
    pub max_line_bytes: usize,
}

fn text_name() -> String {
    "text".into()
}

fn id_name() -> String {
    "id".into()
}

fn yes() -> bool {
    true
}

/// Longest accepted JSONL line unless configured otherwise: 16 MiB.
pub fn max_line_bytes() -> usize {
    16 << 20
}

impl SourceConfig {
    /// A source with every setting at its default.
    pub fn new(name: &str, paths: Vec<PathBuf>, licence: Option<&str>) -> Self {
        Self {
            name: name.into(),
            paths,
            recursive: false,
            crates: false,
            skip: Vec::new(),
            format: None,
            licence: licence.map(str::to_owned),
            hash: None,
            text_column: text_name(),
            id_column: id_name(),
            extra_fields: ExtraFields::Refuse,
            separator: None,
            split: None,
            quality: true,
            max_line_bytes: max_line_bytes(),
        }
    }

    /// The sources to read: the source itself or, with `crates`, one for each crate in the folders of `paths`, as
    /// `cargo vendor --versioned-dirs` lays them out. Such a source has the crate's name and the licence of its `Cargo.toml`,
    /// and only its `.rs` files are read; crates without any are left out.
    ///
    /// # Errors
    /// [`DataError::NoInput`] for a path without crates, [`DataError::WrongFormat`] for a manifest that cannot be read,
    /// [`DataError::BadConfig`] for an entry of `skip` that names none of them.
    pub fn expand(&self) -> Result<Vec<Self>> {
        if self.crates { crates::expand(self) } else { Ok(vec![self.clone()]) }
    }

    /// The files of the source, in reading order, each with its format.
    ///
    /// # Errors
    /// [`DataError::NoInput`] for a path without a readable file.
    pub fn files(&self) -> Result<Vec<(PathBuf, SourceFormat)>> {
        let mut files = Vec::new();
        for path in &self.paths {
            let before = files.len();
            files.extend(self.found(path)?);
            if files.len() == before {
                let expected = "a .txt, .md, .rs, .jsonl or .parquet file, or a folder of them, or `format` to be set";
                return Err(DataError::NoInput { path: path.clone(), expected });
            }
        }
        Ok(files)
    }

    /// The files of one path.
    fn found(&self, path: &Path) -> Result<Vec<(PathBuf, SourceFormat)>> {
        let mut candidates = vec![path.to_path_buf()];
        if path.is_dir() {
            candidates.clear();
            list(path, self.recursive, &mut candidates)?;
            candidates.retain(|p| {
                SourceFormat::of(p).is_some() && (!self.crates || p.extension().is_some_and(|e| e == "rs"))
            });
            candidates.sort();
        } else if !path.exists() {
            return Err(DataError::io("open", path)(std::io::ErrorKind::NotFound.into()));
        }
        let with_format = candidates.into_iter().filter_map(|file| {
            let own = SourceFormat::of(&file);
            let format = self.format.or(own).filter(|&f| !path.is_dir() || own == Some(f))?;
            Some((file, format))
        });
        Ok(with_format.collect())
    }

    /// Hands every record to `push`, in a fixed order.
    ///
    /// # Errors
    /// Whatever is wrong with a file or a line of it, and what `push` returns.
    pub fn read(&self, push: &mut dyn FnMut(TextRecord) -> Result<()>) -> Result<()> {
        for (path, format) in self.files()? {
            match format {
                SourceFormat::Text => text::read(&path, self, push)?,
                SourceFormat::Jsonl => jsonl::read(&path, self, push)?,
                SourceFormat::Parquet => parquet::read(&path, self, push)?,
            }
        }
        Ok(())
    }

    /// Completes a record with the source's name and licence and a made-up id where it has none of its own.
    fn complete(&self, path: &Path, line: usize, parts: Parts) -> TextRecord {
        let within = |root: &PathBuf| {
            let within = path.strip_prefix(root).ok().filter(|within| !within.as_os_str().is_empty())?;
            Some(Path::new(root.file_name().unwrap_or_default()).join(within.with_extension("")).into_os_string())
        };
        let name = self.paths.iter().filter(|_| self.recursive).find_map(within);
        let name = name.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_os_string());
        let stem = name.to_string_lossy().into_owned();
        TextRecord {
            id: parts.id.unwrap_or_else(|| if line == 0 { stem.clone() } else { format!("{stem}:{line}") }),
            text: parts.text,
            source: parts.source.unwrap_or_else(|| self.name.clone()),
            licence: parts.licence.or_else(|| self.licence.clone()).unwrap_or_default(),
        }
    }
}

/// The files of a folder and, with `recursive`, of the folders in it; links to folders are not followed.
fn list(dir: &Path, recursive: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let entry = entry.map_err(DataError::io("list", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(DataError::io("list", dir))?);
        if kind.is_dir() && recursive {
            list(&path, recursive, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// What a reader found in one record.
#[derive(Debug, Default)]
struct Parts {
    id: Option<String>,
    text: String,
    source: Option<String>,
    licence: Option<String>,
}

/// BLAKE3 (hex) over the names and contents of a source's files, in reading order; checked against
/// [`SourceConfig::hash`] where that is set.
///
/// # Errors
/// [`DataError::HashMismatch`], and whatever listing and reading the files report.
pub fn source_hash(source: &SourceConfig) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (path, _) in source.files()? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        hasher.update(format!("{name}\n{}\n", gates::artifact::hash_file(&path)?).as_bytes());
    }
    let found = hasher.finalize().to_hex().to_string();
    match &source.hash {
        Some(expected) if *expected != found => {
            let path = source.paths.first().cloned().unwrap_or_default();
            Err(DataError::HashMismatch { path, expected: expected.clone(), found })
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests;
