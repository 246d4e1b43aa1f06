//! Folders of Parquet shards with a manifest: how every output of this crate lies on disk.
//!
//! ```text
//! NAME/manifest.json         format, version, metadata, and per shard: file name, rows, BLAKE3
//! NAME/shard-00000.parquet   bounded in size, zstd; the same metadata stands in its key-value metadata
//! ```
//!
//! A folder is built under a temporary name and renamed when complete, so it is whole or absent. Nothing in it depends
//! on the time, the machine or the number of threads: the same input gives the same bytes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// Name of the file that lists the shards.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Name of the file that every command leaves in its output folder.
pub(crate) const REPORT: &str = "report.json";
/// Key under which a shard's metadata stands in its Parquet footer.
const FOOTER_KEY: &str = "firebrick";
/// Shards beyond this size are not ours.
const MAX_SHARD_BYTES: u64 = 4 << 30;
/// Manifests beyond this size are not ours.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Rows per Arrow batch while reading.
const BATCH_ROWS: usize = 1024;

/// Format name and version of a kind of folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} version {}", self.name, self.version)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest<M> {
    format: String,
    version: u32,
    meta: M,
    n_rows: u64,
    shards: Vec<ShardFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardFile {
    file: String,
    rows: u64,
    hash: String,
}

/// The part of a manifest that says which manifest it is; read before the rest is believed.
#[derive(Deserialize)]
struct Header {
    format: Option<String>,
    version: Option<u32>,
}

/// An output folder under construction: a temporary sibling of its final place that vanishes unless committed.
#[derive(Debug)]
pub struct OutDir {
    tmp: PathBuf,
    dest: PathBuf,
    overwrite: bool,
    committed: bool,
    /// Parents that were not there before, the deepest first.
    made: Vec<PathBuf>,
}

impl OutDir {
    /// Starts the folder `dest`, whose parents are created; what an interrupted run left behind is removed.
    ///
    /// # Errors
    /// [`DataError::Exists`] when `dest` is there and `overwrite` is not set, [`DataError::NotOurs`] when it is set but
    /// `dest` has neither a manifest nor a report; [`DataError::Io`].
    pub fn create(dest: &Path, overwrite: bool) -> Result<Self> {
        if dest.symlink_metadata().is_ok() && !overwrite {
            return Err(DataError::Exists { path: dest.to_path_buf() });
        }
        if dest.exists() && ![MANIFEST, REPORT].iter().any(|name| dest.join(name).is_file()) {
            return Err(DataError::NotOurs { path: dest.to_path_buf() });
        }
        let tmp = sibling(dest, "partial");
        remove_if_there(&tmp)?;
        let parents = dest.ancestors().skip(1).take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let made = parents.map(Path::to_path_buf).collect();
        fs::create_dir_all(&tmp).map_err(DataError::io("create", &tmp))?;
        Ok(Self { tmp, dest: dest.to_path_buf(), overwrite, committed: false, made })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.tmp
    }

    /// Writes one file into the folder.
    ///
    /// # Errors
    /// [`DataError::Artifact`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(gates::artifact::write_atomic(&self.tmp.join(name), bytes)?)
    }

    /// Moves the folder to its final place.
    ///
    /// # Errors
    /// [`DataError::Artifact`] or [`DataError::Io`]; an old folder is put back if the new one cannot take its place.
    pub fn commit(mut self) -> Result<()> {
        let old = sibling(&self.dest, "old");
        let replaces = self.overwrite && self.dest.symlink_metadata().is_ok();
        if replaces {
            remove_if_there(&old)?;
            fs::rename(&self.dest, &old).map_err(DataError::io("move", &self.dest))?;
        }
        if let Err(error) = gates::artifact::commit_dir(&self.tmp, &self.dest) {
            if replaces {
                fs::rename(&old, &self.dest).map_err(DataError::io("move back", &old))?;
            }
            return Err(error.into());
        }
        self.committed = true;
        if replaces { remove_if_there(&old) } else { Ok(()) }
    }
}

