//! What commands with tools or a judge share: the sandbox with this program as its helper, the toolchain.

use std::path::{Path, PathBuf};

use eval_rust::judge::{Judge, JudgeError, Options, find_toolchain};
use eval_rust::sandbox::{Command, Outcome, Run, Sandbox, SandboxError};
use moe_agent::rollout::{JudgeKeys, PromptKeys, RolloutError};
use moe_agent::tools::Setup;

/// Runs nothing, for tools that need no program.
struct NoPrograms;

impl Run for NoPrograms {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        Err(SandboxError::Command(format!("{} where no tool runs programs", command.program.display())))
    }
}

fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RolloutError + use<> {
    let path = path.to_path_buf();
    move |source| RolloutError::Judge(JudgeError::Io { op, path, source })
}

fn absolute(path: &Path) -> Result<PathBuf, RolloutError> {
    path.canonicalize().map_err(io("look for", path))
}

/// The sandbox.
pub(crate) fn sandbox(keys: &JudgeKeys) -> Result<Sandbox, RolloutError> {
    let helper = std::env::current_exe().map_err(io("find", Path::new("this program")))?;
    Ok(Sandbox::new(&helper, &keys.allow_weaker).map_err(JudgeError::Sandbox)?)
}

/// What runs the programs of a model's tools: a sandbox, or nothing where no tool has any.
pub(crate) fn runner(keys: &JudgeKeys, prompt: &PromptKeys) -> Result<Box<dyn Run + Sync>, RolloutError> {
    Ok(if prompt.runs_programs() { Box::new(sandbox(keys)?) } else { Box::new(NoPrograms) })
}

fn options(keys: &JudgeKeys) -> Result<Options, RolloutError> {
    let toolchain = match &keys.toolchain {
        Some(toolchain) => toolchain.clone(),
        None => find_toolchain(&|name| std::env::var_os(name))?,
    };
    std::fs::create_dir_all(&keys.work).map_err(io("create", &keys.work))?;
    Ok(Options {
        toolchain: absolute(&toolchain)?,
        vendor: keys.vendor.as_deref().map(absolute).transpose()?,
        work: absolute(&keys.work)?,
    })
}

/// What tools work with; without programs no toolchain is looked for.
pub(crate) fn setup(keys: &JudgeKeys, prompt: &PromptKeys) -> Result<Setup, RolloutError> {
    if prompt.runs_programs() {
        let Options { toolchain, vendor, work } = options(keys)?;
        return Ok(Setup { vendor, ..Setup::new(toolchain, work) });
    }
    std::fs::create_dir_all(&keys.work).map_err(io("create", &keys.work))?;
    Ok(Setup::new(PathBuf::new(), absolute(&keys.work)?))
}

/// Calls `act` with a judge as the keys say.
pub(crate) fn with_judge<T>(
    keys: &JudgeKeys,
    act: impl FnOnce(&Judge<'_>) -> Result<T, RolloutError>,
) -> Result<T, RolloutError> {
    let (options, sandbox) = (options(keys)?, sandbox(keys)?);
    act(&Judge::new(&sandbox, options)?)
}

/// Command-line options of a judge and of tools.
#[derive(clap::Args)]
pub(crate) struct JudgeArguments {
    /// Folder of the toolchain; rustup's default where it is left out.
    #[arg(long)]
    toolchain: Option<PathBuf>,
    /// Dependencies of tasks, as `cargo vendor` writes them.
    #[arg(long)]
    vendor: Option<PathBuf>,
    /// Folder for the judge's cache and for running.
    #[arg(long, default_value = "runs/judge")]
    work: PathBuf,
    /// Environments that act, and candidates that are judged, at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// A layer of the sandbox that may be missing; repeat for several.
    #[arg(long, value_name = "LAYER")]
    allow_weaker: Vec<eval_rust::sandbox::Layer>,
}

impl JudgeArguments {
    /// As a stage's configuration has them.
    pub(crate) fn keys(&self) -> JudgeKeys {
        JudgeKeys {
            toolchain: self.toolchain.clone(),
            vendor: self.vendor.clone(),
            work: self.work.clone(),
            jobs: self.jobs,
            allow_weaker: self.allow_weaker.clone(),
        }
    }
}

/// The error of a rollout with the exit code that it stands for.
pub(crate) fn told<T>(result: Result<T, RolloutError>) -> anyhow::Result<T> {
    Ok(result.map_err(trainer::TrainError::from)?)
}
