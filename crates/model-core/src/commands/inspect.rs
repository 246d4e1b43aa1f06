//! `model-core inspect`: architecture, exact counts, tensors and hashes of a model folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model_core::ModelConfig;
use model_core::hf::folder::open_weights;
use model_core::hf::{TensorFile, read_config};

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model folder.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Row length for the count of floating point operations; the model's own maximum without it.
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Also list every tensor.
    #[arg(long)]
    tensors: bool,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let config = read_config(&arguments.model)?;
    let files = open_weights(&arguments.model)?;
    let mut out = std::io::stdout().lock();
    write_table(&mut out, &config, arguments.seq_len.unwrap_or(config.max_seq_len))?;
    let n_tensors: usize = files.iter().map(|file| file.names().count()).sum();
    writeln!(out, "{:<24}{n_tensors} in {} file(s)", "tensors", files.len())?;
    if arguments.tensors {
        write_tensors(&mut out, &files)?;
    }
    write_hashes(&mut out, &arguments.model)
}

fn write_table(out: &mut impl Write, config: &ModelConfig, seq_len: usize) -> Result<()> {
    let rows: [(&str, String); 17] = [
        ("vocab_size", config.vocab_size.to_string()),
        ("d_model", config.d_model.to_string()),
        ("d_ff", config.d_ff.to_string()),
        ("n_layers", config.n_layers.to_string()),
        ("n_heads", config.n_heads.to_string()),
        ("n_kv_heads", config.n_kv_heads.to_string()),
        ("d_head", config.d_head.to_string()),
        ("max_seq_len", config.max_seq_len.to_string()),
        ("rope", format!("{:?}", config.rope)),
        ("rms_norm_eps", config.rms_norm_eps.to_string()),
        ("tied", config.tied.to_string()),
        ("bos_id", format!("{:?}", config.bos_id)),
        ("eos_ids", format!("{:?}", config.eos_ids)),
        ("pad_id", format!("{:?}", config.pad_id)),
        ("parameters", config.n_params().to_string()),
        ("matmul parameters", config.matmul_params().to_string()),
        ("FLOPs per token", format!("{} forward and backward, rows of {seq_len}", config.flops_per_token(seq_len))),
    ];
    for (name, value) in rows {
        writeln!(out, "{name:<24}{value}")?;
    }
    let Some(gpt_oss) = config.as_gpt_oss() else { return Ok(()) };
    let experts = &gpt_oss.experts;
    let sliding = gpt_oss.sliding.iter().filter(|slides| **slides).count();
    for (name, value) in [
        ("experts", format!("{} in each block, {} for a token", experts.n, experts.top_k)),
        ("gated unit", format!("limit {}, alpha {}", experts.limit, experts.alpha)),
        ("window", format!("{} keys in {sliding} blocks", gpt_oss.window)),
        ("active parameters", config.active_params().to_string()),
    ] {
        writeln!(out, "{name:<24}{value}")?;
    }
    Ok(())
}

fn write_tensors(out: &mut impl Write, files: &[TensorFile]) -> Result<()> {
    for file in files {
        for name in file.names() {
            writeln!(out, "  {name:<56}{:<6}{:?}", file.dtype(name)?, file.shape(name)?)?;
        }
    }
    Ok(())
}

/// BLAKE3 of every regular file of the folder, sorted by name.
fn write_hashes(out: &mut impl Write, dir: &Path) -> Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let mut hasher = blake3::Hasher::new();
        let file = std::fs::File::open(&path).with_context(|| format!("read {}", path.display()))?;
        hasher.update_reader(file).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        writeln!(out, "blake3  {}  {name}", hasher.finalize().to_hex())?;
    }
    Ok(())
}