impl Drop for OutDir {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a failure here, and the next run removes the folder.
            let _ = fs::remove_dir_all(&self.tmp);
            for parent in &self.made {
                // Fails, as it should, where something else has come into the folder.
                let _ = fs::remove_dir(parent);
            }
        }
    }
}

fn sibling(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{what}"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(DataError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Writes shards one after another into an existing folder, then the manifest.
pub(crate) struct ShardWriter {
    dir: PathBuf,
    format: Format,
    schema: SchemaRef,
    footer: String,
    shards: Vec<ShardFile>,
}

impl ShardWriter {
    /// A writer whose shards carry `footer` (JSON) in their key-value metadata.
    pub(crate) fn new(dir: &Path, format: Format, schema: SchemaRef, footer: &impl Serialize) -> Result<Self> {
        let footer = serde_json::to_string(footer).map_err(|source| DataError::Json { path: dir.into(), source })?;
        Ok(Self { dir: dir.into(), format, schema, footer, shards: Vec::new() })
    }

    /// Writes the next shard.
    pub(crate) fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let file = shard_name(self.shards.len());
        let path = self.dir.join(&file);
        let batch =
            RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(DataError::parquet("write", &path))?;
        let bytes = encode(&batch, &self.footer).map_err(DataError::parquet("write", &path))?;
        gates::artifact::write_atomic(&path, &bytes)?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        self.shards.push(ShardFile { file, rows: batch.num_rows() as u64, hash });
        Ok(())
    }

    /// Writes the manifest; returns its BLAKE3 (hex), the fingerprint of the folder.
    pub(crate) fn finish<M: Serialize>(self, meta: &M) -> Result<String> {
        let n_rows = self.shards.iter().map(|s| s.rows).sum();
        let Format { name, version } = self.format;
        let manifest = Manifest { format: name.into(), version, meta, n_rows, shards: self.shards };
        let path = self.dir.join(MANIFEST);
        let text = json_text(&path, &manifest)?;
        gates::artifact::write_atomic(&path, text.as_bytes())?;
        Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
    }
}

fn shard_name(idx: usize) -> String {
    format!("shard-{idx:05}.parquet")
}

/// Pretty JSON with a final line end.
pub(crate) fn json_text(path: &Path, value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|source| DataError::Json { path: path.into(), source })?;
    Ok(text + "\n")
}

fn encode(batch: &RecordBatch, footer: &str) -> Result<Vec<u8>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by("firebrick".to_owned())
        .set_key_value_metadata(Some(vec![KeyValue::new(FOOTER_KEY.to_owned(), footer.to_owned())]))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    writer.into_inner()
}

/// A folder whose manifest was read and whose shards were verified.
#[derive(Debug)]
pub(crate) struct Folder<M> {
    pub(crate) meta: M,
    pub(crate) fingerprint: String,
    pub(crate) n_rows: usize,
    shards: Vec<(PathBuf, u64)>,
}

impl<M: DeserializeOwned> Folder<M> {
    /// Reads the manifest and checks that exactly the listed shards are there, byte for byte.
    pub(crate) fn open(dir: &Path, format: Format) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = read_bounded(&path, "manifest bytes", MAX_MANIFEST_BYTES)?;
        let json = |source| DataError::Json { path: path.clone(), source };
        let header: Header = serde_json::from_slice(&text).map_err(json)?;
        let found = (header.format.as_deref().unwrap_or("no format"), header.version.unwrap_or(0));
        if found != (format.name, format.version) {
            let found = format!("{} version {}", found.0, found.1);
            return Err(DataError::WrongVersion { path, expected: format.to_string(), found });
        }
        let manifest: Manifest<M> = serde_json::from_slice(&text).map_err(json)?;
        let mut shards = Vec::new();
        for (i, shard) in manifest.shards.into_iter().enumerate() {
            // Names are ours by construction, so a manifest cannot point outside its folder.
            if shard.file != shard_name(i) {
                let expected = format!("{:?} as shard {i}", shard_name(i));
                return Err(DataError::WrongVersion { path, expected, found: format!("{:?}", shard.file) });
            }
            let file = dir.join(&shard.file);
            verify(&file, &shard.hash)?;
            shards.push((file, shard.rows));
        }
        refuse_unlisted(dir, &shards)?;
        let n_rows = shards.iter().map(|s| s.1).sum::<u64>() as usize;
        let fingerprint = blake3::hash(&text).to_hex().to_string();
        Ok(Self { meta: manifest.meta, fingerprint, n_rows, shards })
    }

    /// Hands every batch of every shard to `f`, in order.
    pub(crate) fn for_each(&self, schema: &Schema, mut f: impl FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
        for (path, rows) in &self.shards {
            let mut seen = 0;
            for batch in open_parquet(path)? {
                let batch = batch?;
                if batch.schema().fields() != schema.fields() {
                    let found = format!("{:?}", batch.schema().fields());
                    return Err(DataError::WrongFormat {
                        path: path.clone(),
                        expected: "this format's columns",
                        found,
                    });
                }
                seen += batch.num_rows() as u64;
                f(&batch)?;
            }
            if seen != *rows {
                let (expected, found) = (format!("{rows} rows"), format!("{seen} rows"));
                return Err(DataError::HashMismatch { path: path.clone(), expected, found });
            }
        }
        Ok(())
    }
}

