//! Plain UTF-8 text: a document per file, or per part between separator lines.

use std::path::Path;

use super::{Parts, SourceConfig, TextRecord};
use crate::error::{DataError, LineProblem, Result};
use crate::folder::read_bounded;

/// Largest text file.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// First bytes of formats that are sometimes mistaken for text.
const BINARY: [(&[u8], &str); 4] = [
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"PK\x03\x04", "a zip file"),
];

pub(super) fn read(path: &Path, source: &SourceConfig, push: &mut dyn FnMut(TextRecord) -> Result<()>) -> Result<()> {
    let bytes = read_bounded(path, "file size in bytes", MAX_TEXT_BYTES)?;
    let text = decode(path, &bytes)?;
    let Some(separator) = source.separator.as_deref().filter(|s| !s.is_empty()) else {
        return push(source.complete(path, 0, Parts { text: text.to_owned(), ..Parts::default() }));
    };
    for (i, part) in text.split(separator).enumerate() {
        if !part.trim().is_empty() {
            push(source.complete(path, i + 1, Parts { text: part.to_owned(), ..Parts::default() }))?;
        }
    }
    Ok(())
}

fn decode<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let wrong = |found: String| Err(DataError::WrongFormat { path: path.into(), expected: "plain text", found });
    if let Some((_, what)) = BINARY.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return wrong((*what).to_owned());
    }
    if let Some(at) = bytes.iter().position(|&b| b == 0) {
        return wrong(format!("a NUL byte at offset {at}"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        DataError::line(path, line, LineProblem::NotUtf8(before.len() - start))
    })
}
