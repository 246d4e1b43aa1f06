//! The one training loop and everything around it: objectives, optimizer, schedules, checkpoints, observation, lineage.
//!
//! A stage supplies an [`objective::Objective`], a [`batch::BatchSource`] and a configuration with a [`TrainConfig`]
//! inside; [`run::run_stage`] does the rest. The loop itself is [`train::train`].

pub mod adapter;
pub mod batch;
pub mod checkpoint;
pub mod config;
mod error;
pub mod lineage;
mod liveness;
pub mod memory;
pub mod mix;
mod numbers;
pub mod objective;
pub mod observe;
pub mod optim;
pub mod pairs;
pub mod render;
pub mod run;
pub mod scaling;
pub mod schedule;
pub mod signals;
pub mod stage;
pub mod state;
pub mod text;
pub mod train;
pub mod tune;

pub use batch::{BatchSource, EvalSet, MicroBatch, Pair, Sample};
pub use config::TrainConfig;
pub use error::TrainError;
pub use stage::StageArgs;
pub use state::TrainState;
pub use train::{Outcome, Parts};

#[cfg(test)]
mod tests;
