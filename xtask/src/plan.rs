//! `cargo xtask plan`: what a stage will need, before anything is allocated.

use anyhow::Result;

use crate::args::Args;

/// Runs the command.
pub(crate) fn command(args: Args) -> Result<()> {
    args.finish()
}
