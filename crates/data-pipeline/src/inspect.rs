//! Shows what is in a folder of this crate: counts, hashes, licences, and one row as it will be seen in training.

use std::fmt::Write as _;
use std::path::Path;

use crate::documents::{TextFolder, TokenDocuments, open_tokenizer};
use crate::error::{DataError, Result};
use crate::folder::peek_format;
use crate::record_columns;
use crate::records::{Message, PreferenceRecord, Record, SftRecord, read_records};
use crate::rows::{Source, TokenRow};
use crate::shard::RowSet;
use crate::tokenizer::Tokenizer;

/// Characters of a text that are shown.
const SHOWN: usize = 2000;

/// Describes the folder `dir` and the row `row` of it, from 0.
///
/// In token rows every segment starts on its own line with `[segment, first token, tokens]`, and what is trained stands
/// between `⟦` and `⟧`; padding is counted, not shown.
///
/// # Errors
/// Whatever is wrong with the folder; [`DataError::BadConfig`] for a row that does not exist.
pub fn inspect(dir: &Path, row: usize) -> Result<String> {
    let shown = match peek_format(dir)?.as_str() {
        "firebrick-text" => text(dir, row),
        "firebrick-token-documents" => documents(dir, row),
        "firebrick-records" if record_columns::verify(dir)?.kind == SftRecord::KIND => records::<SftRecord>(dir, row),
        "firebrick-records" => records::<PreferenceRecord>(dir, row),
        // An unknown format is refused by the reader, which names what it found.
        _ => rows(dir, row),
    };
    shown.map(|text| printable(&text))
}

/// Text that cannot move a terminal's cursor or change its colours: control characters become U+FFFD.
pub fn printable(text: &str) -> String {
    let safe = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(safe).collect()
}

fn text(dir: &Path, row: usize) -> Result<String> {
    let folder = TextFolder::open(dir)?;
    let mut out = head("text", folder.fingerprint(), folder.n_documents(), &folder.meta().sources);
    line(&mut out, "split", &folder.meta().split);
    line(&mut out, "bytes of text", &folder.meta().text_bytes.to_string());
    let records = folder.records()?;
    let record = pick(&records, row)?;
    Ok(out + &format!("\n{} {} ({})\n{}\n", record.source, record.id, record.licence, shorten(&record.text)))
}

fn documents(dir: &Path, row: usize) -> Result<String> {
    let set = TokenDocuments::open(dir)?;
    let mut out = head("token documents", set.fingerprint(), set.documents().len(), &set.meta().sources);
    line(&mut out, "tokenizer", &set.meta().tokenizer_hash);
    line(&mut out, "vocabulary", &set.meta().vocab_size.to_string());
    line(&mut out, "tokens", &set.meta().n_tokens.to_string());
    line(&mut out, "bytes per token", &format!("{:.3}", ratio(set.meta().text_bytes, set.meta().n_tokens)));
    let ids = pick(set.documents(), row)?;
    let pieces: Vec<String> = ids.iter().map(|&id| set.tokenizer().decode(&[id])).collect();
    Ok(out + &format!("\n{}\n", shorten(&pieces.join("|"))))
}

fn rows(dir: &Path, row: usize) -> Result<String> {
    let set = RowSet::open(dir)?;
    let meta = set.meta();
    let mut out = head("token rows", set.fingerprint(), set.rows().len(), &meta.sources);
    line(&mut out, "kind", &meta.kind);
    line(&mut out, "tokenizer", &meta.tokenizer_hash);
    line(&mut out, "vocabulary", &meta.vocab_size.to_string());
    line(&mut out, "tokens per row", &meta.seq_len.to_string());
    let used: u64 = set.rows().iter().map(|r| r.n_used() as u64).sum();
    let trained: f64 = set.rows().iter().map(TokenRow::weight_sum).sum();
    let all = set.rows().len() as u64 * u64::from(meta.seq_len);
    line(&mut out, "tokens", &format!("{used}, {:.3} % padding", 100.0 * ratio(all - used, all)));
    line(&mut out, "weight of labels", &format!("{trained}"));
    line(&mut out, "bytes predicted", &meta.text_bytes.to_string());
    let tokenizer = open_tokenizer(dir, &meta.tokenizer_hash).ok();
    Ok(out + "\n" + &show_row(pick(set.rows(), row)?, tokenizer.as_ref()))
}

/// One line per segment; trained tokens in brackets.
fn show_row(row: &TokenRow, tokenizer: Option<&Tokenizer>) -> String {
    let mut out = String::new();
    let show = |id: u32| match tokenizer {
        Some(tokenizer) => tokenizer.decode(&[id]),
        None => format!(" {id}"),
    };
    for range in row.segment_ranges() {
        let _ = write!(out, "[segment {}, token {}, {} tokens] ", row.segments[range.start], range.start, range.len());
        let mut inside = false;
        for i in range {
            let trained = row.weights[i] > 0.0;
            if trained != inside {
                out.push(if trained { '⟦' } else { '⟧' });
                inside = trained;
            }
            out.push_str(&show(row.ids[i]).replace('\n', "⏎"));
        }
        out.push_str(if inside { "⟧\n" } else { "\n" });
    }
    let _ = writeln!(out, "[padding, {} tokens]", row.len() - row.n_used());
    out
}

fn records<R: Record>(dir: &Path, row: usize) -> Result<String> {
    let meta = record_columns::verify(dir)?;
    let set = read_records::<R>(dir)?;
    let mut out = head(&format!("{} records", R::KIND), &set.fingerprint, set.records.len(), &meta.sources);
    line(&mut out, "recipe", &meta.recipe);
    let (messages, texts) = pick(&set.records, row)?.to_parts();
    out.push('\n');
    for Message { role, content } in messages {
        let _ = writeln!(out, "{}: {}", role.as_str(), shorten(content));
    }
    for (name, text) in R::TEXT_COLUMNS.iter().zip(texts) {
        let _ = writeln!(out, "{name} = {}", shorten(text));
    }
    Ok(out)
}

fn head(what: &str, fingerprint: &str, n: usize, sources: &[Source]) -> String {
    let mut out = String::new();
    line(&mut out, "content", what);
    line(&mut out, "fingerprint", fingerprint);
    line(&mut out, "rows", &n.to_string());
    for Source { name, licence, hash } in sources {
        line(&mut out, "source", &format!("{name} ({licence}) {hash}"));
    }
    out
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:16} {value}");
}

fn pick<T>(items: &[T], row: usize) -> Result<&T> {
    items.get(row).ok_or_else(|| {
        let found = format!("{row} of {} rows, counted from 0", items.len());
        DataError::BadConfig { key: "row", expected: "a row that exists", found }
    })
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}… ({} bytes more)", &text[..at], text.len() - at),
        None => text.to_owned(),
    }
}

fn ratio(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}
