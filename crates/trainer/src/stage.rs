//! What all stage programs share: arguments, exit codes, the choice of device, the record of the run.
//!
//! A stage implements [`Stage`] and its `main.rs` is one line: `trainer::stage::main::<Pretrain>()`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser};
use kernels_cubecl::{Device, DeviceChoice, LmBackend, keep_exact_sizes, on_device};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{self, Arithmetic};
use crate::lineage::{GateRecord, Input, StageOutcome, StageRecord};
use crate::memory::{Workload, host_available};
use crate::{Outcome, TrainError};

/// Exit code of a run that did what it was asked.
const DONE: u8 = 0;

/// The options of every stage program. There are no options for hyper-parameters: those are configuration.
#[derive(Args, Clone, Debug)]
pub struct StageArgs {
    /// TOML file with the stage's configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Overrides one configuration key, by its dotted path; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Continues from the last intact checkpoint; without one it starts at the beginning
    #[arg(long)]
    pub resume: bool,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Plain lines of progress even on a terminal; the live view keeps one core busy
    #[arg(long)]
    pub plain: bool,
    /// Prints what the run would need of a device's memory, and ends
    #[arg(long)]
    pub plan: bool,
    /// Starts although the gate before this stage says no; the reason goes into the lineage
    #[arg(long, value_name = "REASON")]
    pub override_gate: Option<String>,
}

/// One stage program.
pub trait Stage {
    /// Its name: `pretrain`, `sft`, ...
    const NAME: &'static str;
    /// Whether its steps ask a device for the same sizes of memory again and again; those of a stage that samples do not, and
    /// the device's pool then holds more than the memory plan counts.
    const FIXED_SIZES: bool = true;
    /// Its configuration.
    type Config: Serialize + DeserializeOwned;

    /// Checks across keys, before anything is read or allocated.
    ///
    /// # Errors
    /// The first key that is out of range.
    fn check(config: &Self::Config) -> Result<(), TrainError>;

    /// The arithmetic it asks for.
    fn arithmetic(config: &Self::Config) -> Arithmetic;

    /// What it trains, for the memory plan; `None` for a stage that trains nothing.
    fn workload(config: &Self::Config) -> Option<Workload>;

    /// Does the work on one backend.
    ///
    /// # Errors
    /// Whatever ends the stage early; [`TrainError::exit_code`] becomes the program's.
    fn run<B: LmBackend>(config: Self::Config, args: &StageArgs, device: &B::Device) -> Result<Outcome, TrainError>;
}

/// The arguments of the process.
#[derive(Parser, Debug)]
struct Cli {
    #[command(flatten)]
    args: StageArgs,
}

/// The `main` of a stage program: parses the arguments, runs the stage, turns errors into messages and exit codes.
///
/// Wrong usage ends the process with code 2, as clap does by itself.
pub fn main<S: Stage>() -> ExitCode {
    program::<S>(&Cli::parse().args)
}

/// The same for a program with several stages, which has parsed the arguments itself.
pub fn program<S: Stage>(args: &StageArgs) -> ExitCode {
    crate::memory::keep_freed_memory();
    if args.plan {
        return match plan::<S>(args) {
            Ok(plan) => {
                print!("{plan}");
                ExitCode::from(DONE)
            }
            Err(error) => failed::<S>(&error),
        };
    }
    match execute::<S>(args) {
        Ok(Outcome::Finished) => ExitCode::from(DONE),
        Ok(Outcome::Interrupted | Outcome::StoppedEarly) => {
            eprintln!("{}: stopped on request, everything is saved; continue with --resume", S::NAME);
            ExitCode::from(DONE)
        }
        Err(error) => failed::<S>(&error),
    }
}

fn failed<S: Stage>(error: &TrainError) -> ExitCode {
    eprintln!("{}: {error}", S::NAME);
    kernels_cubecl::leave(error.exit_code())
}

