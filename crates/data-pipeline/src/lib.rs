//! Text to token rows: ingest, clean, filter, deduplicate, tokenize, pack, load.
//!
//! ```text
//! files ─ source ─ clean ─ quality ─ dedup ─ decontaminate ─ split ─▶ text records ─ tokenizer ─▶ token documents ─ pack ─▶ token rows ─ loader
//! ```
//!
//! Every output is a folder of Parquet shards with a manifest of hashes, sources and licences, written under a
//! temporary name and renamed when complete. The same input gives the same bytes, on any number of threads.
//! No model and no tensor is known here.

pub mod clean;
pub mod code;
pub mod decontaminate;
pub mod dedup;
mod documents;
mod error;
mod folder;
pub mod ingest;
pub mod inspect;
pub mod licence;
mod loader;
pub mod pack;
mod progress;
pub mod quality;
pub mod recipe;
mod record_columns;
pub mod records;
pub mod report;
mod rows;
mod shard;
pub mod source;
pub mod split;
pub mod steps;
pub mod tokenizer;

pub use documents::{TextFolder, TextMeta, TokenDocuments, TokenMeta};
pub use error::{DataError, LineProblem, Result, RowProblem, TokenizerProblem, TrainingProblem};
pub use folder::OutDir;
pub use loader::{Order, Prefetch};
pub use pack::{Overlong, Piece, Sequence, pack_best_fit, pack_rows};
pub use record_columns::{RecordMeta, write_records, write_records_into};
pub use rows::{PADDING_SEGMENT, ShardMeta, Source, TokenRow};
pub use shard::{RowSet, Written, available_seq_lens, seq_len_dir, write_rows, write_rows_into};
pub use tokenizer::Tokenizer;
