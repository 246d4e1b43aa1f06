//! `derive`: exercises for SFT, preference training and measuring, from the text sample.

use std::path::PathBuf;

use clap::Args;
use data_pipeline::recipe::{Recipe, derive};

/// Arguments of `derive`.
#[derive(Args)]
pub(crate) struct Derive {
    /// The sample: a folder with text/train and text/heldout
    #[arg(long)]
    data: PathBuf,
    /// Another seed draws other exercises; which words are held out does not depend on it
    #[arg(long, default_value_t = Recipe::default().seed)]
    seed: u64,
    /// Conversations for SFT
    #[arg(long, default_value_t = Recipe::default().sft)]
    sft: usize,
    /// Pairs for preference training
    #[arg(long, default_value_t = Recipe::default().preference)]
    preference: usize,
    /// Held-out conversations, and as many held-out pairs
    #[arg(long, default_value_t = Recipe::default().heldout)]
    heldout: usize,
    #[command(flatten)]
    out: super::Out,
}

impl Derive {
    /// Runs the subcommand.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let Self { data, seed, sft, preference, heldout, out } = self;
        let recipe = Recipe { seed: *seed, sft: *sft, preference: *preference, heldout: *heldout };
        super::finish(&derive(data, &out.out, &recipe, out.overwrite)?)
    }
}
