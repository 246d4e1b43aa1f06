//! Documents on disk: cleaned text after ingest, token ids after tokenizing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{ArrayRef, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::folder::{Folder, Format, ShardWriter};
use crate::pack::{Overlong, Sequence, pack_rows};
use crate::rows::{ShardMeta, Source, TokenRow};
use crate::shard::{list_values, u32_field, u32_lists};
use crate::source::TextRecord;
use crate::tokenizer::{TOKENIZER_FILE, Tokenizer};

const TEXT: Format = Format { name: "firebrick-text", version: 1 };
const TOKENS: Format = Format { name: "firebrick-token-documents", version: 1 };
/// Text (bytes) or tokens in one shard at most, unless one document has more.
const SHARD_SIZE: usize = 16 << 20;
/// Documents in one shard at most.
const SHARD_ROWS: usize = 65_536;

/// What a folder of text says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextMeta {
    /// `train` or `heldout`.
    pub split: String,
    /// Where the text came from and under which terms.
    pub sources: Vec<Source>,
    /// UTF-8 bytes of all texts.
    pub text_bytes: u64,
}

/// Writes text records into a folder, shard by shard.
pub(crate) struct TextWriter {
    writer: ShardWriter,
    split: String,
    waiting: Vec<TextRecord>,
    waiting_bytes: usize,
    text_bytes: u64,
    sources: BTreeSet<Source>,
}

impl TextWriter {
    /// A writer into the existing folder `dir`.
    pub(crate) fn new(dir: &Path, split: &str) -> Result<Self> {
        let writer = ShardWriter::new(dir, TEXT, text_schema(), &serde_json::json!({ "split": split }))?;
        let (waiting, sources) = (Vec::new(), BTreeSet::new());
        Ok(Self { writer, split: split.to_owned(), waiting, waiting_bytes: 0, text_bytes: 0, sources })
    }

    /// Adds a record from files of the given hash.
    pub(crate) fn push(&mut self, record: TextRecord, hash: &str) -> Result<()> {
        let (name, licence) = (record.source.clone(), record.licence.clone());
        self.sources.insert(Source { name, licence, hash: hash.to_owned() });
        self.waiting_bytes += record.text.len();
        self.text_bytes += record.text.len() as u64;
        self.waiting.push(record);
        if self.waiting_bytes >= SHARD_SIZE || self.waiting.len() >= SHARD_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let column = |text: fn(&TextRecord) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(self.waiting.iter().map(text)))
        };
        let columns = vec![column(|r| &r.id), column(|r| &r.text), column(|r| &r.source), column(|r| &r.licence)];
        self.writer.write(columns)?;
        self.waiting.clear();
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Writes what is left and the manifest; returns the fingerprint.
    pub(crate) fn finish(mut self) -> Result<String> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        let sources = self.sources.into_iter().collect();
        self.writer.finish(&TextMeta { split: self.split, sources, text_bytes: self.text_bytes })
    }
}

/// A verified folder of text records, as `data-pipeline ingest` writes it.
#[derive(Debug)]
pub struct TextFolder {
    folder: Folder<TextMeta>,
}

impl TextFolder {
    /// Opens the folder; the text itself is read later.
    ///
    /// # Errors
    /// A missing, unlisted or changed shard, another format or version, no documents.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder: Folder<TextMeta> = Folder::open(dir, TEXT)?;
        if folder.n_rows == 0 {
            return Err(DataError::Empty { path: dir.to_path_buf() });
        }
        Ok(Self { folder })
    }

    /// What the folder says about itself.
    pub fn meta(&self) -> &TextMeta {
        &self.folder.meta
    }

    /// BLAKE3 (hex) of the manifest.
    pub fn fingerprint(&self) -> &str {
        &self.folder.fingerprint
    }

    /// Number of documents.
    pub fn n_documents(&self) -> usize {
        self.folder.n_rows
    }

    /// Hands every record to `f`, in order, a bounded number in memory at a time.
    ///
    /// # Errors
    /// What Parquet reports, and what `f` returns.
    pub fn for_each(&self, mut f: impl FnMut(TextRecord) -> Result<()>) -> Result<()> {
        self.folder.for_each(&text_schema(), |batch| {
            let columns: Vec<_> = batch.columns().iter().map(|c| c.as_string::<i32>()).collect();
            let cell = |column: usize, row| columns[column].value(row).to_owned();
            (0..batch.num_rows()).try_for_each(|row| {
                f(TextRecord { id: cell(0, row), text: cell(1, row), source: cell(2, row), licence: cell(3, row) })
            })
        })
    }

    /// All records.
    ///
    /// # Errors
    /// As [`TextFolder::for_each`].
    pub fn records(&self) -> Result<Vec<TextRecord>> {
        let mut records = Vec::with_capacity(self.n_documents());
        self.for_each(|record| {
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    }
}

fn text_schema() -> SchemaRef {
    let fields = ["id", "text", "source", "licence"].map(|name| Field::new(name, DataType::Utf8, false));
    Arc::new(Schema::new(fields.to_vec()))
}

/// What a folder of token documents says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenMeta {
    /// BLAKE3 (hex) of the `tokenizer.json` that made the ids; a copy lies in the folder.
    pub tokenizer_hash: String,
    /// Size of the vocabulary, special tokens included.
    pub vocab_size: u32,
    /// Where the text came from and under which terms.
    pub sources: Vec<Source>,
    /// All ids.
    pub n_tokens: u64,
    /// UTF-8 bytes of all texts.
    pub text_bytes: u64,
}

