//! safetensors files under limits of our own, checked before and after the format's library sees them.
//!
//! Files are read, never mapped, tensor by tensor: a file that shrinks meanwhile is an error instead of a signal, and a
//! model needs no second copy of itself in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::config_json::FloatType;
use crate::error::ModelError;

/// Largest header that is read.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Largest number of tensors in one file.
pub const MAX_TENSORS: usize = 100_000;
/// Largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Longest name of a tensor.
pub const MAX_NAME_BYTES: usize = 512;

/// Bytes of the header's length at the beginning of a file.
const LENGTH_BYTES: u64 = 8;
/// Name of the header's entry that is not a tensor.
const METADATA_KEY: &str = "__metadata__";
/// Values converted at a time while writing.
const WRITE_CHUNK: usize = 1 << 16;

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Values of a tensor to be written.
#[derive(Clone, Copy, Debug)]
pub enum Values<'v> {
    /// Floating point values, stored in the file's float type.
    Float(&'v [f32]),
    /// Whole numbers, stored as they are.
    Int(&'v [i64]),
    /// Packed words, stored as they are, as I32.
    Words(&'v [i32]),
    /// Packed bytes, stored as they are, as U8.
    Bytes(&'v [u8]),
}

impl TensorFile {
    /// Opens `path` and checks its header against the format and the limits of this module.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Safetensors`].
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { action: "read", path: path.to_path_buf(), source };
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(broken(path, "a regular file", "something else"));
        }
        let mut file = File::open(path).map_err(io)?;
        let header = read_header(path, &mut file, metadata.len())?;
        check_names(path, &header)?;
        let data_start = LENGTH_BYTES + header.len() as u64;
        let parsed: Metadata = serde_json::from_slice(&header)
            .map_err(|error| broken(path, "a header with shapes and offsets that fit", error))?;
        let (has, wants) = (metadata.len() - data_start, parsed.data_len() as u64);
        if has != wants {
            return Err(broken(path, format!("{wants} bytes of tensors"), format!("{has} (truncated or extended)")));
        }
        let tensors: BTreeMap<_, _> = parsed.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        if let Some((name, info)) = tensors.iter().find(|(_, info)| info.shape.len() > MAX_RANK) {
            let got = format!("{} for tensor `{name}`", info.shape.len());
            return Err(broken(path, format!("at most {MAX_RANK} dimensions"), got));
        }
        Ok(TensorFile { path: path.to_path_buf(), file, data_start, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`].
    pub fn shape(&self, name: &str) -> Result<&[usize], ModelError> {
        Ok(&self.info(name)?.shape)
    }

    /// Element type of a tensor, as the format spells it.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`].
    pub fn dtype(&self, name: &str) -> Result<String, ModelError> {
        Ok(self.info(name)?.dtype.to_string())
    }

    /// Reads an F32, BF16 or F16 tensor as f32.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`], [`ModelError::TensorDtype`], [`ModelError::Io`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let info = self.info(name)?;
        let n = info.shape.iter().product();
        match info.dtype {
            Dtype::F32 => self.read_values::<f32>(info, n),
            Dtype::BF16 => Ok(widen(&self.read_values::<u16>(info, n)?, |bits| bf16::from_bits(bits).to_f32())),
            Dtype::F16 => Ok(widen(&self.read_values::<u16>(info, n)?, |bits| f16::from_bits(bits).to_f32())),
            other => Err(self.wrong_type(name, "F32, BF16 or F16", other)),
        }
    }

    /// Reads an F32, BF16 or F16 tensor of a known shape as f32 and refuses values that are not finite.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`], [`ModelError::TensorShape`], and without `allow_non_finite`
    /// [`ModelError::TensorNonFinite`].
    pub fn read_weight(&self, name: &str, shape: &[usize], allow_non_finite: bool) -> Result<Vec<f32>, ModelError> {
        self.expect_shape(name, shape)?;
        let values = self.read_f32(name)?;
        self.expect_finite(name, &values, allow_non_finite)?;
        Ok(values)
    }

    /// Refuses values of tensor `name` that are not finite.
    pub(super) fn expect_finite(&self, name: &str, values: &[f32], allow_non_finite: bool) -> Result<(), ModelError> {
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) if !allow_non_finite => {
                let (path, value) = (self.path.clone(), values[index]);
                Err(ModelError::TensorNonFinite { path, tensor: name.to_owned(), index, value })
            }
            _ => Ok(()),
        }
    }

    /// Reads an I64 or I32 tensor.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`], [`ModelError::TensorDtype`], [`ModelError::Io`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        let info = self.info(name)?;
        let n = info.shape.iter().product();
        match info.dtype {
            Dtype::I64 => self.read_values::<i64>(info, n),
            Dtype::I32 => Ok(self.read_values::<i32>(info, n)?.into_iter().map(i64::from).collect()),
            other => Err(self.wrong_type(name, "I64 or I32", other)),
        }
    }

    /// Reads an I32 tensor of a known length.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`], [`ModelError::TensorDtype`], [`ModelError::TensorShape`], [`ModelError::Io`].
    pub fn read_words(&self, name: &str, n: usize) -> Result<Vec<i32>, ModelError> {
        let info = self.info(name)?;
        if info.shape != [n] {
            let (path, tensor, got) = (self.path.clone(), name.to_owned(), info.shape.clone());
            return Err(ModelError::TensorShape { path, tensor, expected: vec![n], got });
        }
        match info.dtype {
            Dtype::I32 => self.read_values::<i32>(info, n),
            other => Err(self.wrong_type(name, "I32", other)),
        }
    }

    /// Whether a tensor is of bytes, as packed weights are.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`].
    pub fn is_bytes(&self, name: &str) -> Result<bool, ModelError> {
        Ok(self.info(name)?.dtype == Dtype::U8)
    }

    /// Reads a U8 tensor.
    ///
    /// # Errors
    /// [`ModelError::TensorMissing`], [`ModelError::TensorDtype`], [`ModelError::Io`].
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let info = self.info(name)?;
        match info.dtype {
            Dtype::U8 => self.read_values::<u8>(info, info.shape.iter().product()),
            other => Err(self.wrong_type(name, "U8", other)),
        }
    }

    /// As [`TensorFile::read_bytes`], of a known shape.
    ///
    /// # Errors
    /// As [`TensorFile::read_bytes`], and [`ModelError::TensorShape`].
    pub fn read_packed(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>, ModelError> {
        self.expect_shape(name, shape)?;
        self.read_bytes(name)
    }

    fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        let got = self.shape(name)?;
        if got == shape {
            return Ok(());
        }
        let (expected, got) = (shape.to_vec(), got.to_vec());
        Err(ModelError::TensorShape { path: self.path.clone(), tensor: name.to_owned(), expected, got })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::TensorMissing {
            path: self.path.clone(),
            expected: 1,
            n_missing: 1,
            names: format!("`{}`", name.escape_debug()),
        })
    }

    fn wrong_type(&self, name: &str, expected: &'static str, got: Dtype) -> ModelError {
        ModelError::TensorDtype { path: self.path.clone(), tensor: name.to_owned(), expected, got: got.to_string() }
    }

    /// Reads `n` little-endian values; the header check has bounded `n` by the file's size.
    fn read_values<T: bytemuck::Pod>(&self, info: &TensorInfo, n: usize) -> Result<Vec<T>, ModelError> {
        let mut values = vec![T::zeroed(); n];
        let io = |source| ModelError::Io { action: "read", path: self.path.clone(), source };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data_start + info.data_offsets.0 as u64)).map_err(io)?;
        file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(io)?;
        Ok(values)
    }
}

