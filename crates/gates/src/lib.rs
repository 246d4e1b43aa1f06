//! Promotion gates: content hashes and atomic writes, metric reports, policies, verdicts, receipts.
//!
//! ```text
//! checkpoint ── gates eval ──▶ eval-*.json ── gates check + policy ──▶ gate-*.json ──▶ next stage: Receipt::require
//! ```
//!
//! Four rules hold everywhere: a metric that is missing, not finite or measured on too few items fails; whether more
//! or less is better is written down, never guessed from a name; evidence counts only for the model whose hash it
//! carries; a receipt that was touched is no receipt.
//!
//! Light on purpose: everything else, the orchestrator included, depends on this crate. The evaluator that produces
//! the reports is the package `gates-eval`.

pub mod artifact;
pub mod error;
pub mod interval;
pub mod policy;
pub mod receipt;
pub mod report;
pub mod verdict;

pub use error::GateError;
pub use policy::Policy;
pub use receipt::Receipt;
pub use report::{Direction, EvalReport, Metric};
pub use verdict::Verdict;
