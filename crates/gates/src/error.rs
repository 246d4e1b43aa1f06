//! What can be wrong with a report, a policy or a receipt.

use std::path::PathBuf;

use crate::artifact::ArtifactError;

/// Result of this crate's gate modules.
pub type Result<T, E = GateError> = std::result::Result<T, E>;

/// A report, policy or receipt cannot be used, or a receipt does not allow what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// A file operation failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A JSON file of ours does not have the expected form.
    #[error("cannot read the {kind} {}: {source}; make it again with `{maker}`", path.display())]
    Json {
        /// What the file should be.
        kind: &'static str,
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
        /// The command that makes such a file.
        maker: &'static str,
    },
    /// A file of another version.
    #[error("{} is a {kind} of version {found}, this build reads version {expected}; make it again with this build", path.display())]
    Version {
        /// What the file is.
        kind: &'static str,
        /// The file.
        path: PathBuf,
        /// The version that this build reads.
        expected: u32,
        /// The version that came.
        found: u64,
    },
    /// A report with an impossible entry.
    #[error("report {}: metric `{metric}` {problem}; run `gates eval` again", path.display())]
    BadMetric {
        /// The file.
        path: PathBuf,
        /// The metric.
        metric: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A policy that is not valid TOML or has unknown, missing or ill-typed keys.
    #[error("cannot read the policy {}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and key.
        source: Box<toml::de::Error>,
    },
    /// A policy that reads but cannot be meant.
    #[error("policy {}: `{key}` must be {expected}, found {found}", path.display())]
    BadPolicy {
        /// The file.
        path: PathBuf,
        /// The key, with its transition and the number of the rule.
        key: String,
        /// What is accepted.
        expected: &'static str,
        /// What was written.
        found: String,
    },
    /// A transition that the policy does not have.
    #[error("unknown transition `{wanted}`; the policy has {}", known.join(", "))]
    UnknownTransition {
        /// The name asked for.
        wanted: String,
        /// The names that are there.
        known: Vec<String>,
    },
    /// A gate that does not let the model through.
    #[error("gate `{transition}` refuses: receipt {} {problem}; run `gates eval` and `gates check --transition {transition}` on this model", path.display())]
    Refused {
        /// The transition that was asked for.
        transition: String,
        /// The receipt.
        path: PathBuf,
        /// Why.
        problem: Refusal,
    },
}

/// Why a receipt does not open the gate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such file.
    #[error("does not exist")]
    Missing,
    /// Not a receipt.
    #[error("cannot be read ({0})")]
    Unreadable(String),
    /// The content is not what was written.
    #[error("was changed after it was written")]
    Edited,
    /// A receipt of another gate.
    #[error("is for the transition `{0}`")]
    OtherTransition(String),
    /// A receipt of another checkpoint.
    #[error("is for the model {found}, this model is {wanted}")]
    OtherModel {
        /// The model of the receipt.
        found: String,
        /// The model at hand.
        wanted: String,
    },
    /// The gate was tried and not passed.
    #[error("says that the gate failed: {0}")]
    Failed(String),
    /// The verdict does not follow from the rules.
    #[error("contradicts itself: {0}")]
    Inconsistent(String),
}