/// The memory plan as text; needs neither the weights nor a device.
///
/// # Errors
/// As [`config::load`] and [`Stage::check`]; a model folder without a configuration.
fn plan<S: Stage>(args: &StageArgs) -> Result<String, TrainError> {
    let config: S::Config = config::load(&args.config, &args.sets)?;
    S::check(&config)?;
    Ok(match S::workload(&config) {
        Some(workload) => workload.plan()?.to_string(),
        None => "memory plan: nothing is trained\n".to_owned(),
    })
}

/// Compares the memory plan with the device and shows it; the CPU shares its memory with everything else and has no limit of
/// its own.
fn require_memory<S: Stage>(config: &S::Config, device: &Device) -> Result<(), TrainError> {
    let (Some(memory), Some(workload)) = (device.memory(), S::workload(config)) else { return Ok(()) };
    let plan = workload.require(memory, host_available())?;
    eprint!("{}: {plan}", S::NAME);
    Ok(())
}

/// Loads and checks the configuration, finds the device and runs the stage on its backend.
///
/// # Errors
/// As [`config::load`], [`Stage::check`], [`DeviceChoice::resolve`], [`Arithmetic::on`] and [`Stage::run`]; [`TrainError::NoDeviceMemory`] and
/// [`TrainError::NoHostMemory`] before anything is allocated when device or host have too little.
pub fn execute<S: Stage>(args: &StageArgs) -> Result<Outcome, TrainError> {
    let config: S::Config = config::load(&args.config, &args.sets)?;
    S::check(&config)?;
    if S::FIXED_SIZES {
        // The memory plan counts on the sizes' coming back.
        keep_exact_sizes();
    }
    let device = S::arithmetic(&config).on(args.device.resolve()?)?;
    require_memory::<S>(&config, &device)?;
    on_device!(device, B, device => S::run::<B>(config, args, &device))?
}

/// What a stage leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// How the loop ended.
    pub outcome: Outcome,
    /// Completed steps.
    pub steps: u64,
    /// The model folder that came out.
    pub model: PathBuf,
}

/// The lineage of a stage while it runs: `stage.json` says "running" until the work has ended one way or the other.
#[derive(Debug)]
pub struct RecordedRun {
    dir: PathBuf,
    record: StageRecord,
}

impl RecordedRun {
    /// Writes the record of a stage that starts. The caller holds the lock of `dir`, so that a second process cannot
    /// overwrite the record of the first.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn begin<T: Serialize>(
        dir: &Path,
        stage: &str,
        config: &T,
        inputs: BTreeMap<String, Input>,
        gate: GateRecord,
    ) -> Result<Self, TrainError> {
        let record = StageRecord::start(stage, config, inputs, gate)?;
        record.write(dir)?;
        Ok(Self { dir: dir.to_path_buf(), record })
    }

    /// Runs the work and records how it ended.
    ///
    /// # Errors
    /// The error of the work, recorded first; or that the record cannot be written.
    pub fn finish(mut self, work: impl FnOnce() -> Result<Finish, TrainError>) -> Result<Outcome, TrainError> {
        let finish = match work() {
            Ok(finish) => finish,
            Err(error) => {
                self.record.outcome = StageOutcome::Failed { error: error.to_string(), exit_code: error.exit_code() };
                // The work's own error is the one worth telling; a record that still says "running" says the same.
                let _ = self.record.write(&self.dir);
                return Err(error);
            }
        };
        let (steps, output) = (finish.steps, Input::model(&finish.model)?);
        self.record.outcome = match finish.outcome {
            Outcome::Finished => StageOutcome::Finished { steps, output },
            Outcome::StoppedEarly => StageOutcome::Stopped { steps, output, cause: "stop_after".into() },
            Outcome::Interrupted => StageOutcome::Stopped { steps, output, cause: "signal".into() },
        };
        self.record.write(&self.dir)?;
        Ok(finish.outcome)
    }
}

#[cfg(test)]
mod tests;
