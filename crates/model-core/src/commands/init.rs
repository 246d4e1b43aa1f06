//! `model-core init`: a model folder with fresh weights, from a named size, a depth or a configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kernels_cubecl::Cpu;
use model_core::commit::write_folder;
use model_core::hf::folder::{read_limited, write_new};
use model_core::hf::generation_config;
use model_core::hf::json::{MAX_CONFIG_BYTES, parse};
use model_core::{ChatFormat, Decoder, Harmony, ModelConfig, ModelError, Tokenizer};

/// Rows that an embedding may have beyond the tokenizer's ids, as padding for the matrix kernels.
const VOCAB_SLACK: usize = 1024;
/// Default size of a weights file.
pub(super) const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Arguments of `init`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    architecture: Architecture,
    /// Rows of the embedding; without it those of the tokenizer, or of the named size.
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Longest row the model is meant for.
    #[arg(long, value_name = "N")]
    max_seq_len: Option<usize>,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// tokenizer.json to copy into the folder; its special tokens go into the configuration.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Bytes of tensors per weights file.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    max_shard_bytes: u64,
}

/// Where the dimensions come from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Architecture {
    /// A named size: 125m, 350m, 1b, 3b, 7b, 7b-wide, gpt-oss-20b or gpt-oss-120b.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Number of blocks of a small model; everything else follows from it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128))]
    depth: Option<u16>,
    /// A config.json.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let tokenizer = arguments.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let config = resolve(arguments, tokenizer.as_ref())?;
    let written = write_folder(&arguments.out, |dir| {
        let model = Decoder::<Cpu>::init(&config, arguments.seed, &Default::default());
        let written = model.save(dir, arguments.max_shard_bytes)?;
        write_new(&dir.join("generation_config.json"), generation_config(&config).as_bytes())?;
        if let (Some(tokenizer), Some(path)) = (&tokenizer, &arguments.tokenizer) {
            write_new(&dir.join("tokenizer.json"), tokenizer.json())?;
            write_new(&dir.join("tokenizer_config.json"), &tokenizer_config(tokenizer, path, &config)?)?;
        }
        Ok(written)
    })?;
    println!(
        "{}: {} parameters in {} weights file(s), vocab_size {}, seed {}",
        arguments.out.display(),
        config.n_params(),
        written.iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors")).count(),
        config.vocab_size,
        arguments.seed
    );
    Ok(())
}

/// The configuration to build, checked against the tokenizer.
fn resolve(arguments: &Arguments, tokenizer: Option<&Tokenizer>) -> Result<ModelConfig> {
    let asked = arguments.vocab_size.or(tokenizer.map(Tokenizer::vocab_size));
    let mut config = match &arguments.architecture {
        Architecture { preset: Some(name), .. } => ModelConfig::preset(name)?,
        Architecture { depth: Some(depth), .. } => {
            let vocab_size = asked.context("--depth: expected --vocab-size or --tokenizer beside it, got neither")?;
            anyhow::ensure!(vocab_size > 0, "--vocab-size: expected at least 1, got 0");
            ModelConfig::from_depth(usize::from(*depth), vocab_size)
        }
        Architecture { config: Some(path), .. } => read_config_file(path)?,
        _ => unreachable!("the argument parser asks for one of the three"),
    };
    // A configuration file states its own vocabulary; only an explicit flag changes it.
    let is_file = arguments.architecture.config.is_some();
    config.vocab_size = if is_file { arguments.vocab_size } else { asked }.unwrap_or(config.vocab_size);
    config.max_seq_len = arguments.max_seq_len.unwrap_or(config.max_seq_len);
    if let Some(tokenizer) = tokenizer {
        check_vocab(tokenizer.vocab_size(), config.vocab_size)?;
        take_special_ids(&mut config, tokenizer);
    }
    config.validate()?;
    Ok(config)
}

fn read_config_file(path: &Path) -> Result<ModelConfig> {
    let text = read_limited(path, MAX_CONFIG_BYTES as u64)?;
    let text = String::from_utf8(text).with_context(|| format!("{}: expected UTF-8", path.display()))?;
    Ok(ModelConfig::from_hf(&text).map_err(|error| error.in_file(path))?)
}

fn check_vocab(tokenizer: usize, model: usize) -> Result<(), ModelError> {
    if (tokenizer..=tokenizer + VOCAB_SLACK).contains(&model) {
        return Ok(());
    }
    Err(ModelError::VocabMismatch { tokenizer, model, slack: VOCAB_SLACK })
}

/// Both a document's and an answer's end stop a generation; a tokenizer without a chat format changes nothing.
fn take_special_ids(config: &mut ModelConfig, tokenizer: &Tokenizer) {
    if let Ok(harmony) = Harmony::new(tokenizer) {
        config.pad_id = tokenizer.control_id("<|endoftext|>");
        config.eos_ids = harmony.stop_ids().into_iter().chain(config.pad_id).collect();
        config.bos_id = None;
        return;
    }
    let Ok(format) = ChatFormat::detect(tokenizer) else { return };
    let ends = [format.end_of_document(), format.end_of_turn()];
    config.eos_ids = ends.iter().filter_map(|token| tokenizer.control_id(token)).collect();
    config.pad_id = tokenizer.control_id(format.end_of_document());
    config.bos_id = format.begin().and_then(|token| tokenizer.control_id(token));
}

/// The file beside the tokenizer where it says how a chat is written, else the one of its chat format: a model folder
/// without a chat template could not be talked to elsewhere.
fn tokenizer_config(tokenizer: &Tokenizer, path: &Path, config: &ModelConfig) -> Result<Vec<u8>, ModelError> {
    let made = || ChatFormat::detect(tokenizer).and_then(|chat| chat.tokenizer_config(tokenizer, config.max_seq_len));
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let beside = folder.join("tokenizer_config.json");
    if !beside.exists() {
        return made().map(String::into_bytes);
    }
    let bytes = read_limited(&beside, MAX_CONFIG_BYTES as u64)?;
    let own = parse("tokenizer_config.json", &bytes, MAX_CONFIG_BYTES).map_err(|error| error.in_file(&beside))?;
    match made() {
        Ok(text) if own.get("chat_template").is_none() => Ok(text.into_bytes()),
        _ => Ok(bytes),
    }
}
