//! `model-core export`: the same model in another element type, shard size or format, read back and compared before it counts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use half::bf16;
use kernels_cubecl::{Cpu, Leaf, MXFP4_BLOCK, Mxfp4, quantise_mxfp4};
use model_core::commit::write_folder;
use model_core::gguf::{GgufOptions, GgufType, export_gguf};
use model_core::hf::folder::{read_limited, write_new};
use model_core::hf::names::leaf_values;
use model_core::hf::{FloatType, SaveOptions, generation_config, leaf_map};
use model_core::{Decoder, ModelError};

use super::init::DEFAULT_SHARD_BYTES;

/// Small files that belong to a model folder and are copied as they are.
const COPIED: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// Largest of them that is copied.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// Arguments of `export`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model folder to read.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder to make, or file for GGUF.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    format: Format,
    /// Element type of the weights in safetensors.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16, conflicts_with = "kind")]
    dtype: Dtype,
    /// Element type of the matrices in GGUF; mxfp4 has experts in MXFP4 and the rest in q8_0.
    #[arg(long = "type", value_enum)]
    kind: Option<Type>,
    /// Write the weights of experts in MXFP4; those that are in it already stay as they are.
    #[arg(long)]
    packed_experts: bool,
    /// Bytes of tensors per weights file.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    max_shard_bytes: u64,
}

/// Formats that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A folder as transformers reads it.
    Safetensors,
    /// One file as llama.cpp reads it.
    Gguf,
}

/// Element types of GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Type {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// 16 bits, the upper half of an f32.
    Bf16,
    /// 8 bits in blocks of 32.
    #[value(name = "q8_0")]
    Q8_0,
    /// Experts in MXFP4, everything else in q8_0.
    Mxfp4,
}

/// Element types of safetensors files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Dtype {
    /// 16 bits, the upper half of an f32.
    Bf16,
    /// 32 bits.
    F32,
}

impl Dtype {
    /// As the files know it.
    pub(super) fn float(self) -> FloatType {
        match self {
            Dtype::Bf16 => FloatType::Bf16,
            Dtype::F32 => FloatType::F32,
        }
    }
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match (arguments.format, arguments.kind) {
        (Format::Safetensors, None) => run_safetensors(arguments),
        (Format::Gguf, Some(kind)) => run_gguf(arguments, kind),
        (Format::Safetensors, Some(_)) => {
            bail!("--type: expected --format gguf beside it, got safetensors; use --dtype there")
        }
        (Format::Gguf, None) => bail!("--format gguf: expected --type, got none; choose f32, f16, bf16, q8_0 or mxfp4"),
    }
}

fn run_gguf(arguments: &Arguments, kind: Type) -> Result<()> {
    let kind = match kind {
        Type::F32 => GgufType::F32,
        Type::F16 => GgufType::F16,
        Type::Bf16 => GgufType::Bf16,
        Type::Q8_0 => GgufType::Q8_0,
        Type::Mxfp4 => GgufType::Mxfp4,
    };
    let options = GgufOptions { kind, packed_experts: arguments.packed_experts };
    let made = export_gguf(&arguments.model, &arguments.out, options)?;
    println!("{}: {} tensors, {} bytes", arguments.out.display(), made.n_tensors, made.bytes);
    Ok(())
}

fn run_safetensors(arguments: &Arguments) -> Result<()> {
    let float = arguments.dtype.float();
    let model = Decoder::<Cpu>::load(&arguments.model, &Default::default())?;
    ensure!(
        !arguments.packed_experts || model.config.experts().is_some(),
        "--packed-experts: expected a model with experts, got one without; leave the flag out"
    );
    let Arguments { max_shard_bytes, packed_experts, .. } = *arguments;
    let options = SaveOptions { max_shard_bytes, float, packed_experts };
    write_folder(&arguments.out, |dir| {
        model.save_with(dir, options)?;
        copy_companions(&arguments.model, dir)?;
        write_new(&dir.join("generation_config.json"), generation_config(&model.config).as_bytes())?;
        compare(&model, dir, options)
    })?;
    println!("{}: {} parameters as {}", arguments.out.display(), model.config.n_params(), float.name());
    Ok(())
}

pub(super) fn copy_companions(from: &Path, to: &Path) -> Result<(), ModelError> {
    for name in COPIED {
        let path = from.join(name);
        if path.exists() {
            write_new(&to.join(name), &read_limited(&path, MAX_COPIED_BYTES)?)?;
        }
    }
    Ok(())
}

/// Reads the written folder back; every value must be the rounded original, bit for bit.
fn compare(model: &Decoder<Cpu>, dir: &Path, options: SaveOptions) -> Result<(), ModelError> {
    let written = Decoder::<Cpu>::load(dir, &Default::default())?;
    let experts: BTreeSet<String> =
        leaf_map(&model.config).into_iter().filter(|map| map.n_experts.is_some()).map(|map| map.leaf).collect();
    for (want, got) in std::iter::zip(model.leaves(), written.leaves()) {
        let mut want_values = leaf_values(want.leaf);
        if options.packed_experts && experts.contains(&want.name) {
            round_to_mxfp4(&mut want_values)?;
        } else if options.float == FloatType::Bf16 {
            want_values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        let got_values = leaf_values(got.leaf);
        let differs = std::iter::zip(&want_values, &got_values).position(|(w, g)| w.to_bits() != g.to_bits());
        if let Some(index) = differs {
            let (expected, got) = (want_values[index], got_values[index]);
            return Err(ModelError::ReadBack { path: dir.to_path_buf(), tensor: want.name, index, expected, got });
        }
    }
    Ok(())
}

/// Rows of whole blocks, each rounded to MXFP4.
fn round_to_mxfp4(values: &mut [f32]) -> Result<(), ModelError> {
    let (blocks, scales) = quantise_mxfp4(values)?;
    let rows = Mxfp4::<Cpu>::from_bytes(&blocks, &scales, [scales.len(), MXFP4_BLOCK], &Default::default())?;
    let rounded = leaf_values(Leaf::Matrix(rows.decode()));
    values.copy_from_slice(&rounded);
    Ok(())
}
