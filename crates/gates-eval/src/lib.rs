//! Evaluation of a checkpoint: a suite of tasks in, a report for the gates out; and the baselines to beat.
//!
//! Every number comes with the items it was measured on, a 95 % interval and the hash of its data. Greedy answers are
//! scored by teacher forcing: an answer is exactly what greedy decoding would produce if and only if every one of its
//! tokens, the end token included, is the most likely one after the tokens before it.

pub mod baseline;
pub mod error;
pub mod evaluate;
pub mod score;
pub mod suite;
pub mod tasks;

pub use error::EvalError;
pub use evaluate::evaluate;
pub use suite::Suite;
