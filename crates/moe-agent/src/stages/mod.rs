//! The training stages of the agent line, each a configuration over the one loop: language adapter, merge, supervised
//! fine-tuning on trajectories, preferences.
//!
//! ```text
//! base ── adapter ──▶ [lang-rust-to-core-agent] ── merge ── core-agent ──▶ [core-agent-to-ipo] ── ipo ──▶ [ipo-to-grpo]
//! ```
//!
//! Every stage that trains leaves `final/`, a whole model, and, where it trains an adapter, `adapter/` in PEFT's layout.

mod adapter;
mod core_agent;
mod ipo;
mod lineage;
mod merge;
mod sources;

pub use adapter::{AdapterConfig, AdapterStage};
pub use core_agent::{CoreAgentConfig, CoreAgentStage};
pub use ipo::{IpoConfig, IpoStage};
pub use lineage::require_merged;
pub use merge::{MergeConfig, MergeStage};
pub use sources::Source;

use model_core::hf::PackedExperts;
use trainer::TrainError;
use trainer::adapter::{AdapterKeys, check_merge_bound};
use trainer::config::require;
use trainer::tune::AdapterTuning;

/// Checks the keys of a stage that trains an adapter, or without one all weights.
pub(crate) fn check_adapter(
    adapter: Option<&AdapterKeys>,
    packed_experts: PackedExperts,
    merge_max_diff: Option<f64>,
) -> Result<(), TrainError> {
    let Some(keys) = adapter else {
        require(packed_experts == PackedExperts::No, || {
            "key `packed_experts`: expected false, because without a table `adapter` all weights train, and packed ones cannot"
                .into()
        })?;
        return require(merge_max_diff.is_none(), || {
            "key `merge_max_diff`: expected none, because without a table `adapter` nothing is merged".into()
        });
    };
    keys.workload(packed_experts).lora.check()?;
    match merge_max_diff {
        Some(bound) => check_merge_bound(bound),
        None => require(false, || "key `merge_max_diff`: expected one beside the table `adapter`, got none".into()),
    }
}

/// The adapter of a stage whose keys were checked.
pub(crate) fn adapter_tuning(
    adapter: Option<&AdapterKeys>,
    packed_experts: PackedExperts,
    merge_max_diff: Option<f64>,
) -> Option<AdapterTuning> {
    let tuning = |keys: &AdapterKeys, merge_max_diff: f64| AdapterTuning {
        workload: keys.workload(packed_experts),
        merge_max_diff,
    };
    adapter.zip(merge_max_diff).map(|(keys, bound)| tuning(keys, bound))
}

#[cfg(test)]
mod tests;
