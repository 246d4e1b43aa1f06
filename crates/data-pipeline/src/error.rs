//! The crate's one error type: what was being done, what was expected, what came, what to do next.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Everything that can go wrong between a source file and a token row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused a file operation.
    #[error("cannot {op} {}: {source}; check the path, its permissions and the free space", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `create`, `list`.
        op: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason given by the operating system.
        source: std::io::Error,
    },
    /// Hashing, an atomic write or a folder commit failed.
    #[error(transparent)]
    Artifact(#[from] gates::artifact::ArtifactError),
    /// A line of a text format is not usable.
    #[error("{}:{line}: {problem}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// Line (text formats) or row (Parquet), counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// Arrow or Parquet could not read or write a file.
    #[error("cannot {op} the Parquet file {}: {source}; make the file again from its source", path.display())]
    Parquet {
        /// What was tried, as a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The library's reason.
        source: parquet::errors::ParquetError,
    },
    /// A Parquet file lacks a column.
    #[error("{}: column `{column}` is missing, the file has {found:?}; rename the column or name it in the source's configuration", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column that was looked for.
        column: String,
        /// The columns that the file has.
        found: Vec<String>,
    },
    /// A Parquet column has another type.
    #[error("{}: column `{column}` must be {expected}, it is {found}; convert the column", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type that can be read.
        expected: &'static str,
        /// The type that came.
        found: String,
    },
    /// Something is larger than its limit.
    #[error("{}: {what} is {found}, the limit is {limit}; split the input", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What was measured, with its unit.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// A file holds another format than its reader expects.
    #[error("{}: expected {expected}, found {found}; choose the right `format` for this source", path.display())]
    WrongFormat {
        /// The file.
        path: PathBuf,
        /// What the reader accepts.
        expected: &'static str,
        /// What the file looks like.
        found: String,
    },
    /// A path matched no file that can be read.
    #[error("no input in {}: expected {expected}", path.display())]
    NoInput {
        /// The path.
        path: PathBuf,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A JSON file of ours does not have the expected form.
    #[error("cannot read {}: {source}; make the folder again with the command that wrote it", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A configuration file is not valid TOML or has unknown, duplicate or ill-typed keys.
    #[error("cannot read the configuration {}, line {line} `{text}`: {message}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the line begins with.
        text: String,
        /// The parser's reason.
        message: String,
    },
    /// A configuration value is out of range.
    #[error("configuration key `{key}`: expected {expected}, found {found}")]
    BadConfig {
        /// The key, with its table.
        key: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// A folder is of another format or of another version.
    #[error("{}: expected {expected}, found {found}; make the folder again with this build", path.display())]
    WrongVersion {
        /// The manifest.
        path: PathBuf,
        /// Format and version that this build reads.
        expected: String,
        /// Format and version that came.
        found: String,
    },
    /// A listed shard is not there.
    #[error("shard {} is listed in the manifest but missing; restore it or make the folder again", path.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
    },
    /// A file's content is not what was recorded.
    #[error("{}: content hash {found} differs from the recorded {expected}; restore the file or make it again", path.display())]
    HashMismatch {
        /// The file.
        path: PathBuf,
        /// The recorded hash.
        expected: String,
        /// The hash of what is on disk.
        found: String,
    },
    /// A folder holds a Parquet file that its manifest does not list.
    #[error("{} is not listed in the folder's manifest; move it away or make the folder again", path.display())]
    UnlistedShard {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to train on.
    #[error("{} holds no rows; training needs at least one", path.display())]
    Empty {
        /// The folder or file.
        path: PathBuf,
    },
    /// An output folder is already there.
    #[error("{} already exists; choose another output folder or pass --overwrite", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is to be replaced was not made by this crate.
    #[error("{} holds neither manifest.json nor report.json, so it is no output of this program and is not replaced; choose another folder", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// Rows for this sequence length were not packed.
    #[error("{} has no rows for seq_len {wanted}, only for {available:?}; run `data-pipeline pack --seq-len {wanted}`", root.display())]
    MissingSeqLen {
        /// The folder that holds one folder per sequence length.
        root: PathBuf,
        /// The length asked for.
        wanted: usize,
        /// The lengths that are there.
        available: Vec<usize>,
    },
    /// A row breaks a rule of the format.
    #[error("row {row}: {problem}")]
    BadRow {
        /// The row, from 0.
        row: usize,
        /// The rule and what came.
        problem: RowProblem,
    },
    /// Rows were made with another tokenizer than the one at hand.
    #[error("rows in {} were made with tokenizer {rows}, this run uses {run}; pack again with the run's tokenizer", path.display())]
    WrongTokenizer {
        /// The folder of rows.
        path: PathBuf,
        /// The hash stored with the rows.
        rows: String,
        /// The hash of the run's tokenizer.
        run: String,
    },
    /// A source's licence is not on the allow-list.
    #[error("source `{name}` has licence `{licence}`, which is not allowed ({}); remove the source or extend `licences.allow`", allowed.join(", "))]
    Licence {
        /// The source.
        name: String,
        /// Its licence.
        licence: String,
        /// The allow-list.
        allowed: Vec<String>,
    },
    /// Two documents of a source with one id.
    #[error(
        "source `{name}` has two documents with the id {id:?}; ids must be unique, because they decide the held-out split"
    )]
    DuplicateId {
        /// The source.
        name: String,
        /// The id.
        id: String,
    },
    /// A tokenizer file cannot be used.
    #[error("tokenizer {}: {problem}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: TokenizerProblem,
    },
    /// The tokenizer library failed while training.
    #[error("cannot train the tokenizer: {0}")]
    Training(TrainingProblem),
    /// No exercises can be derived from a sample.
    #[error("cannot derive exercises from {}: {problem}", path.display())]
    Recipe {
        /// The sample, or its file.
        path: PathBuf,
        /// What does not fit.
        problem: crate::recipe::RecipeProblem,
    },
    /// The thread that prepares batches stopped.
    #[error("the thread that prepares batches {0}; restart the run from its last checkpoint")]
    Prefetch(&'static str),
}

