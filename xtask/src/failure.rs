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

/// An error with its causes; a message that already quotes its cause does not say it twice.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        said if said.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_survives_context() {
        let error = anyhow::Error::new(Failure::new(3, "stopped")).context("step x");
        assert_eq!((exit_code(&error), describe(&error).as_str()), (3, "step x: stopped"));
        let quoted = anyhow::anyhow!("no such file").context("cannot read x: no such file");
        assert_eq!(describe(&quoted), "cannot read x: no such file");
        assert_eq!(exit_code(&anyhow::anyhow!("no such file")), USAGE);
    }
}
