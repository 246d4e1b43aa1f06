//! What a supervised stage learns from: packed rows and conversations, each with its share of every step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model_core::ModelConfig;
use serde::{Deserialize, Serialize};
use trainer::config::require;
use trainer::lineage::Input;
use trainer::mix::{MixPart, MixedSource, check_shares};
use trainer::render::ChatKeys;
use trainer::text::TextRows;
use trainer::tune::TuningData;
use trainer::{EvalSet, TrainConfig, TrainError};

/// One kind of training data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A folder with packed rows, or a file of conversations.
    pub path: PathBuf,
    /// Its share of the rows of a step; the shares of all sources add up to 1.
    pub share: f64,
}

/// The data of a stage by its keys.
pub(super) struct Sources<'a> {
    pub(super) sources: &'a BTreeMap<String, Source>,
    pub(super) eval_data: &'a Path,
    pub(super) model_dir: &'a Path,
    pub(super) chat: &'a ChatKeys,
    pub(super) seq_len: usize,
    pub(super) eval_batch: usize,
    pub(super) train: &'a TrainConfig,
}

impl Sources<'_> {
    /// Checks the keys.
    pub(super) fn check(&self) -> Result<(), TrainError> {
        self.train.check()?;
        self.train.rows(self.seq_len)?;
        let shares: Vec<f64> = self.sources.values().map(|source| source.share).collect();
        check_shares(&shares)?;
        if let Some((name, _)) = self.sources.iter().find(|(_, source)| source.share == 0.0) {
            let problem = format!("key `sources.{name}.share`: expected a share above 0, got 0; leave the source out");
            return require(false, || problem);
        }
        if let Some(name) = self.sources.keys().find(|name| ["eval", "model", "adapter"].contains(&name.as_str())) {
            return require(false, || format!("key `sources.{name}`: expected a name that no other input has"));
        }
        require(self.eval_batch > 0, || "key `eval_batch`: expected at least 1, got 0".into())
    }

    /// Opens everything for a model.
    pub(super) fn open(&self, model: &ModelConfig) -> Result<TuningData, TrainError> {
        let open = |path: &Path| TextRows::open(path, self.model_dir, self.chat, self.seq_len, model);
        let heldout = open(self.eval_data)?;
        let mut inputs = BTreeMap::from([("eval".to_owned(), Input::new(self.eval_data, &heldout.fingerprint))]);
        let mut parts = Vec::with_capacity(self.sources.len());
        for (name, Source { path, share }) in self.sources {
            let TextRows { rows, fingerprint, .. } = open(path)?;
            inputs.insert(name.clone(), Input::new(path, &fingerprint));
            parts.push(MixPart { name: format!("sources.{name}"), rows, fingerprint, share: *share });
        }
        Ok(TuningData {
            source: Box::new(MixedSource::new(parts, self.seq_len, self.train)?),
            eval: EvalSet::new(&heldout.rows, self.eval_batch, heldout.text_bytes)?,
            heldout: heldout.rows,
            inputs,
        })
    }
}
