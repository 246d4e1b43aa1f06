//! `perf generate`: greedy decoding of a named model with random weights, beside what the memory's bandwidth allows.
//!
//! A step reads every weight of the blocks and the head and every cached key and value once, whatever is done with them; the
//! bound is the time that this takes. One line of JSON per batch size.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kernels_cubecl::{DeviceChoice, LmBackend, Precision, on_device};
use model_core::generate::generate_watched;
use model_core::{Decoder, ModelConfig, Sampling};
use serde::Serialize;

use crate::train::random_model;

/// Tokens made before the measurement: kernels are compiled and products are chosen in them.
const WARMUP: usize = 4;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to compute
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// f32 or bf16
    #[arg(long, default_value_t = Precision::Bf16)]
    precision: Precision,
    /// Named size: 125m, 1b, 7b, 7b-wide, ...
    #[arg(long, default_value = "7b")]
    preset: String,
    /// Blocks of the model, where not those of the named size
    #[arg(long)]
    layers: Option<usize>,
    /// Sequences decoded together; repeatable
    #[arg(long = "batch", default_values_t = [1, 8, 64])]
    batches: Vec<usize>,
    /// Tokens of a sequence at its end, prompt included
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Tokens of these that are made
    #[arg(long, default_value_t = 64)]
    new: usize,
    /// Bandwidth of the device's memory in TB/s that the bound is for; the default is what copies reach on an H100
    #[arg(long, default_value_t = 2.9)]
    tb_s: f64,
    /// Prompts are up to this many tokens shorter than the longest, so that rows of unequal length are decoded
    #[arg(long, default_value_t = 0)]
    ragged: usize,
}

/// The line that is printed.
#[derive(Debug, Serialize)]
struct Line {
    preset: String,
    params: u64,
    precision: String,
    batch: usize,
    context: usize,
    new: usize,
    ragged: usize,
    prefill_ms: f64,
    ms_per_step: f64,
    tok_s: f64,
    bound_tok_s: f64,
    share: f64,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { context, new, ragged, .. } = *arguments;
    let room = context.saturating_sub(new).saturating_sub(ragged);
    ensure!(new > 1 && room > 0, "perf generate: expected 1 < new and new + ragged < context, got {new} of {context}");
    ensure!(!arguments.batches.contains(&0), "perf generate: expected batches of at least one sequence, got 0");
    let mut config = ModelConfig::preset(&arguments.preset).context("perf generate --preset: no such size")?;
    config.n_layers = arguments.layers.unwrap_or(config.n_layers);
    ensure!(context <= config.max_seq_len, "perf generate: expected a context of up to {}", config.max_seq_len);
    let device = arguments.device.resolve()?.with(arguments.precision)?;
    on_device!(device, B, on => {
        let model = random_model::<B>(&config, &on);
        arguments.batches.iter().try_for_each(|&batch| measure(arguments, &model, batch))
    })??;
    Ok(ExitCode::SUCCESS)
}

fn measure<B: LmBackend>(arguments: &Arguments, model: &Decoder<B>, batch: usize) -> Result<()> {
    let Arguments { context, new, ragged, .. } = *arguments;
    let vocab_size = model.config.vocab_size as u32;
    let prompt = |row: usize| -> Vec<u32> {
        let n = context - new - row * ragged / batch.max(2).saturating_sub(1);
        (0..n as u32).map(|at| (at * 7919 + row as u32 * 104_729) % vocab_size).collect()
    };
    let prompts: Vec<Vec<u32>> = (0..batch).map(prompt).collect();
    // The whole prompts, so that every product has been met.
    timed(model, &prompts, WARMUP)?;
    let (prefill, decode) = timed(model, &prompts, new)?;
    let (n_tokens, n_prompt) = (batch * (new - 1), prompts.iter().map(Vec::len).sum::<usize>());
    let ms_per_step = 1e3 * decode / (new - 1) as f64;
    // Each of the steps after the prompts' sees one token more than the last, itself included.
    let cached = (n_prompt + batch * new / 2) as u64;
    let bound_s = bytes(&model.config, arguments.precision, cached) as f64 / (1e12 * arguments.tb_s);
    let (tok_s, bound_tok_s) = (n_tokens as f64 / decode, batch as f64 / bound_s);
    let line = Line {
        preset: arguments.preset.clone(),
        params: model.config.n_params(),
        precision: arguments.precision.to_string(),
        batch,
        context,
        new,
        ragged,
        prefill_ms: 1e3 * prefill,
        ms_per_step,
        tok_s,
        bound_tok_s,
        share: tok_s / bound_tok_s,
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// Seconds up to the first new tokens, and from there to the last.
fn timed<B: LmBackend>(model: &Decoder<B>, prompts: &[Vec<u32>], new: usize) -> Result<(f64, f64)> {
    let numbered: Vec<(u64, &[u32])> = (0..).zip(prompts.iter().map(Vec::as_slice)).collect();
    let (start, mut first) = (Instant::now(), None);
    let made = generate_watched(model, &numbered, &Sampling::greedy(new), &mut |_| {
        first.get_or_insert_with(Instant::now);
    })?;
    ensure!(made.iter().all(|made| made.ids.len() == new), "perf generate: a sequence ended early");
    let first = first.context("no token was made")?;
    Ok(((first - start).as_secs_f64(), first.elapsed().as_secs_f64()))
}

/// Bytes that a step reads: the weights that multiply, and keys and values of so many cached tokens.
fn bytes(config: &ModelConfig, precision: Precision, cached: u64) -> u64 {
    let element = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let per_token = (2 * config.n_layers * config.heads().kv_width()) as u64;
    element * (config.matmul_params() + per_token * cached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_7b_model_reads_its_weights_and_the_cache() {
        let config = ModelConfig::preset("7b").unwrap();
        assert_eq!(bytes(&config, Precision::Bf16, 0), 2 * config.matmul_params());
        // 32 blocks, 8 heads of 128, keys and values, two bytes each: 128 KiB a token.
        assert_eq!(bytes(&config, Precision::Bf16, 512) - bytes(&config, Precision::Bf16, 0), 512 * 131_072);
        assert_eq!(bytes(&config, Precision::F32, 3), 2 * bytes(&config, Precision::Bf16, 3));
    }
}
