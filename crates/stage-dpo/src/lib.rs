//! Preference optimisation: DPO and its relatives against cached reference log-probabilities.

mod config;
mod pairs;
mod reference;
mod run;

pub use config::DpoConfig;
pub use run::Dpo;
