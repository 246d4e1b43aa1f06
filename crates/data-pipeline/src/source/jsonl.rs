//! JSON lines: one object per line, with a cap on the line and errors that name file and line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{ExtraFields, Parts, SourceConfig, TextRecord, max_line_bytes};
use crate::error::{DataError, LineProblem, Result};

/// The non-empty lines of a file, with their numbers from 1.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
    max_bytes: usize,
}

impl Lines {
    fn open(path: &Path, max_bytes: usize) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io("open", path))?;
        Ok(Self { path: path.to_path_buf(), reader: BufReader::new(file), number: 0, max_bytes })
    }

    /// Reads the next line that is not blank into `line`; false at the end of the file.
    fn next(&mut self, line: &mut Vec<u8>) -> Result<bool> {
        loop {
            line.clear();
            // One byte more than allowed tells a line that is too long from one that just fits.
            let mut limited = (&mut self.reader).take(self.max_bytes as u64 + 2);
            let read = limited.read_until(b'\n', line).map_err(DataError::io("read", &self.path))?;
            self.number += 1;
            if read == 0 {
                return Ok(false);
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.len() > self.max_bytes {
                return Err(DataError::line(&self.path, self.number, LineProblem::TooLong(self.max_bytes)));
            }
            if let Err(error) = std::str::from_utf8(line) {
                return Err(DataError::line(&self.path, self.number, LineProblem::NotUtf8(error.valid_up_to())));
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(true);
            }
        }
    }
}

/// Typed records of a JSONL file: `(line number, record)`.
pub(crate) struct JsonLines<R> {
    lines: Lines,
    buffer: Vec<u8>,
    record: PhantomData<R>,
}

impl<R: DeserializeOwned> JsonLines<R> {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { lines: Lines::open(path, max_line_bytes())?, buffer: Vec::new(), record: PhantomData })
    }
}

impl<R: DeserializeOwned> Iterator for JsonLines<R> {
    type Item = Result<(usize, R)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.lines.next(&mut self.buffer) {
            Ok(false) => None,
            Ok(true) => Some(match serde_json::from_slice(&self.buffer) {
                Ok(record) => Ok((self.lines.number, record)),
                Err(e) => Err(DataError::line(&self.lines.path, self.lines.number, LineProblem::Json(e))),
            }),
            Err(error) => Some(Err(error)),
        }
    }
}

pub(super) fn read(path: &Path, source: &SourceConfig, push: &mut dyn FnMut(TextRecord) -> Result<()>) -> Result<()> {
    let mut lines = Lines::open(path, source.max_line_bytes)?;
    let mut line = Vec::new();
    while lines.next(&mut line)? {
        let parts = parse(source, &line).map_err(|e| DataError::line(path, lines.number, LineProblem::Json(e)))?;
        if parts.text.trim().is_empty() {
            return Err(DataError::line(path, lines.number, LineProblem::EmptyField("text")));
        }
        push(source.complete(path, lines.number, parts))?;
    }
    Ok(())
}

fn parse(source: &SourceConfig, line: &[u8]) -> Result<Parts, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let parts = Fields { source }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(parts)
}

/// Reads an object whose field names come from the configuration.
struct Fields<'a> {
    source: &'a SourceConfig,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Parts;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Parts, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Parts;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an object with the field `{}`", self.source.text_column)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
        let mut text = None;
        let mut parts = Parts::default();
        while let Some(key) = map.next_key::<String>()? {
            let slot = match key.as_str() {
                key if key == self.source.text_column => &mut text,
                key if key == self.source.id_column => &mut parts.id,
                "source" => &mut parts.source,
                "licence" => &mut parts.licence,
                _ if self.source.extra_fields == ExtraFields::Ignore => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => {
                    let hint = "set `extra_fields = \"ignore\"` for files with other fields";
                    return Err(A::Error::custom(format!("unknown field `{key}`; {hint}")));
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
        }
        parts.text = text.ok_or_else(|| A::Error::custom(format!("missing field `{}`", self.source.text_column)))?;
        Ok(parts)
    }
}
