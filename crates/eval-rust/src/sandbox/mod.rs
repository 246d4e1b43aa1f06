//! Running code that nobody trusts.

pub mod types;
