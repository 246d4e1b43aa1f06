//! The demo as the pipeline runs it: its text, tokenizer, model and configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::TensorData;
use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor, IntTensorOps};
use data_pipeline::ingest::{IngestConfig, ingest};
use data_pipeline::source::TextRecord;
use data_pipeline::tokenizer::SPECIAL_TOKENS;
use data_pipeline::{PADDING_SEGMENT, TextFolder, TokenDocuments, TokenRow, Tokenizer};
use kernels_cubecl::Cpu;
use model_core::{Decoder, ModelConfig};
use serde::Deserialize;
use trainer::TrainConfig;

/// The dial of the demo's model, as `configs/pipeline/demo.toml` sets it.
const DEPTH: usize = 3;
/// Entries of the demo's tokenizer, as set there.
pub(super) const VOCAB_SIZE: usize = 2048;
/// Context of the demo's model, as set there.
const MAX_SEQ_LEN: usize = 512;
/// Seed of the weights.
const SEED: u64 = 1;
/// Tokens of a step, as `configs/stage/demo-pretrain.toml` sets them.
pub(super) const TOKENS: usize = 2048;

/// What a step is made of, out of the stage's configuration.
#[derive(Debug, Deserialize)]
pub(super) struct Stage {
    /// Weight of the squared log-sum-exp.
    pub(super) z_loss: f32,
    /// Phases of the curriculum.
    pub(super) phase: Vec<Phase>,
    /// Loop and optimizer.
    pub(super) train: TrainConfig,
}

/// One phase of the curriculum.
#[derive(Debug, Deserialize)]
pub(super) struct Phase {
    /// Row length.
    pub(super) seq_len: usize,
}

impl Stage {
    fn load() -> Result<Self> {
        Ok(trainer::config::load(&root().join("configs/stage/demo-pretrain.toml"), &[])?)
    }
}

/// Everything that the demo's pretraining begins with.
pub(super) struct Demo {
    /// Configuration of the stage.
    pub(super) stage: Stage,
    /// Cleaned training text.
    pub(super) records: Vec<TextRecord>,
    /// The demo's tokenizer.
    pub(super) tokenizer: Tokenizer,
    /// The text as tokens.
    documents: TokenDocuments,
}

impl Demo {
    /// Ingests the sample and trains the tokenizer, in a temporary folder.
    ///
    /// # Errors
    /// When a file of the repository is missing or broken.
    pub(super) fn make() -> Result<Self> {
        let stage = Stage::load()?;
        let tmp = tempfile::tempdir().context("cannot make a temporary folder")?;
        let out = tmp.path().join("text");
        ingest(&IngestConfig::load(&root().join("configs/data/text.toml"))?, &out, false)?;
        let folder = TextFolder::open(&out.join("train"))?;
        let records = folder.records()?;
        let tokenizer = data_pipeline::tokenizer::train(texts(&records), VOCAB_SIZE, &SPECIAL_TOKENS)?;
        let documents = TokenDocuments::encode(&records, &folder.meta().sources, &tokenizer);
        Ok(Self { stage, records, tokenizer, documents })
    }

    /// Training rows as the stage reads them: packed documents that do not see each other.
    pub(super) fn packed_rows(&self, seq_len: usize) -> Vec<TokenRow> {
        self.documents.pack(seq_len, "pretrain").0
    }

    /// Rows without padding, each taken for one document: the full causal triangle, as a plain language model has it.
    pub(super) fn whole_rows(&self, seq_len: usize) -> Vec<TokenRow> {
        let mut rows = self.packed_rows(seq_len);
        rows.retain(|row| !row.segments.contains(&PADDING_SEGMENT));
        for row in &mut rows {
            row.segments.fill(0);
            row.weights.fill(1.0);
            row.weights[0] = 0.0;
        }
        rows
    }
}

/// The texts of records.
pub(super) fn texts(records: &[TextRecord]) -> impl Iterator<Item = &str> + Send {
    records.iter().map(|record| record.text.as_str())
}

/// The demo's architecture.
pub(super) fn model_config() -> ModelConfig {
    ModelConfig { max_seq_len: MAX_SEQ_LEN, ..ModelConfig::from_depth(DEPTH, VOCAB_SIZE) }
}

/// The demo's model with fresh weights.
pub(super) fn model() -> Decoder<Cpu> {
    Decoder::init(&model_config(), SEED, &Default::default())
}

/// Numbers between −0.5 and 0.5 in no visible order, as the backend's own tensor.
pub(super) fn values(dims: &[usize], seed: u32) -> FloatTensor<Cpu> {
    let n = dims.iter().product::<usize>();
    let value = |i: usize| {
        let mixed = (i as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
        f64::from(mixed ^ (mixed >> 15)) / f64::from(u32::MAX) - 0.5
    };
    let data = (0..n).map(|i| value(i) as f32).collect::<Vec<f32>>();
    Cpu::float_from_data(TensorData::new(data, dims.to_vec()), &Default::default())
}

/// Whole numbers as the backend's own tensor.
pub(super) fn whole_numbers(values: Vec<i32>, dims: &[usize]) -> IntTensor<Cpu> {
    Cpu::int_from_data(TensorData::new(values, dims.to_vec()), &Default::default())
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_are_those_of_the_demo() {
        let pipeline = std::fs::read_to_string(root().join("configs/pipeline/demo.toml")).unwrap();
        for (option, value) in [("vocab-size", VOCAB_SIZE), ("depth", DEPTH), ("max-seq-len", MAX_SEQ_LEN)] {
            let want = format!("\"--{option}\", \"{value}\"");
            assert!(pipeline.contains(&want), "the demo has no longer {want}");
        }
        assert_eq!(Stage::load().unwrap().train.tokens_per_step, TOKENS as u64);
    }
}
