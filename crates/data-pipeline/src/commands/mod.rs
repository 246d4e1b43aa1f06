//! The subcommands: arguments, one call into the library, the report to standard error.

mod derive;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use data_pipeline::ingest::{IngestConfig, ingest};
use data_pipeline::report::Report;
use data_pipeline::source::{SourceConfig, SourceFormat};
use data_pipeline::tokenizer::{HARMONY_TOKENS, SPECIAL_TOKENS};
use data_pipeline::{inspect, steps};

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Read sources, check licences, clean, filter, deduplicate and split them: OUT/train and OUT/heldout
    Ingest(Ingest),
    /// Train a byte-level BPE tokenizer on ingested text
    TrainTokenizer(TrainTokenizer),
    /// Encode ingested text as token documents
    Tokenize(Tokenize),
    /// Pack token documents (or ingested text, with a tokenizer) into rows: OUT/seq-N for every length N
    Pack(Pack),
    /// Derive exercises for SFT, preference training and measuring from the text sample
    Derive(derive::Derive),
    /// Show what is in a folder of text, token documents, token rows or records
    Inspect(Inspect),
}

/// Arguments of `ingest`.
#[derive(Args)]
pub(crate) struct Ingest {
    /// TOML file with sources and rules; paths in it are relative to it
    #[arg(long, conflicts_with_all = ["input", "source", "licence"], required_unless_present = "input")]
    config: Option<PathBuf>,
    /// File or folder of text, JSONL or Parquet, without a configuration file
    #[arg(long, num_args = 1.., requires = "source", requires = "licence")]
    input: Vec<PathBuf>,
    /// Name of the source of --input
    #[arg(long)]
    source: Option<String>,
    /// Licence of --input, an SPDX identifier
    #[arg(long)]
    licence: Option<String>,
    /// Format of --input; without it the file extension decides
    #[arg(long, value_parser = format)]
    format: Option<SourceFormat>,
    #[command(flatten)]
    out: Out,
}

/// Where the result goes.
#[derive(Args)]
pub(crate) struct Out {
    /// Folder to make
    #[arg(long)]
    out: PathBuf,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
}

/// Arguments of `train-tokenizer`.
#[derive(Args)]
pub(crate) struct TrainTokenizer {
    /// Folders of ingested text
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Size of the vocabulary, the 256 bytes and the special tokens included
    #[arg(long)]
    vocab_size: usize,
    /// Chat format whose control tokens the vocabulary gets
    #[arg(long, value_enum, default_value_t = ChatTokens::Chatml)]
    chat: ChatTokens,
    #[command(flatten)]
    out: Out,
}

/// Whose control tokens.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ChatTokens {
    /// ChatML, 3 tokens with the end of text
    Chatml,
    /// Harmony, the format of GPT-OSS, 8 tokens with the end of text
    Harmony,
}

impl ChatTokens {
    fn tokens(self) -> &'static [&'static str] {
        match self {
            Self::Chatml => &SPECIAL_TOKENS,
            Self::Harmony => &HARMONY_TOKENS,
        }
    }
}

/// Arguments of `tokenize`.
#[derive(Args)]
pub(crate) struct Tokenize {
    /// Folders of ingested text
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Tokenizer: a tokenizer.json, or a folder with one
    #[arg(long)]
    tokenizer: PathBuf,
    #[command(flatten)]
    out: Out,
}

/// Arguments of `pack`.
#[derive(Args)]
pub(crate) struct Pack {
    /// A folder of token documents, or folders of ingested text
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Tokenizer, for ingested text
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Tokens per row; several lengths separated by commas
    #[arg(long, required = true, value_delimiter = ',')]
    seq_len: Vec<usize>,
    /// What the rows are for, kept in their metadata
    #[arg(long, default_value = "pretrain")]
    kind: String,
    #[command(flatten)]
    out: Out,
}

/// Arguments of `inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// The folder
    dir: PathBuf,
    /// Row to show, from 0
    #[arg(long, default_value_t = 0)]
    row: usize,
}

fn format(name: &str) -> Result<SourceFormat, String> {
    match name {
        "text" => Ok(SourceFormat::Text),
        "jsonl" => Ok(SourceFormat::Jsonl),
        "parquet" => Ok(SourceFormat::Parquet),
        _ => Err("expected text, jsonl or parquet".into()),
    }
}

impl Command {
    /// Runs the subcommand.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Ingest(args) => finish(&ingest(&args.config()?, &args.out.out, args.out.overwrite)?),
            Self::TrainTokenizer(TrainTokenizer { input, vocab_size, chat, out }) => {
                finish(&steps::train_tokenizer(input, *vocab_size, chat.tokens(), &out.out, out.overwrite)?)
            }
            Self::Tokenize(Tokenize { input, tokenizer, out }) => {
                finish(&steps::tokenize(input, tokenizer, &out.out, out.overwrite)?)
            }
            Self::Pack(Pack { input, tokenizer, seq_len, kind, out }) => {
                finish(&steps::pack(input, tokenizer.as_deref(), seq_len, kind, &out.out, out.overwrite)?)
            }
            Self::Derive(args) => args.run(),
            Self::Inspect(Inspect { dir, row }) => print(&inspect::inspect(dir, *row)?),
        }
    }
}

impl Ingest {
    fn config(&self) -> anyhow::Result<IngestConfig> {
        if let Some(path) = &self.config {
            return Ok(IngestConfig::load(path)?);
        }
        let name = self.source.as_deref().context("--source names the source of --input")?;
        let mut source = SourceConfig::new(name, self.input.clone(), self.licence.as_deref());
        source.format = self.format;
        Ok(IngestConfig::new(vec![source]))
    }
}

/// Prints a report as a table to standard error; the same numbers are in `report.json`.
pub(crate) fn finish(report: &Report) -> anyhow::Result<()> {
    Ok(write!(std::io::stderr(), "{report}")?)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
