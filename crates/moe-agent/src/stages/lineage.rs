//! Whether a model really is the merge of an adapter, by hashes and not by the name of its folder.

use std::path::Path;

use model_core::adapter::{MERGE_FILE, MergeLineage, PeftAdapter, adapter_hash, weights_hash};
use trainer::TrainError;
use trainer::adapter::ADAPTER;
use trainer::lineage::Input;

/// The adapter as an input, when the model in `model` was merged from the adapter of the run in `adapter_run` and from the base
/// that this was trained on.
///
/// # Errors
/// [`TrainError::Config`] for a model without `merge.json`, one whose weights are not those that were merged, and a merge of
/// another adapter or another base.
pub fn require_merged(model: &Path, adapter_run: &Path) -> Result<Input, TrainError> {
    let refuse = |key: &str, expected: &str, got: String| {
        let problem = format!(
            "key `{key}`: expected {expected}, got {got}; run `moe-agent merge` on the adapter and name the folder that it makes"
        );
        Err(TrainError::Config { origin: "values".into(), problem })
    };
    let Some(merge) = MergeLineage::read(model)? else {
        let expected = format!("a merged model with its {MERGE_FILE}");
        return refuse("model", &expected, format!("{}, which has none", model.display()));
    };
    let actual = weights_hash(model)?;
    if actual != merge.weights_hash {
        let expected = format!("weights {}, as {MERGE_FILE} says", merge.weights_hash);
        return refuse("model", &expected, format!("{actual} in {}", model.display()));
    }
    let dir = adapter_run.join(ADAPTER);
    let (adapter, hash) = (PeftAdapter::read(&dir)?, adapter_hash(&dir)?);
    if hash != merge.adapter_hash {
        let expected = format!("adapter {}, which was merged into {}", merge.adapter_hash, model.display());
        return refuse("adapter_run", &expected, format!("{hash} in {}", dir.display()));
    }
    if adapter.base_hash.as_ref() != Some(&merge.base_weights_hash) {
        let got = adapter.base_hash.unwrap_or_else(|| "no record of one".to_owned());
        let expected = format!("an adapter of the base {}", merge.base_weights_hash);
        return refuse("adapter_run", &expected, format!("{got} in {}", dir.display()));
    }
    Ok(Input::new(&dir, hash))
}
