//! `model-core export`: the same model in another element type or shard size, read back and compared before it counts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use half::bf16;
use kernels_cubecl::{Cpu, Leaf, MXFP4_BLOCK, Mxfp4, quantise_mxfp4};
use model_core::commit::write_folder;
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
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Write the weights of experts in MXFP4.
    #[arg(long)]
    packed_experts: bool,
    /// Bytes of tensors per weights file.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    max_shard_bytes: u64,
}

/// Element types that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Dtype {
    /// 16 bits, the upper half of an f32.
    Bf16,
    /// 32 bits.
    F32,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let float = match arguments.dtype {
        Dtype::Bf16 => FloatType::Bf16,
        Dtype::F32 => FloatType::F32,
    };
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

fn copy_companions(from: &Path, to: &Path) -> Result<(), ModelError> {
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