/// Documents as token ids, without end tokens, in memory.
#[derive(Debug)]
pub struct TokenDocuments {
    documents: Vec<Vec<u32>>,
    meta: TokenMeta,
    tokenizer: Tokenizer,
    fingerprint: String,
}

impl TokenDocuments {
    /// Opens a folder that `data-pipeline tokenize` wrote.
    ///
    /// # Errors
    /// A missing, unlisted or changed shard, another format or version, no documents, a tokenizer that is not the one
    /// that made the ids, ids outside its vocabulary.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder: Folder<TokenMeta> = Folder::open(dir, TOKENS)?;
        let tokenizer = open_tokenizer(dir, &folder.meta.tokenizer_hash)?;
        let mut documents = Vec::with_capacity(folder.n_rows.min(1 << 20));
        let vocab_size = tokenizer.vocab_size() as u32;
        folder.for_each(&token_schema(), |batch| {
            for row in 0..batch.num_rows() {
                let ids = list_values::<UInt32Type>(batch.column(1), row);
                if let Some(position) = ids.iter().position(|&id| id >= vocab_size) {
                    let problem = crate::error::RowProblem::Id { position, id: ids[position], vocab_size };
                    return Err(DataError::BadRow { row: documents.len(), problem });
                }
                documents.push(ids);
            }
            Ok(())
        })?;
        if documents.is_empty() {
            return Err(DataError::Empty { path: dir.to_path_buf() });
        }
        Ok(Self { documents, meta: folder.meta, tokenizer, fingerprint: folder.fingerprint })
    }

    /// Encodes text records.
    pub fn encode(records: &[TextRecord], sources: &[Source], tokenizer: &Tokenizer) -> Self {
        let texts: Vec<&str> = records.iter().map(|r| r.text.as_str()).collect();
        let documents = tokenizer.encode_batch(&texts);
        let meta = TokenMeta {
            tokenizer_hash: tokenizer.hash().to_owned(),
            vocab_size: tokenizer.vocab_size() as u32,
            sources: sources.to_vec(),
            n_tokens: documents.iter().map(|d| d.len() as u64).sum(),
            text_bytes: texts.iter().map(|t| t.len() as u64).sum(),
        };
        Self { documents, meta, tokenizer: tokenizer.clone(), fingerprint: String::new() }
    }

    /// The ids of each document.
    pub fn documents(&self) -> &[Vec<u32>] {
        &self.documents
    }

    /// What the folder says about itself.
    pub fn meta(&self) -> &TokenMeta {
        &self.meta
    }

    /// The tokenizer that made the ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// BLAKE3 (hex) of the manifest; empty for documents that were encoded in memory.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Writes the documents, named by `ids`, and the tokenizer into a folder that the caller commits.
    ///
    /// # Errors
    /// [`DataError::Artifact`] or [`DataError::Parquet`].
    ///
    /// # Panics
    /// If there are not as many names as documents.
    pub fn write_into(&self, dir: &Path, ids: &[&str]) -> Result<String> {
        assert_eq!(ids.len(), self.documents.len(), "every document needs a name");
        gates::artifact::write_atomic(&dir.join(TOKENIZER_FILE), self.tokenizer.json())?;
        let mut writer = ShardWriter::new(dir, TOKENS, token_schema(), &self.meta)?;
        let (mut start, mut tokens) = (0, 0);
        for end in 1..=self.documents.len() {
            tokens += self.documents[end - 1].len();
            if tokens >= SHARD_SIZE || end - start >= SHARD_ROWS || end == self.documents.len() {
                let names = StringArray::from_iter_values(&ids[start..end]);
                let lists = u32_lists(self.documents[start..end].iter().map(Vec::as_slice));
                writer.write(vec![Arc::new(names), Arc::new(lists)])?;
                (start, tokens) = (end, 0);
            }
        }
        writer.finish(&self.meta)
    }

    /// Packs the documents, each followed by the end-of-text token, into rows of `seq_len`: whole wherever they fit,
    /// cut into pieces where they are longer, nothing dropped. Every piece is a segment; all its tokens but the first
    /// are trained.
    pub fn pack(&self, seq_len: usize, kind: &str) -> (Vec<TokenRow>, ShardMeta) {
        let end = self.tokenizer.end_of_text();
        let with_end = |ids: &Vec<u32>| Sequence::supervised(ids.iter().copied().chain([end]).collect());
        let sequences: Vec<Sequence> = self.documents.iter().map(with_end).collect();
        let rows = pack_rows(&sequences, seq_len, Overlong::Split, end);
        let meta = ShardMeta {
            version: ShardMeta::VERSION,
            tokenizer_hash: self.meta.tokenizer_hash.clone(),
            vocab_size: self.meta.vocab_size,
            seq_len: seq_len as u32,
            sources: self.meta.sources.clone(),
            kind: kind.to_owned(),
            text_bytes: self.tokenizer.text_bytes(&rows),
        };
        (rows, meta)
    }
}

/// The tokenizer in `dir`, if its hash is the one that the folder's metadata names.
pub(crate) fn open_tokenizer(dir: &Path, hash: &str) -> Result<Tokenizer> {
    let path: PathBuf = dir.join(TOKENIZER_FILE);
    let tokenizer = Tokenizer::load(&path)?;
    if tokenizer.hash() != hash {
        let (expected, found) = (hash.to_owned(), tokenizer.hash().to_owned());
        return Err(DataError::HashMismatch { path, expected, found });
    }
    Ok(tokenizer)
}

fn token_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false), u32_field("ids")]))
}
