//! One hash for the weights of a model folder, to tell whether an adapter belongs to them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::ModelError;
use crate::hf::TensorFile;
use crate::hf::folder::open_weights;

/// Values hashed at a time.
const CHUNK: usize = 1 << 16;

/// BLAKE3 over the names, shapes and f32 values of all weights in a model folder, in hexadecimal.
///
/// The same weights in other shards, or widened from bf16 to f32, have the same hash. Packed bytes are hashed as they are.
///
/// # Errors
/// When the folder has no weights, its index does not fit them, or a file cannot be read.
pub fn weights_hash(dir: &Path) -> Result<String, ModelError> {
    let files = open_weights(dir)?;
    let place: BTreeMap<&str, &TensorFile> =
        files.iter().flat_map(|file| file.names().map(move |name| (name, file))).collect();
    let mut hasher = blake3::Hasher::new();
    for (name, file) in place {
        let shape = file.shape(name)?;
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher.update(&(shape.len() as u64).to_le_bytes());
        for extent in shape {
            hasher.update(&(*extent as u64).to_le_bytes());
        }
        if file.is_bytes(name)? {
            hasher.update(&file.read_bytes(name)?);
            continue;
        }
        for values in file.read_f32(name)?.chunks(CHUNK) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
