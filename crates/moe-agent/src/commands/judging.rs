//! What commands with a judge share: the sandbox with this program as its helper, the toolchain.

use eval_rust::judge::{Judge, JudgeError, Options, find_toolchain};
use eval_rust::sandbox::Sandbox;
use moe_agent::rollout::{JudgeKeys, RolloutError};

/// Calls `act` with a judge as the keys say.
pub(crate) fn with_judge<T>(
    keys: &JudgeKeys,
    act: impl FnOnce(&Judge<'_>) -> Result<T, RolloutError>,
) -> Result<T, RolloutError> {
    let io = |op, path: &std::path::Path| {
        let path = path.to_path_buf();
        move |source| RolloutError::Judge(JudgeError::Io { op, path, source })
    };
    let toolchain = match &keys.toolchain {
        Some(toolchain) => toolchain.clone(),
        None => find_toolchain(&|name| std::env::var_os(name))?,
    };
    std::fs::create_dir_all(&keys.work).map_err(io("create", &keys.work))?;
    let absolute = |path: &std::path::PathBuf| path.canonicalize().map_err(io("look for", path));
    let options = Options {
        toolchain: absolute(&toolchain)?,
        vendor: keys.vendor.as_ref().map(absolute).transpose()?,
        work: absolute(&keys.work)?,
    };
    let helper = std::env::current_exe().map_err(io("find", std::path::Path::new("this program")))?;
    let sandbox = Sandbox::new(&helper, &keys.allow_weaker).map_err(JudgeError::Sandbox)?;
    act(&Judge::new(&sandbox, options)?)
}

/// Command-line options of a judge.
#[derive(clap::Args)]
pub(crate) struct JudgeArguments {
    /// Folder of the toolchain; rustup's default where it is left out.
    #[arg(long)]
    toolchain: Option<std::path::PathBuf>,
    /// Dependencies of tasks, as `cargo vendor` writes them.
    #[arg(long)]
    vendor: Option<std::path::PathBuf>,
    /// Folder for the judge's cache and for running.
    #[arg(long, default_value = "runs/judge")]
    work: std::path::PathBuf,
    /// Candidates that are judged at a time.
    #[arg(long, default_value_t = 2)]
    judge_jobs: usize,
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
            jobs: self.judge_jobs,
            allow_weaker: self.allow_weaker.clone(),
        }
    }
}

/// The error of a rollout with the exit code that it stands for.
pub(crate) fn told<T>(result: Result<T, RolloutError>) -> anyhow::Result<T> {
    Ok(result.map_err(trainer::TrainError::from)?)
}
