//! GGUF files, which llama.cpp and its kin run: one file with architecture, tokenizer and weights.
//!
//! Vectors, norms and routers are f32 in every file. The weights of experts that a model folder has in MXFP4 go into the file
//! as they are where it has MXFP4, without being decoded.

use std::path::Path;

use rayon::prelude::*;

use crate::commit::write_file;
use crate::error::ModelError;
use crate::hf::{Checkpoint, LoadOptions, Numbers};

mod architecture;
mod blocks;
mod file;
mod vocabulary;

use architecture::{Kinds, Target};
use blocks::{Kind, repack};
use file::{Info, Metadata, Value, header, put_tensor};

/// Element types of the matrices of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits in blocks of 32.
    Q8_0,
    /// Experts in MXFP4, everything else in 8 bits.
    Mxfp4,
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufOptions {
    /// Element type of the matrices.
    pub kind: GgufType,
    /// Write the weights of experts in MXFP4 whatever the type of the others.
    pub packed_experts: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufSummary {
    /// Tensors in the file.
    pub n_tensors: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

impl GgufType {
    /// llama.cpp's number of the mixture of types.
    fn file_type(self, packs: bool) -> u32 {
        match self {
            _ if packs => 38,
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Bf16 => 32,
            GgufType::Q8_0 | GgufType::Mxfp4 => 7,
        }
    }

    fn weights(self) -> Kind {
        match self {
            GgufType::F32 => Kind::F32,
            GgufType::F16 => Kind::F16,
            GgufType::Bf16 => Kind::Bf16,
            GgufType::Q8_0 | GgufType::Mxfp4 => Kind::Q8_0,
        }
    }
}

/// Writes the model of a folder as a GGUF file; one leaf is in memory at a time.
///
/// # Numerics
/// Each number is rounded once, by the rule of ggml's own quantisers; experts that the folder has in MXFP4 are not rounded where
/// the file has them in MXFP4.
///
/// # Errors
/// [`ModelError::Gguf`] for what llama.cpp cannot compute or the type cannot hold, [`ModelError::OutputExists`], and those of
/// reading the folder. Nothing is left behind.
pub fn export_gguf(model: &Path, out: &Path, options: GgufOptions) -> Result<GgufSummary, ModelError> {
    let mut checkpoint = Checkpoint::open(model, LoadOptions::default())?;
    let config = checkpoint.config.clone();
    let packs = options.packed_experts || options.kind == GgufType::Mxfp4;
    if packs && config.experts().is_none() {
        let got = format!("a model of the family {} without them", architecture::name(&config));
        return Err(refused("experts in MXFP4", "a model with experts".to_owned(), got));
    }
    if packs {
        checkpoint.keep_packed();
    }
    architecture::check(&config)?;
    let weights = options.kind.weights();
    let kinds = Kinds { weights, experts: if packs { Kind::Mxfp4 } else { weights } };
    let mut metadata = general(model, options.kind.file_type(packs), architecture::name(&config));
    metadata.extend(architecture::metadata(&config));
    metadata.extend(vocabulary::metadata(model, &config)?);
    let plan: Result<Vec<Vec<Target>>, _> =
        checkpoint.leaves().map(|leaf| architecture::targets(&config, leaf, kinds)).collect();
    let plan = plan?;
    let factors = architecture::rope_factors(&config);
    let mut infos: Vec<Info> = factors.iter().map(|factors| factors_info(factors.len())).collect();
    infos.extend(plan.iter().flatten().map(|target| target.info.clone()));
    let header = header(&metadata, &infos);
    let bytes = write_file(out, |file| {
        let io = |source| ModelError::Io { action: "write", path: out.to_path_buf(), source };
        file.write_all(&header).map_err(io)?;
        if let Some(factors) = &factors {
            put_tensor(file, bytemuck::cast_slice(factors)).map_err(io)?;
        }
        for (at, targets) in plan.iter().enumerate() {
            let numbers = checkpoint.read(at)?;
            for target in targets {
                put_tensor(file, &encode(target, &numbers)?).map_err(io)?;
            }
        }
        Ok(())
    })?;
    Ok(GgufSummary { n_tensors: infos.len(), bytes })
}

fn general(model: &Path, file_type: u32, arch: &str) -> Metadata {
    let name = model.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let text = |key: &str, text: &str| (format!("general.{key}"), Value::Text(text.to_owned()));
    let mut out = vec![text("architecture", arch), text("type", "model")];
    out.extend(name.map(|name| text("name", &name)));
    out.push(("general.file_type".to_owned(), Value::U32(file_type)));
    out.push(("general.quantization_version".to_owned(), Value::U32(2)));
    out
}

fn factors_info(n: usize) -> Info {
    Info { name: "rope_freqs.weight".to_owned(), shape: vec![n], kind: Kind::F32 }
}

/// The bytes of a tensor.
fn encode(target: &Target, numbers: &Numbers) -> Result<Vec<u8>, ModelError> {
    let Info { name, kind, .. } = &target.info;
    let mut out = vec![0; target.info.bytes()];
    let row_bytes = out.len() / target.rows.len().max(1);
    let rows = out.par_chunks_exact_mut(row_bytes.max(1)).zip(&target.rows);
    match numbers {
        Numbers::Floats(values) => {
            let columns = kind.block() * (row_bytes / kind.row_bytes(kind.block()));
            let row = |row: u32| &values[row as usize * columns..][..columns];
            let largest = kind.largest();
            let beyond = target.rows.iter().find_map(|at| row(*at).iter().find(|x| x.abs() > largest));
            if let Some(beyond) = beyond {
                let expected = format!("numbers of at most {largest:e} for {}", kind.name());
                return Err(refused("weights", expected, format!("{beyond:e} in `{name}`")));
            }
            rows.for_each(|(out, at)| kind.encode(row(*at), out));
        }
        Numbers::Packed { blocks, scales } => {
            let n_blocks = row_bytes / kind.row_bytes(kind.block());
            let width = blocks.len() / scales.len().max(1) * n_blocks;
            // 255 is NaN to us and a large number to ggml.
            if scales.contains(&u8::MAX) {
                let expected = "scales of MXFP4 below 255, which is no number".to_owned();
                return Err(refused("weights", expected, format!("255 in `{name}`")));
            }
            rows.for_each(|(out, at)| {
                let at = *at as usize;
                repack(&blocks[at * width..][..width], &scales[at * n_blocks..][..n_blocks], out);
            });
        }
    }
    Ok(out)
}

fn refused(what: &'static str, expected: String, got: impl ToString) -> ModelError {
    ModelError::Gguf { what, expected, got: got.to_string() }
}

#[cfg(test)]
mod tests;
