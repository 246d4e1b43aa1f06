//! Promotion gates: content hashes and atomic writes, metric reports, policies, verdicts, receipts.
//!
//! Light on purpose: everything else, the orchestrator included, depends on this crate. The evaluator that produces
//! the reports is the package `gates-eval`.

pub mod artifact;
