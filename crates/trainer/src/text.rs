//! Labelled rows for a model, wherever they come from: packed token rows, or conversations that are rendered now.

use std::path::Path;

use data_pipeline::{RowSet, TokenRow};
use model_core::{ModelConfig, Tokenizer};

use crate::TrainError;
use crate::batch::check_vocab;
use crate::render::{ChatKeys, ChatRenderer, ChatRows};
use crate::run::tokenizer_hash;

/// Rows of one length that fit a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRows {
    /// The rows.
    pub rows: Vec<TokenRow>,
    /// Hash of everything that decides them.
    pub fingerprint: String,
    /// UTF-8 bytes of the predicted tokens, where they are known.
    pub text_bytes: Option<u64>,
}

impl TextRows {
    /// Opens a folder with packed rows of `seq_len` tokens, or renders a file of conversations into such rows, for the model
    /// in the folder `model_dir`.
    ///
    /// # Errors
    /// Rows of another length, tokenizer or vocabulary; records as [`ChatRenderer::conversations`].
    pub fn open(
        path: &Path,
        model_dir: &Path,
        chat: &ChatKeys,
        seq_len: usize,
        model: &ModelConfig,
    ) -> Result<Self, TrainError> {
        let rows = if path.is_file() {
            let tokenizer = Tokenizer::load(model_dir)?;
            let renderer = ChatRenderer::new(chat, &tokenizer, model)?;
            let ChatRows { rows, fingerprint } = renderer.conversations(path, seq_len)?;
            Self { rows, fingerprint, text_bytes: None }
        } else {
            let set = RowSet::open_seq_len(path, seq_len)?;
            set.require_tokenizer(&tokenizer_hash(model_dir)?)?;
            let (fingerprint, text_bytes) = (set.fingerprint().to_owned(), Some(set.meta().text_bytes));
            Self { rows: set.rows().to_vec(), fingerprint, text_bytes }
        };
        check_vocab(&path.display().to_string(), &rows.rows, model)?;
        Ok(rows)
    }
}