/// Writes a new safetensors file in the byte layout of the reference implementation; fails if `path` exists.
///
/// The bytes depend only on the arguments. Nothing is synced; the caller commits.
///
/// # Errors
/// [`ModelError::OutputExists`], [`ModelError::Io`], and [`ModelError::Safetensors`] when names or lengths do not fit.
pub fn write_tensors(
    path: &Path,
    mut tensors: Vec<(String, Vec<usize>, Values<'_>)>,
    float: FloatType,
) -> Result<(), ModelError> {
    let dtype = |values: &Values<'_>| match (values, float) {
        (Values::Int(_), _) => Dtype::I64,
        (Values::Words(_), _) => Dtype::I32,
        (Values::Bytes(_), _) => Dtype::U8,
        (Values::Float(_), FloatType::F32) => Dtype::F32,
        (Values::Float(_), FloatType::Bf16) => Dtype::BF16,
    };
    // Wide types first keeps every tensor aligned; the name settles the rest.
    tensors.sort_by(|l, r| dtype(&r.2).cmp(&dtype(&l.2)).then_with(|| l.0.cmp(&r.0)));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(broken(path, "different names", format!("`{}` twice", pair[0].0)));
    }
    let mut at = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, shape, values) in &tensors {
        let end = at + values.len() * dtype(values).bitsize() / 8;
        infos.push((name.clone(), TensorInfo { dtype: dtype(values), shape: shape.clone(), data_offsets: (at, end) }));
        at = end;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata =
        Metadata::new(Some(format), infos).map_err(|error| broken(path, "shapes that fit the values", error))?;
    let mut header = serde_json::to_vec(&metadata).expect("a checked header prints");
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    write_file(path, &header, &tensors, float)
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Values::Float(values) => values.len(),
            Values::Int(values) => values.len(),
            Values::Words(values) => values.len(),
            Values::Bytes(values) => values.len(),
        }
    }
}

