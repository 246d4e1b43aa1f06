//! tidy
use anyhow::Result;
use std::path::Path;
pub(crate) fn command(args: crate::args::Args) -> Result<()> {
    args.finish()
}
pub(crate) fn run(_root: &Path) -> Result<Vec<String>> {
    Ok(vec![])
}
