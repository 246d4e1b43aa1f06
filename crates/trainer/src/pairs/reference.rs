//! The reference pass: answer log-probabilities under the initial model, kept as an artifact under a key of hashes.
//!
//! The key covers the model, the records, the tokenizer, the chat format and the row length; another of any of them is
//! another file, so a stale value cannot be read.

use std::path::{Path, PathBuf};

use kernels_cubecl::LmBackend;
use model_core::Decoder;
use serde::{Deserialize, Serialize};

use super::PairRows;
use crate::TrainError;
use crate::objective::reference_logprobs;

/// Largest reference file.
const MAX_BYTES: u64 = 1 << 30;

/// The artifact.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferenceFile {
    version: u32,
    model_hash: String,
    data_fingerprint: String,
    /// `[chosen, rejected]` per record, as f32 bits, so that the text form is exact.
    logprob_bits: Vec<[u32; 2]>,
}

const VERSION: u32 = 1;

/// File of the values of one model and one data set.
fn path_of(dir: &Path, model_hash: &str, rows: &PairRows) -> PathBuf {
    let key = gates::artifact::hash_bytes(format!("{model_hash} {}", rows.fingerprint).as_bytes());
    dir.join(format!("reference-{}.json", &key[..16]))
}

/// Reads the values from the artifact, or computes and keeps them.
///
/// # Errors
/// When the artifact is damaged or cannot be written, or a value is not finite.
pub(super) fn reference<B: LmBackend>(
    dir: &Path,
    model_hash: &str,
    model: &Decoder<B>,
    rows: &PairRows,
    batch: usize,
    device: &B::Device,
) -> Result<Vec<[f32; 2]>, TrainError> {
    let path = path_of(dir, model_hash, rows);
    let wrong = |problem: String| TrainError::Config { origin: path.display().to_string(), problem };
    if path.exists() {
        let bytes = gates::artifact::read_bounded(&path, MAX_BYTES)?;
        let file: ReferenceFile = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let fits = file.version == VERSION
            && file.model_hash == model_hash
            && file.data_fingerprint == rows.fingerprint
            && file.logprob_bits.len() == rows.n_records;
        if !fits {
            return Err(wrong("belongs to another model, data set or version; remove the file".into()));
        }
        return Ok(file.logprob_bits.into_iter().map(|pair| pair.map(f32::from_bits)).collect());
    }
    let mut values = vec![[f32::NAN; 2]; rows.n_records];
    let all: Vec<usize> = (0..rows.rows.len()).collect();
    for which in all.chunks(batch) {
        let sums = reference_logprobs(model, &rows.batch(which, None)?, device)?;
        let records = which.iter().flat_map(|&i| rows.rows[i].pairs.iter().map(|pair| pair.record));
        records.zip(sums).for_each(|(record, sums)| values[record] = sums);
    }
    if let Some(record) = values.iter().position(|pair| !pair.iter().all(|value| value.is_finite())) {
        let problem =
            format!("reference log-probability of record {} is not finite; the initial model is broken", record + 1);
        return Err(TrainError::Batch { problem });
    }
    let file = ReferenceFile {
        version: VERSION,
        model_hash: model_hash.to_owned(),
        data_fingerprint: rows.fingerprint.clone(),
        logprob_bits: values.iter().map(|pair| pair.map(f32::to_bits)).collect(),
    };
    let text = serde_json::to_vec(&file).map_err(|e| wrong(e.to_string()))?;
    gates::artifact::write_atomic(&path, &text)?;
    Ok(values)
}
