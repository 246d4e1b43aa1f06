//! The programs from outside: separate processes, files in, files and exit codes out.
//!
//! All tests share one binary, so the programs are built once and the tiny pipeline of `configs/pipeline.toml` runs once;
//! every test then works in a copy of what it needs. Everything is computed on the CPU.
//!
//! # A campaign of kills
//!
//! The kill tests take the number of kills from the environment: `FIREBRICK_KILLS=P,S` kills pretraining `P` times and
//! every other stage `S` times, `FIREBRICK_SEED` draws other moments. For instance
//!
//! ```text
//! FIREBRICK_KILLS=20,5 cargo test -p e2e --locked kill -- --nocapture
//! ```
//!
//! What is the same in every run: the moments as shares of a run's duration. Where a run stands at such a moment depends
//! on the machine, and that is the point.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests: a test stops at the first surprise")]

mod bad_checkpoint;
mod bad_config;
mod bad_data;
mod disk;
mod gate;
mod kill;
mod line;
mod lineage;
mod pipeline;
mod process;
mod programs;
mod random;
mod sandbox;
mod signal;