/// What can be wrong with one line or one record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// Bytes that are not UTF-8.
    #[error("not UTF-8 from byte {0} of the line on; convert the file to UTF-8")]
    NotUtf8(usize),
    /// A line beyond the cap.
    #[error("the line is longer than {0} bytes; one record per line, or raise `max_line_bytes`")]
    TooLong(usize),
    /// Not the JSON object that the reader expects.
    #[error("{0}")]
    Json(serde_json::Error),
    /// A field that must not be empty.
    #[error("`{0}` is empty; fill it or remove the record")]
    EmptyField(&'static str),
    /// A field that must be there.
    #[error("`{0}` is missing; add it to the record or give the source a default")]
    MissingField(&'static str),
    /// Two fields of which a record has one.
    #[error("`{0}` and `{1}` are both there; keep the one that is meant")]
    BothFields(&'static str, &'static str),
    /// A preference without a preference.
    #[error("`chosen` equals `rejected`; such a pair teaches nothing, remove it")]
    ChosenIsRejected,
    /// A conversation that would train nothing.
    #[error("no message has the role `assistant`, so no token would be trained; add the answer or remove the record")]
    NoAssistant,
    /// A prompt that ends with an answer.
    #[error("the prompt must end with a message of the role `user` or `tool`, it ends with `{0}`")]
    PromptEnd(&'static str),
    /// A system message that is not the first.
    #[error("message {0} has the role `system`; only the first message may have it")]
    LateSystem(usize),
    /// A role that does not exist.
    #[error("unknown role `{0}`, expected `system`, `user`, `assistant` or `tool`")]
    UnknownRole(String),
}

/// What can be wrong with one token row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// The three lists differ in length, or from `seq_len`.
    #[error("expected {seq_len} ids, segments and weights, found {ids}, {segments} and {weights}")]
    Lengths {
        /// The length of every row.
        seq_len: usize,
        /// Ids found.
        ids: usize,
        /// Segment ids found.
        segments: usize,
        /// Weights found.
        weights: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {position} has id {id}, the vocabulary has {vocab_size}")]
    Id {
        /// Position in the row.
        position: usize,
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: u32,
    },
    /// Segment ids that do not count 0, 1, 2, ... with the padding last.
    #[error("token {position} has segment {found} after {previous}; segments count up from 0 by one, padding is last")]
    Segment {
        /// Position in the row.
        position: usize,
        /// The segment id before it.
        previous: i64,
        /// Its segment id.
        found: u32,
    },
    /// A weight that is not finite, negative, or not 0 where no token can be predicted.
    #[error(
        "token {position} has weight {weight}; weights are finite, not negative, and 0 for padding and for the first token of a segment"
    )]
    Weight {
        /// Position in the row.
        position: usize,
        /// The weight.
        weight: f32,
    },
}