fn write_file(
    path: &Path,
    header: &[u8],
    tensors: &[(String, Vec<usize>, Values<'_>)],
    float: FloatType,
) -> Result<(), ModelError> {
    let io = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => ModelError::OutputExists { path: path.to_path_buf() },
        _ => ModelError::Io { action: "write", path: path.to_path_buf(), source },
    };
    let file = File::options().write(true).create_new(true).open(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(header).map_err(io)?;
    for (_, _, values) in tensors {
        match (values, float) {
            (Values::Float(values), FloatType::F32) => out.write_all(bytemuck::cast_slice(values)).map_err(io)?,
            (Values::Int(values), _) => out.write_all(bytemuck::cast_slice(values)).map_err(io)?,
            (Values::Words(values), _) => out.write_all(bytemuck::cast_slice(values)).map_err(io)?,
            (Values::Bytes(values), _) => out.write_all(values).map_err(io)?,
            (Values::Float(values), FloatType::Bf16) => {
                for chunk in values.chunks(WRITE_CHUNK) {
                    let narrow: Vec<u16> = chunk.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
                    out.write_all(bytemuck::cast_slice(&narrow)).map_err(io)?;
                }
            }
        }
    }
    out.into_inner().map_err(|error| io(error.into_error()))?;
    Ok(())
}

/// Reads the header's bytes; its length is checked before anything of that size is allocated.
fn read_header(path: &Path, file: &mut File, file_len: u64) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::Io { action: "read", path: path.to_path_buf(), source };
    if file_len < LENGTH_BYTES {
        return Err(broken(path, format!("at least {LENGTH_BYTES} bytes"), file_len));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(broken(path, format!("a header of at most {MAX_HEADER_BYTES} bytes"), length));
    }
    if length > file_len - LENGTH_BYTES {
        let expected = format!("the {length} bytes of the header");
        return Err(broken(path, expected, format!("{} bytes (truncated)", file_len - LENGTH_BYTES)));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    Ok(header)
}

/// Counts and checks the names without building anything else.
fn check_names(path: &Path, header: &[u8]) -> Result<(), ModelError> {
    let mut parser = serde_json::Deserializer::from_slice(header);
    let checked = parser.deserialize_map(Names).and_then(|()| parser.end());
    checked.map_err(|error| broken(path, "a header of distinct, plain tensor names", error))
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if !is_plain(&name) {
                let start: String = name.chars().take(40).collect();
                return Err(A::Error::custom(format!("name `{}`", start.escape_debug())));
            }
            if seen.len() > MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if let Some(twice) = seen.replace(name) {
                return Err(A::Error::custom(format!("name `{twice}` twice")));
            }
        }
        let n_tensors = seen.len() - usize::from(seen.contains(METADATA_KEY));
        if n_tensors > MAX_TENSORS {
            return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
        }
        Ok(())
    }
}

/// Printable ASCII without path separators: a name is never a path, and nobody shall be able to make it one.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'\\';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain) && !name.contains("..")
}

fn widen(bits: &[u16], convert: impl Fn(u16) -> f32) -> Vec<f32> {
    bits.iter().map(|bits| convert(*bits)).collect()
}

fn broken(path: &Path, expected: impl fmt::Display, got: impl fmt::Display) -> ModelError {
    ModelError::Safetensors { path: path.to_path_buf(), expected: expected.to_string(), got: got.to_string() }
}

#[cfg(test)]
mod tests;
