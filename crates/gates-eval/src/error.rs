//! What can stop an evaluation. A model that scores badly is no error but a report.

use std::path::PathBuf;

/// An evaluation cannot be done, so there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model or its tokenizer.
    #[error(transparent)]
    Model(#[from] model_core::ModelError),
    /// The data.
    #[error(transparent)]
    Data(#[from] data_pipeline::DataError),
    /// Records that cannot be rendered.
    #[error(transparent)]
    Render(#[from] trainer::TrainError),
    /// A report.
    #[error(transparent)]
    Gate(#[from] gates::GateError),
    /// A file.
    #[error(transparent)]
    Artifact(#[from] gates::artifact::ArtifactError),
    /// The n-gram baseline.
    #[error(transparent)]
    Ngram(#[from] crate::baseline::ngram::NgramError),
    /// The compressor baseline.
    #[error(transparent)]
    Xz(#[from] crate::baseline::xz::XzError),
    /// A suite that is not valid TOML or has unknown, missing or ill-typed keys.
    #[error("cannot read the suite {}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and key.
        source: Box<toml::de::Error>,
    },
    /// A suite that reads but cannot be meant.
    #[error("suite {}: `{key}` must be {expected}, found {found}", path.display())]
    BadSuite {
        /// The file.
        path: PathBuf,
        /// The key, with the number of its task.
        key: String,
        /// What is accepted.
        expected: &'static str,
        /// What was written.
        found: String,
    },
    /// An item that the model's context does not hold.
    #[error(
        "task `{task}`, item {item}: {len} tokens, the model's context holds {max}; leave the item out or use a model with more context"
    )]
    TooLong {
        /// The task.
        task: String,
        /// The item, from 0.
        item: usize,
        /// Its tokens.
        len: usize,
        /// Tokens that fit.
        max: usize,
    },
    /// An item with nothing to score.
    #[error("task `{task}`, item {item}: {problem}")]
    BadItem {
        /// The task.
        task: String,
        /// The item, from 0.
        item: usize,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// Rows whose recorded text size is not that of their tokens.
    #[error(
        "task `{task}`: the rows record {recorded} bytes of predicted text, their tokens have {counted}; make the rows again with this build"
    )]
    TextBytes {
        /// The task.
        task: String,
        /// Bytes in the metadata.
        recorded: u64,
        /// Bytes of the tokens.
        counted: u64,
    },
}
