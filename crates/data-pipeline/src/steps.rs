//! The commands after ingest, as functions from folder to folder: train a tokenizer, tokenize, pack.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::documents::{TextFolder, TokenDocuments};
use crate::error::{DataError, Result};
use crate::folder::{OutDir, REPORT, peek_format};
use crate::progress;
use crate::report::{Report, Step};
use crate::rows::Source;
use crate::shard::{seq_len_dir, write_rows_into};
use crate::source::TextRecord;
use crate::tokenizer::{TOKENIZER_FILE, Tokenizer, tokenizer_config, train};

/// Longest row that can be packed.
pub const MAX_SEQ_LEN: usize = 1 << 20;

/// Trains a tokenizer on ingested text and writes `tokenizer.json`, `tokenizer_config.json` and `report.json`.
///
/// The input must be folders that `ingest` wrote, never raw files: what is learnt is text, not the bytes of a format.
///
/// # Errors
/// As [`TextFolder::open`] and [`train`].
pub fn train_tokenizer(
    inputs: &[PathBuf],
    vocab_size: usize,
    specials: &[&str],
    out: &Path,
    overwrite: bool,
) -> Result<Report> {
    let out = OutDir::create(out, overwrite)?;
    let (records, _) = read_text(inputs)?;
    let spinner = progress::spinner("train tokenizer");
    let tokenizer = train(records.iter().map(|r| r.text.as_str()), vocab_size, specials)?;
    spinner.finish_and_clear();
    let mut step = Step::new("train tokenizer");
    records.iter().for_each(|r| step.keep(r.text.len(), r.text.len()));
    step.notes.insert("tokens in the vocabulary".into(), tokenizer.vocab_size() as u64);
    let report = Report::new("train-tokenizer", vec![step]);
    out.write(TOKENIZER_FILE, tokenizer.json())?;
    out.write("tokenizer_config.json", tokenizer_config().as_bytes())?;
    out.write(REPORT, report.to_json(out.path())?.as_bytes())?;
    out.commit()?;
    Ok(report)
}

/// Encodes ingested text and writes a folder of token documents.
///
/// # Errors
/// As [`TextFolder::open`] and [`Tokenizer::load`].
pub fn tokenize(inputs: &[PathBuf], tokenizer: &Path, out: &Path, overwrite: bool) -> Result<Report> {
    let out = OutDir::create(out, overwrite)?;
    let tokenizer = Tokenizer::load(tokenizer)?;
    let (records, sources) = read_text(inputs)?;
    let (documents, step) = encode(&records, &sources, &tokenizer);
    let ids: Vec<&str> = records.iter().map(|r| r.id.as_str()).collect();
    documents.write_into(out.path(), &ids)?;
    let report = Report::new("tokenize", vec![step]);
    out.write(REPORT, report.to_json(out.path())?.as_bytes())?;
    out.commit()?;
    Ok(report)
}

/// Packs token documents, or ingested text together with a tokenizer, into rows of each of `seq_lens`, one folder per
/// length below `out` (see [`seq_len_dir`]).
///
/// # Errors
/// [`DataError::BadConfig`] for a length of 0 or 1 or beyond [`MAX_SEQ_LEN`], or without a tokenizer where one is
/// needed; as [`TokenDocuments::open`].
pub fn pack(
    inputs: &[PathBuf],
    tokenizer: Option<&Path>,
    seq_lens: &[usize],
    kind: &str,
    out: &Path,
    overwrite: bool,
) -> Result<Report> {
    if let Some(bad) = seq_lens.iter().find(|n| !(2..=MAX_SEQ_LEN).contains(*n)) {
        let expected = "from 2 (a row of 1 token predicts nothing) to 1048576";
        return Err(DataError::BadConfig { key: "seq_len", expected, found: bad.to_string() });
    }
    // All outputs are claimed before the work begins.
    let outs: Vec<OutDir> =
        seq_lens.iter().map(|&n| OutDir::create(&seq_len_dir(out, n), overwrite)).collect::<Result<_>>()?;
    let (documents, first_step) = open_documents(inputs, tokenizer)?;
    let mut steps: Vec<Step> = first_step.into_iter().collect();
    let bar = progress::items("pack", seq_lens.len() as u64);
    for (&seq_len, out) in seq_lens.iter().zip(&outs) {
        let (rows, meta) = documents.pack(seq_len, kind);
        write_rows_into(out.path(), &rows, &meta)?;
        out.write(TOKENIZER_FILE, documents.tokenizer().json())?;
        let mut step = Step::new(&format!("pack {seq_len} (tokens)"));
        (step.rows_in, step.rows_out) = (documents.documents().len() as u64, rows.len() as u64);
        step.bytes_in = documents.meta().n_tokens + step.rows_in;
        step.bytes_out = rows.iter().map(|r| r.n_used() as u64).sum();
        step.notes.insert("tokens of padding".into(), rows.len() as u64 * seq_len as u64 - step.bytes_out);
        step.notes.insert("documents cut into pieces".into(), longer(&documents, seq_len));
        out.write(REPORT, Report::new("pack", vec![step.clone()]).to_json(out.path())?.as_bytes())?;
        steps.push(step);
        bar.inc(1);
    }
    // None appears before all are complete, so that work that fails leaves no length behind.
    outs.into_iter().try_for_each(OutDir::commit)?;
    bar.finish_and_clear();
    Ok(Report::new("pack", steps))
}

fn longer(documents: &TokenDocuments, seq_len: usize) -> u64 {
    documents.documents().iter().filter(|d| d.len() >= seq_len).count() as u64
}

fn open_documents(inputs: &[PathBuf], tokenizer: Option<&Path>) -> Result<(TokenDocuments, Option<Step>)> {
    let bad = |expected, found: String| Err(DataError::BadConfig { key: "tokenizer", expected, found });
    match (inputs, tokenizer) {
        ([input], None) if peek_format(input)? != "firebrick-text" => Ok((TokenDocuments::open(input)?, None)),
        (_, None) => bad("a tokenizer, since the input is text", "none".into()),
        ([input], Some(path)) if peek_format(input)? != "firebrick-text" => {
            bad("none, since the input is tokens already", path.display().to_string())
        }
        (_, Some(path)) => {
            let (records, sources) = read_text(inputs)?;
            let (documents, step) = encode(&records, &sources, &Tokenizer::load(path)?);
            Ok((documents, Some(step)))
        }
    }
}

fn read_text(inputs: &[PathBuf]) -> Result<(Vec<TextRecord>, Vec<Source>)> {
    let (mut records, mut sources) = (Vec::new(), BTreeSet::new());
    for input in inputs {
        let folder = TextFolder::open(input)?;
        sources.extend(folder.meta().sources.iter().cloned());
        records.extend(folder.records()?);
    }
    Ok((records, sources.into_iter().collect()))
}

fn encode(records: &[TextRecord], sources: &[Source], tokenizer: &Tokenizer) -> (TokenDocuments, Step) {
    let spinner = progress::spinner("tokenize");
    let documents = TokenDocuments::encode(records, sources, tokenizer);
    spinner.finish_and_clear();
    let mut step = Step::new("tokenize");
    records.iter().for_each(|r| step.keep(r.text.len(), r.text.len()));
    step.notes.insert("tokens".into(), documents.meta().n_tokens);
    (documents, step)
}
