//! Domain adaptation by a low-rank adapter: domain rows with a share of general ones, adapter and merged model out.

mod config;
mod run;

pub use config::LoraStageConfig;
pub use run::LoraStage;
