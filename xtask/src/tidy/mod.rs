//! `cargo xtask tidy`: the repository's own rules, each a pure function with a test on bad input.

mod banned;
mod configs;
mod documents;
mod duplicates;
mod graph;
mod length;
mod licences;
mod manifests;
mod names;
mod ops;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::args::Args;
use crate::failure::{FAILED, Failure};
use crate::workspace;
use source::Source;

/// Folders with Rust code.
const CODE: [&str; 4] = ["crates", "xtask", "tests", "benches"];

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: PathBuf,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: impl Into<PathBuf>, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Runs the command.
pub(crate) fn command(args: Args) -> Result<()> {
    args.finish()?;
    let findings = run(&workspace::root()?)?;
    if findings.is_empty() {
        println!("tidy: nothing found");
        return Ok(());
    }
    Err(Failure::new(FAILED, format!("tidy: {} findings", findings.len())).into())
}

/// Runs every check and prints what it finds.
pub(crate) fn run(root: &Path) -> Result<Vec<Finding>> {
    let mut paths = Vec::new();
    for dir in CODE {
        paths.extend(workspace::files(root, dir, "rs")?);
    }
    let sources: Vec<Source> =
        paths.into_iter().map(|path| Ok(Source::new(&path, workspace::read(root, &path)?))).collect::<Result<_>>()?;
    let metadata = workspace::metadata(root)?;
    let mut findings = Vec::new();
    for source in &sources {
        findings.extend(names::check(source));
        findings.extend(length::check(source));
        findings.extend(banned::check(source));
    }
    findings.extend(length::stale_exceptions(&sources));
    findings.extend(duplicates::check(&sources));
    findings.extend(ops::check(&sources));
    findings.extend(graph::check(&metadata));
    findings.extend(graph::check_weight(root)?);
    let members = graph::members(&metadata);
    findings.extend(licences::check(root, &members)?);
    findings.extend(manifests::check(root)?);
    findings.extend(documents::check(root, &members)?);
    findings.extend(configs::check(root)?);
    findings.sort();
    findings.iter().for_each(|finding| println!("{finding}"));
    Ok(findings)
}
