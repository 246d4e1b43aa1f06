//! The tokenizer: encoding the demo's text on one core and on all, and training.

use anyhow::Result;
use data_pipeline::Tokenizer;
use data_pipeline::tokenizer::{SPECIAL_TOKENS, train};

use super::demo::{Demo, VOCAB_SIZE, texts};
use super::measure::{Plan, Spread, repeat};
use super::table::{Row, Table};

/// A vocabulary that the sample just about yields.
const LARGER: usize = 16_384;
/// Repetitions of training at most; each takes about a second.
const TRAININGS: usize = 5;

/// Measures the demo's vocabulary and a larger one.
pub(super) fn measure(plan: Plan, demo: &Demo, table: &mut Table) -> Result<()> {
    let larger = train(texts(&demo.records), LARGER, &SPECIAL_TOKENS);
    encode(plan, demo, &demo.tokenizer, table);
    match &larger {
        Ok(tokenizer) => encode(plan, demo, tokenizer, table),
        Err(error) => table.note(&format!("no vocabulary of {LARGER}: {error}")),
    }
    for vocab_size in [Some(VOCAB_SIZE), larger.is_ok().then_some(LARGER)].into_iter().flatten() {
        let seconds =
            repeat(plan.at_most(TRAININGS), || train(texts(&demo.records), vocab_size, &SPECIAL_TOKENS).is_ok());
        let name = format!("train {vocab_size} entries on {:.1} MB", megabytes(demo));
        table.add(Row { part: "tokenizer", name, unit: "s", value: Spread::of(seconds), share: None });
    }
    Ok(())
}

fn megabytes(demo: &Demo) -> f64 {
    texts(&demo.records).map(|text| text.len() as f64).sum::<f64>() / 1e6
}

fn encode(plan: Plan, demo: &Demo, tokenizer: &Tokenizer, table: &mut Table) {
    let all: Vec<&str> = texts(&demo.records).collect();
    let one = repeat(plan, || all.iter().map(|text| tokenizer.encode(text).len()).sum::<usize>());
    let every = repeat(plan, || tokenizer.encode_batch(&all).len());
    for (name, seconds) in [("1 core", one), ("all cores", every)] {
        let name = format!("encode with {} entries, {name}", tokenizer.vocab_size());
        let value = Spread::rate(megabytes(demo), &seconds);
        table.add(Row { part: "tokenizer", name, unit: "MB/s", value, share: None });
    }
}
