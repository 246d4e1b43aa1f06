//! Errors that carry the exit code of the program.

use std::fmt;

/// A check or a gate failed.
pub(crate) const FAILED: u8 = 1;
/// Bad usage or input.
pub(crate) const USAGE: u8 = 2;
/// A run was stopped before its end.
pub(crate) const STOPPED: u8 = 3;
/// The environment lacks something.
pub(crate) const ENVIRONMENT: u8 = 4;

/// An error with an exit code of its own; every other error is one of usage or input.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// An error that ends the program with `code`.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(USAGE, |failure| failure.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_survives_context() {
        let error = anyhow::Error::new(Failure::new(3, "stopped")).context("step x");
        assert_eq!((exit_code(&error), format!("{error:#}").as_str()), (3, "step x: stopped"));
        assert_eq!(exit_code(&anyhow::anyhow!("no such file")), USAGE);
    }
}
