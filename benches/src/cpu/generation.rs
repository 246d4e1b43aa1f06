//! Text generation with a cache of keys and values.

use anyhow::Result;
use model_core::{Sampling, generate};

use super::demo::{self, Demo};
use super::measure::{Plan, Spread, repeat};
use super::table::{Row, Table};

/// Tokens of every prompt.
const PROMPT: usize = 32;
/// Tokens made per prompt in a full run.
const NEW: usize = 256;

/// Measures one sequence and batches; weights are fresh, which changes no speed.
pub(super) fn measure(plan: Plan, demo: &Demo, table: &mut Table) -> Result<()> {
    let model = demo::model();
    let text = &demo.records[0].text;
    let ids = demo.tokenizer.encode(text);
    anyhow::ensure!(ids.len() >= PROMPT, "the first document has only {} tokens", ids.len());
    let new = if plan.reps > 2 { NEW } else { 4 };
    let sampling = Sampling::greedy(new);
    for batch in [1, 16, 64] {
        let prompts = vec![ids[..PROMPT].to_vec(); batch];
        let made = generate(&model, &prompts, &sampling)?;
        let n_tokens: usize = made.iter().map(Vec::len).sum();
        let seconds = repeat(plan.at_most(7), || generate(&model, &prompts, &sampling).map(|made| made.len()));
        let name = format!("greedy, {batch} sequences, {PROMPT} + {new} tokens");
        let value = Spread::rate(n_tokens as f64, &seconds);
        table.add(Row { part: "generation", name, unit: "tokens/s", value, share: None });
    }
    Ok(())
}
