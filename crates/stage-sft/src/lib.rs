//! Supervised fine-tuning: conversations, loss on what the assistant says only, packed with isolated segments.

mod config;
mod run;

pub use config::SftConfig;
pub use run::Sft;
