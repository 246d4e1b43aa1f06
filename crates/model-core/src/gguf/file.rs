//! The container: a header with typed keys, a list of tensors, then their bytes, each at a multiple of the alignment.
//!
//! # Source
//! The GGUF specification of the ggml project, version 3.

use std::io::{self, Write};

use super::blocks::Kind;

/// What tensors begin at multiples of; the format's default, so that no key says it.
pub(crate) const ALIGNMENT: usize = 32;
const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// Keys with their values, in the order of the file.
pub(crate) type Metadata = Vec<(String, Value)>;

/// What the list says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    /// Its name.
    pub(crate) name: String,
    /// Its shape, outermost dimension first; the file has them the other way round.
    pub(crate) shape: Vec<usize>,
    /// Its element type.
    pub(crate) kind: Kind,
}

impl Info {
    /// Numbers of a row.
    pub(crate) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes without padding.
    pub(crate) fn bytes(&self) -> usize {
        let rows: usize = self.shape[..self.shape.len().saturating_sub(1)].iter().product();
        rows * self.kind.row_bytes(self.columns())
    }
}

/// Everything before the tensors' bytes.
pub(crate) fn header(metadata: &Metadata, tensors: &[Info]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// Writes a tensor's bytes and what pads them.
pub(crate) fn put_tensor(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.write_all(&[0; ALIGNMENT][..bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()])
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const BOOL: u32 = 7;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let array = |out: &mut Vec<u8>, kind: u32, n: usize| {
        out.extend(kind.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
    };
    let kind = match value {
        Value::U32(_) => U32,
        Value::F32(_) => F32,
        Value::Bool(_) => BOOL,
        Value::Text(_) => TEXT,
        Value::Texts(_) | Value::I32s(_) => ARRAY,
    };
    out.extend(kind.to_le_bytes());
    match value {
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::Text(text) => put_text(out, text),
        Value::Texts(texts) => {
            array(out, TEXT, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::I32s(values) => {
            array(out, I32, values.len());
            values.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}