/// The format that a folder's manifest names, or an empty text if it names none.
pub(crate) fn peek_format(dir: &Path) -> Result<String> {
    let path = dir.join(MANIFEST);
    let text = read_bounded(&path, "manifest bytes", MAX_MANIFEST_BYTES)?;
    let header: Header = serde_json::from_slice(&text).map_err(|source| DataError::Json { path, source })?;
    Ok(header.format.unwrap_or_default())
}

/// Whether a folder is one of ours, of any format.
pub(crate) fn has_manifest(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file()
}

/// Opens a Parquet file for reading in bounded batches.
pub(crate) fn open_parquet(path: &Path) -> Result<Batches> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let bytes = file.metadata().map_err(DataError::io("read", path))?.len();
    if bytes > MAX_SHARD_BYTES {
        let (what, limit) = ("file size in bytes", MAX_SHARD_BYTES);
        return Err(DataError::TooLarge { path: path.into(), what, found: bytes, limit });
    }
    let reader = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(BATCH_ROWS).build());
    Ok(Batches { path: path.into(), reader: Some(reader.map_err(DataError::parquet("open", path))?) })
}

/// The batches of a Parquet file; ends after the first error.
pub(crate) struct Batches {
    path: PathBuf,
    reader: Option<ParquetRecordBatchReader>,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let batch = guarded(|| reader.next().transpose().map_err(ParquetError::from)).transpose()?;
        if batch.is_err() {
            self.reader = None;
        }
        Some(batch.map_err(DataError::parquet("read", &self.path)))
    }
}

/// Runs a piece of the Parquet reader, which panics on some damaged files, and turns a panic into an error.
fn guarded<T>(f: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    // What a panic leaves half-done is dropped by the callers, so nobody sees it.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    caught.unwrap_or_else(|_| Err(ParquetError::General("the file is damaged, reading it panicked".into())))
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, what: &'static str, limit: u64) -> Result<Vec<u8>> {
    let found = fs::metadata(path).map_err(DataError::io("read", path))?.len();
    if found > limit {
        return Err(DataError::TooLarge { path: path.into(), what, found, limit });
    }
    fs::read(path).map_err(DataError::io("read", path))
}

fn verify(path: &Path, expected: &str) -> Result<()> {
    if !path.is_file() {
        return Err(DataError::MissingShard { path: path.into() });
    }
    let found = gates::artifact::hash_file(path)?;
    if found != expected {
        return Err(DataError::HashMismatch { path: path.into(), expected: expected.into(), found });
    }
    Ok(())
}

fn refuse_unlisted(dir: &Path, shards: &[(PathBuf, u64)]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let path = entry.map_err(DataError::io("list", dir))?.path();
        let parquet = path.extension().is_some_and(|e| e == "parquet");
        if parquet && !shards.iter().any(|(listed, _)| *listed == path) {
            return Err(DataError::UnlistedShard { path });
        }
    }
    Ok(())
}
