//! Pretraining: next-token prediction over packed documents, in phases of growing row length.

mod config;
mod run;

pub use config::{Phase, PretrainConfig};
pub use run::Pretrain;
