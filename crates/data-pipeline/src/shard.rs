//! Token rows on disk: written once, opened only when whole, unchanged and of this version.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder, UInt32Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type};
use arrow_array::{ArrayRef, ArrowPrimitiveType, ListArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use crate::error::{DataError, Result};
use crate::folder::{Folder, Format, OutDir, ShardWriter};
use crate::rows::{ShardMeta, TokenRow};

const FORMAT: Format = Format { name: "firebrick-token-rows", version: ShardMeta::VERSION };
/// Tokens in one shard at most, unless a single row has more.
const SHARD_TOKENS: usize = 4 << 20;

/// Rows of one folder, verified and in memory.
#[derive(Debug)]
pub struct RowSet {
    rows: Vec<TokenRow>,
    meta: ShardMeta,
    fingerprint: String,
    dir: PathBuf,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// BLAKE3 (hex) of the folder's manifest, which lists the hash of every shard.
    pub fingerprint: String,
    /// Number of rows.
    pub n_rows: usize,
}

impl RowSet {
    /// Opens a folder of token rows.
    ///
    /// # Errors
    /// A missing or unlisted shard, another version, a hash mismatch, a row that breaks the format's rules, no rows at
    /// all, and whatever the operating system or Parquet report.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder: Folder<ShardMeta> = Folder::open(dir, FORMAT)?;
        let (seq_len, vocab_size) = (folder.meta.seq_len as usize, folder.meta.vocab_size);
        let mut rows = Vec::with_capacity(folder.n_rows.min(1 << 20));
        folder.for_each(&schema(), |batch| {
            for row in 0..batch.num_rows() {
                let row = TokenRow {
                    ids: list_values::<UInt32Type>(batch.column(0), row),
                    segments: list_values::<UInt32Type>(batch.column(1), row),
                    weights: list_values::<Float32Type>(batch.column(2), row),
                };
                row.check(rows.len(), seq_len, vocab_size)?;
                rows.push(row);
            }
            Ok(())
        })?;
        if rows.is_empty() {
            return Err(DataError::Empty { path: dir.to_path_buf() });
        }
        Ok(Self { rows, meta: folder.meta, fingerprint: folder.fingerprint, dir: dir.to_path_buf() })
    }

    /// Opens the rows of one sequence length below `root`, which holds one folder per length, see [`seq_len_dir`].
    ///
    /// # Errors
    /// [`DataError::MissingSeqLen`] lists the lengths that are there; there is no fallback to another length.
    pub fn open_seq_len(root: &Path, seq_len: usize) -> Result<Self> {
        let dir = seq_len_dir(root, seq_len);
        if !dir.is_dir() {
            let available = available_seq_lens(root)?;
            return Err(DataError::MissingSeqLen { root: root.to_path_buf(), wanted: seq_len, available });
        }
        let set = Self::open(&dir)?;
        if set.meta.seq_len as usize != seq_len {
            let (expected, found) = (format!("rows of {seq_len} tokens"), format!("rows of {}", set.meta.seq_len));
            return Err(DataError::WrongVersion { path: dir, expected, found });
        }
        Ok(set)
    }

    /// The rows, in the order of the shards.
    pub fn rows(&self) -> &[TokenRow] {
        &self.rows
    }

    /// What the folder says about itself.
    pub fn meta(&self) -> &ShardMeta {
        &self.meta
    }

    /// BLAKE3 (hex) of the manifest: equal exactly when metadata and every shard are equal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Checks that the rows were made with the tokenizer of this hash.
    ///
    /// # Errors
    /// [`DataError::WrongTokenizer`] with both hashes.
    pub fn require_tokenizer(&self, hash: &str) -> Result<()> {
        if self.meta.tokenizer_hash == hash {
            return Ok(());
        }
        let (rows, run) = (self.meta.tokenizer_hash.clone(), hash.to_owned());
        Err(DataError::WrongTokenizer { path: self.dir.clone(), rows, run })
    }
}

/// The folder of one sequence length below `root`: `root/seq-512`.
pub fn seq_len_dir(root: &Path, seq_len: usize) -> PathBuf {
    root.join(format!("seq-{seq_len}"))
}

/// The sequence lengths that have a folder below `root`, rising.
///
/// # Errors
/// [`DataError::Io`] when `root` cannot be listed.
pub fn available_seq_lens(root: &Path) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(DataError::io("list", root))? {
        let name = entry.map_err(DataError::io("list", root))?.file_name();
        let seq_len: Option<usize> = name.to_str().and_then(|n| n.strip_prefix("seq-")).and_then(|n| n.parse().ok());
        found.extend(seq_len);
    }
    found.sort_unstable();
    Ok(found)
}

/// Writes rows as a new folder, atomically.
///
/// # Errors
/// [`DataError::Exists`] when `dir` is there, [`DataError::Empty`] without rows, [`DataError::BadRow`] for a row that
/// breaks the format's rules; nothing is left behind.
pub fn write_rows(dir: &Path, rows: &[TokenRow], meta: &ShardMeta) -> Result<Written> {
    let out = OutDir::create(dir, false)?;
    let written = write_rows_into(out.path(), rows, meta)?;
    out.commit()?;
    Ok(written)
}

/// Writes rows into a folder that the caller commits.
///
/// # Errors
/// As [`write_rows`].
pub fn write_rows_into(dir: &Path, rows: &[TokenRow], meta: &ShardMeta) -> Result<Written> {
    if rows.is_empty() {
        return Err(DataError::Empty { path: dir.to_path_buf() });
    }
    for (i, row) in rows.iter().enumerate() {
        row.check(i, meta.seq_len as usize, meta.vocab_size)?;
    }
    let per_shard = (SHARD_TOKENS / (meta.seq_len as usize).max(1)).max(1);
    let mut writer = ShardWriter::new(dir, FORMAT, schema(), meta)?;
    for rows in rows.chunks(per_shard) {
        writer.write(columns(rows))?;
    }
    let fingerprint = writer.finish(meta)?;
    Ok(Written { fingerprint, n_rows: rows.len() })
}

fn item(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, false))
}

/// A column of lists of u32.
pub(crate) fn u32_field(name: &str) -> Field {
    Field::new(name, DataType::List(item(DataType::UInt32)), false)
}

fn schema() -> SchemaRef {
    let weights = Field::new("weights", DataType::List(item(DataType::Float32)), false);
    Arc::new(Schema::new(vec![u32_field("ids"), u32_field("segments"), weights]))
}

fn columns(rows: &[TokenRow]) -> Vec<ArrayRef> {
    let mut weights = ListBuilder::new(Float32Builder::new()).with_field(item(DataType::Float32));
    for row in rows {
        weights.values().append_slice(&row.weights);
        weights.append(true);
    }
    let ids = u32_lists(rows.iter().map(|r| &r.ids[..]));
    let segments = u32_lists(rows.iter().map(|r| &r.segments[..]));
    vec![Arc::new(ids), Arc::new(segments), Arc::new(weights.finish())]
}

/// The values of such a column.
pub(crate) fn u32_lists<'a>(lists: impl Iterator<Item = &'a [u32]>) -> ListArray {
    let mut builder = ListBuilder::new(UInt32Builder::new()).with_field(item(DataType::UInt32));
    for list in lists {
        builder.values().append_slice(list);
        builder.append(true);
    }
    builder.finish()
}

/// The values of one list of a list column whose type the schema check has established.
pub(crate) fn list_values<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Vec<T::Native> {
    let values = column.as_list::<i32>().value(row);
    values.as_primitive::<T>().values().to_vec()
}

#[cfg(test)]
mod tests;
