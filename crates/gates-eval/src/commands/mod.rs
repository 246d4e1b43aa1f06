//! The commands and their exit codes: 0 done or passed, 1 gate failed, 2 bad usage or input, 4 environment.

mod baseline;
mod check;
mod eval;

use std::path::Path;

use anyhow::Context;
use gates::{EvalReport, Metric};
use kernels_cubecl::KernelError;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Measures a model with a suite of tasks and writes a report.
    Eval(eval::EvalArgs),
    /// Checks reports against a policy; exit code 1 when the gate does not open.
    Check(check::CheckArgs),
    /// Measures what a model must beat: an n-gram model and xz, both from the training rows.
    Baseline(baseline::BaselineArgs),
}

/// Runs a command; the number is the exit code.
pub(crate) fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Eval(args) => eval::run(&args).map(|()| 0),
        Command::Check(args) => check::run(&args).map(|passed| u8::from(!passed)),
        Command::Baseline(args) => baseline::run(&args).map(|()| 0),
    }
}

/// The exit code of an error: 4 for something that the environment lacks, else 2.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<KernelError>()).map_or(2, KernelError::exit_code)
}

/// An error with its causes; a message that already quotes its cause does not say it twice.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        said if said.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}

/// One line per metric.
fn print(metrics: &[Metric]) {
    for Metric { name, value, n, ci_low, ci_high, .. } in metrics {
        let interval = match ci_low.is_finite() && ci_high.is_finite() {
            true => format!("[{ci_low:.4}, {ci_high:.4}]"),
            false => "no interval".into(),
        };
        println!("{name:<40} {value:>10.4}  {interval:<22}  n {n}");
    }
}

/// Writes a report, making its folder.
fn write(report: &EvalReport, out: &Path) -> anyhow::Result<()> {
    make_parent(out)?;
    report.write(out)?;
    println!("wrote {}", out.display());
    Ok(())
}

fn make_parent(out: &Path) -> anyhow::Result<()> {
    let Some(parent) = out.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create the folder {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read x: no such file").context("gate a");
        assert_eq!(describe(&error), "gate a: cannot read x: no such file");
    }

    #[test]
    fn a_missing_device_is_exit_code_4_and_everything_else_2() {
        let missing = anyhow::Error::new(KernelError::NoCuda(1)).context("device");
        assert_eq!((exit_code(&missing), exit_code(&anyhow::anyhow!("bad input"))), (4, 2));
    }
}
