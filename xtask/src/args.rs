//! The arguments of a command: options with a value, flags, and words; what nobody asked for is an error.

use anyhow::{Result, bail};

/// Arguments that have not been taken yet.
pub(crate) struct Args {
    rest: Vec<String>,
}

impl Args {
    /// The arguments in the order given.
    pub(crate) fn new(args: impl IntoIterator<Item = String>) -> Self {
        Self { rest: args.into_iter().collect() }
    }

    /// Takes the first argument if it is a word.
    pub(crate) fn positional(&mut self) -> Option<String> {
        let is_word = self.rest.first().is_some_and(|arg| !arg.starts_with('-'));
        is_word.then(|| self.rest.remove(0))
    }

    /// Takes `name value` or `name=value`.
    ///
    /// # Errors
    /// When it is there twice, or without a value.
    pub(crate) fn option(&mut self, name: &str) -> Result<Option<String>> {
        let mut found = self.options(name)?;
        if found.len() > 1 {
            bail!("`{name}` is there twice");
        }
        Ok(found.pop())
    }

    /// Takes every `name value` and `name=value`, in their order.
    ///
    /// # Errors
    /// When one is without a value.
    pub(crate) fn options(&mut self, name: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let is_it = |arg: &String| arg == name || arg.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        while let Some(at) = self.rest.iter().position(is_it) {
            let arg = self.rest.remove(at);
            found.push(match arg.split_once('=') {
                Some((_, value)) => value.to_owned(),
                None if at < self.rest.len() && !self.rest[at].starts_with("--") => self.rest.remove(at),
                None => bail!("`{name}` needs a value"),
            });
        }
        Ok(found)
    }

    /// Takes a flag.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.rest.len();
        self.rest.retain(|arg| arg != name);
        self.rest.len() < before
    }

    /// Everything that was not taken.
    pub(crate) fn rest(self) -> Vec<String> {
        self.rest
    }

    /// Ends the parsing.
    ///
    /// # Errors
    /// When something was not taken.
    pub(crate) fn finish(self) -> Result<()> {
        match self.rest.first() {
            None => Ok(()),
            Some(arg) => bail!("unknown argument `{arg}`; `cargo xtask help` lists what there is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Args {
        Args::new(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_flags_and_words_are_taken() {
        let mut got = args("pipeline --config a.toml --resume --run=x");
        assert_eq!(got.positional().as_deref(), Some("pipeline"));
        assert_eq!(got.option("--config").unwrap().as_deref(), Some("a.toml"));
        assert_eq!(got.option("--run").unwrap().as_deref(), Some("x"));
        assert_eq!(got.option("--from").unwrap(), None);
        assert!(got.flag("--resume") && !got.flag("--resume"));
        got.finish().unwrap();
        let mut got = args("--set a.b=1 --set=c=2 --resume");
        assert_eq!(got.options("--set").unwrap(), ["a.b=1", "c=2"]);
        assert!(got.options("--set").unwrap().is_empty() && got.flag("--resume"));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(args("--run").option("--run").unwrap_err().to_string(), "`--run` needs a value");
        assert_eq!(args("--run --resume").option("--run").unwrap_err().to_string(), "`--run` needs a value");
        assert_eq!(args("--run a --run b").option("--run").unwrap_err().to_string(), "`--run` is there twice");
        assert!(args("--runs a").finish().unwrap_err().to_string().contains("`--runs`"));
    }
}