/// What can be wrong with a tokenizer file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerProblem {
    /// Not a tokenizer.json.
    #[error("not a tokenizer.json: {0}")]
    Json(serde_json::Error),
    /// A part of the tokenizer that this build does not run.
    #[error("{part} must be {expected}, it is {found}; only byte-level BPE with a known split pattern is accepted")]
    Unsupported {
        /// The part: `model`, `normalizer`, `pre_tokenizer`.
        part: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// A byte without a token.
    #[error("byte {0} has no token of its own, so some text could not be encoded")]
    MissingByte(u8),
    /// A token with characters outside the byte alphabet.
    #[error("token {0:?} is not written in the byte-level alphabet")]
    NotByteLevel(String),
    /// Two tokens with one id, or one token twice.
    #[error("token {token:?} with id {id} is there twice")]
    Duplicate {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
    },
    /// An id that is too large to be real.
    #[error("token id {0} is larger than the limit {1}")]
    IdTooLarge(u64, u32),
    /// A merge of tokens that are not in the vocabulary.
    #[error("merge {rank} ({left:?}, {right:?}) names a token that is not in the vocabulary")]
    Merge {
        /// The merge's place in the list.
        rank: usize,
        /// Left token.
        left: String,
        /// Right token.
        right: String,
    },
    /// A special token that the pipeline needs.
    #[error("the special token `{0}` is missing; train the tokenizer with this program or choose `end_of_text`")]
    MissingSpecial(String),
}

/// Why no tokenizer came out of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingProblem {
    /// A vocabulary that cannot hold the bytes and the special tokens.
    #[error("vocab_size {0} is too small, the 256 bytes and the special tokens need {1}")]
    VocabTooSmall(usize, usize),
    /// Too little text for the vocabulary asked for.
    #[error(
        "the text yields only {found} tokens, vocab_size asks for {wanted}; give more text or a smaller vocab_size"
    )]
    TooLittleText {
        /// The vocabulary that came out, special tokens included.
        found: usize,
        /// The vocabulary asked for.
        wanted: usize,
    },
    /// The library's own reason.
    #[error("{0}")]
    Library(String),
}

impl DataError {
    /// Wraps an operating-system error with what was tried and where.
    pub fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { op, path, source }
    }

    pub(crate) fn parquet<S: Into<parquet::errors::ParquetError>>(
        op: &'static str,
        path: &Path,
    ) -> impl FnOnce(S) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Parquet { op, path, source: source.into() }
    }

    pub(crate) fn line(path: &Path, line: usize, problem: LineProblem) -> Self {
        Self::BadLine { path: path.to_path_buf(), line, problem }
    }

    pub(crate) fn tokenizer(path: &Path, problem: TokenizerProblem) -> Self {
        Self::Tokenizer { path: path.to_path_buf(), problem }
    }
}
