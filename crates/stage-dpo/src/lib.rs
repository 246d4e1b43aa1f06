//! Preference optimisation: DPO and its relatives against cached reference log-probabilities.

mod config;
mod run;

pub use config::DpoConfig;
pub use run::Dpo;
