//! Group-relative policy optimisation over the one loop: the model samples episodes, the world says what they are worth.
//!
//! A step's batches are made by [`GrpoObjective`], which gets the model as it is before the step: the same weights, tokenizer and
//! forward pass sample, score and train. The rollouts of a step are a function of weights, seed and step; each is kept in
//! `rollouts/`, so that a run with several updates for each rollout can resume between them.

mod batches;
mod config;
mod objective;
mod record;
mod stage;
#[cfg(test)]
mod tests;

pub use config::{Curriculum, GrpoConfig, KlKeys, LossKeys, Phase, SamplingKeys};
pub use objective::GrpoObjective;
pub use stage::{NAME, run};
