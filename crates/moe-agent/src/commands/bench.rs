//! What the commands that build and test crates have in common: the toolchain and the sandbox.

use std::path::PathBuf;

use anyhow::{Context, Result};
use eval_rust::judge::find_toolchain;
use eval_rust::sandbox::{Layer, Sandbox};
use serde::de::DeserializeOwned;

/// Most bytes of a file of settings.
const MAX_SETTINGS: u64 = 1 << 20;

/// Arguments of every such command.
#[derive(clap::Args)]
pub(crate) struct BenchArguments {
    /// Folder of a toolchain; rustup's default one when left out.
    #[arg(long, value_name = "DIR")]
    toolchain: Option<PathBuf>,
    /// A layer of the sandbox that may be missing; repeat for several.
    #[arg(long, value_name = "LAYER")]
    allow_weaker: Vec<Layer>,
}

impl BenchArguments {
    /// The toolchain and the sandbox.
    pub(crate) fn open(&self) -> Result<(PathBuf, Sandbox)> {
        let toolchain = match &self.toolchain {
            Some(toolchain) => toolchain.clone(),
            None => find_toolchain(&|name| std::env::var_os(name))?,
        };
        let toolchain = toolchain.canonicalize().with_context(|| format!("looking for {}", toolchain.display()))?;
        let helper = std::env::current_exe().context("finding this program, which is the sandbox's helper")?;
        Ok((toolchain, Sandbox::new(&helper, &self.allow_weaker)?))
    }
}

/// Reads a file of settings; without one, everything is as by default.
pub(crate) fn settings<T: DeserializeOwned + Default>(path: Option<&PathBuf>) -> Result<T> {
    let Some(path) = path else { return Ok(T::default()) };
    let bytes = gates::artifact::read_bounded(path, MAX_SETTINGS)?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
}
