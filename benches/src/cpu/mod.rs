//! `perf cpu`: measures the CPU path on this machine and prints one table.
//!
//! Every figure is the median of several repetitions after a warm-up, with the distance between the quartiles as its
//! spread. Nothing is asserted about time.

mod demo;
mod generation;
mod linear;
mod measure;
mod ops;
mod peak;
mod saving;
mod step;
mod table;
mod text;

use std::path::PathBuf;

use anyhow::Result;

use demo::Demo;
use measure::Plan;
use peak::Peak;
use table::Table;

/// Arguments of `cpu`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Few and short repetitions: shows that everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Measure only these parts; the peak is always measured
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The machine: multiply-adds and memory
    Peak,
    /// Matrix products of linear layers, forward and backward
    Linear,
    /// Every other op at the demo's shapes
    Ops,
    /// The demo's training step
    Step,
    /// Tokenizer: encoding and training
    Tokenizer,
    /// Checkpoints: saving and loading
    Checkpoint,
    /// Text generation with a cache of keys and values
    Generation,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn plan(&self) -> Plan {
        if self.quick { Plan::quick() } else { Plan::full() }
    }
}

/// Measures what was asked for, prints the table and writes the file.
///
/// # Errors
/// When the demo's data or configuration cannot be read, or the file cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let table = measure(arguments)?;
    if let Some(path) = &arguments.json {
        gates::artifact::write_atomic(path, &table.to_json()?)?;
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Table> {
    let plan = arguments.plan();
    let mut table = Table::begin();
    let peak = Peak::measure(plan, &mut table);
    if arguments.wants(Part::Linear) {
        linear::measure(plan, &peak, &mut table);
    }
    if [Part::Ops, Part::Step, Part::Tokenizer, Part::Checkpoint, Part::Generation].iter().any(|&p| arguments.wants(p))
    {
        measure_demo(arguments, plan, &peak, &mut table)?;
    }
    table.end();
    Ok(table)
}

/// The parts that need the demo's text, tokenizer and configuration.
fn measure_demo(arguments: &Arguments, plan: Plan, peak: &Peak, table: &mut Table) -> Result<()> {
    let demo = Demo::make()?;
    if arguments.wants(Part::Ops) {
        ops::measure(plan, &demo, peak, table)?;
    }
    if arguments.wants(Part::Step) {
        step::measure(plan, &demo, peak, table)?;
    }
    if arguments.wants(Part::Tokenizer) {
        text::measure(plan, &demo, table)?;
    }
    if arguments.wants(Part::Checkpoint) {
        saving::measure(plan, &demo, table)?;
    }
    if arguments.wants(Part::Generation) {
        generation::measure(plan, &demo, table)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_and_gives_positive_figures() {
        let table = measure(&Arguments { quick: true, only: Vec::new(), json: None }).unwrap();
        let parts: Vec<&str> = table.rows().iter().map(|row| row.part).collect();
        for part in ["peak", "linear", "ops", "step", "tokenizer", "checkpoint", "generation"] {
            assert!(parts.contains(&part), "{part} is missing");
        }
        for row in table.rows() {
            assert!(row.value.median.is_finite() && row.value.median > 0.0, "{row:?}");
        }
        let json: serde_json::Value = serde_json::from_slice(&table.to_json().unwrap()).unwrap();
        assert_eq!(json["rows"].as_array().unwrap().len(), table.rows().len());
    }
}
