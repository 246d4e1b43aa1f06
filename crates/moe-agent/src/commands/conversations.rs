//! `moe-agent conversations`: mutation pairs as requests and answers, for the language adapter.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use model_core::{Harmony, Tokenizer};
use moe_agent::mutate::{PairConversation, is_borrow_checker, pair_conversation};
use moe_agent::read_mutations;
use moe_agent::tools::PromptStyle;

/// Arguments of `conversations`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Pairs, as `moe-agent mutate` writes them.
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// Folder for `mutations.jsonl` and `borrow-checker.jsonl`; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Say little.
    #[arg(long)]
    compact: bool,
    /// Longer conversations are left out; needs --tokenizer.
    #[arg(long, value_name = "N", requires = "tokenizer")]
    max_tokens: Option<usize>,
    /// Folder or file of the tokenizer that tokens are counted with.
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(!arguments.out.exists(), "{} is there already; choose another folder", arguments.out.display());
    let records = read_mutations(&arguments.pairs)?;
    let tokenizer = arguments.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let style = if arguments.compact { PromptStyle::Compact } else { PromptStyle::Full };
    let (mut mutations, mut borrows, mut counts) = (String::new(), String::new(), [0, 0, 0]);
    for (number, record) in records.iter().enumerate() {
        let made = pair_conversation(record, number, style);
        if !fits(&made, tokenizer.as_ref(), arguments.max_tokens)? {
            counts[2] += 1;
            continue;
        }
        let (file, at) = if is_borrow_checker(record) { (&mut borrows, 1) } else { (&mut mutations, 0) };
        *file += &(serde_json::to_string(&made)? + "\n");
        counts[at] += 1;
    }
    ensure!(counts[0] + counts[1] > 0, "{}: no pair fits; raise --max-tokens", arguments.pairs.display());
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("creating {}", arguments.out.display()))?;
    for (name, text) in [("mutations.jsonl", mutations), ("borrow-checker.jsonl", borrows)] {
        gates::artifact::write_atomic(&arguments.out.join(name), text.as_bytes())?;
    }
    println!("conversations: {} of mutations, {} of the borrow checker, {} too long", counts[0], counts[1], counts[2]);
    Ok(())
}

fn fits(made: &PairConversation, tokenizer: Option<&Tokenizer>, most: Option<usize>) -> Result<bool> {
    let (Some(tokenizer), Some(most)) = (tokenizer, most) else { return Ok(true) };
    Ok(made.n_tokens(&Harmony::new(tokenizer)?)? <= most)
}
