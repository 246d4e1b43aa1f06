//! `cargo xtask pipeline`: runs the steps of a pipeline file as separate programs, skips what is there and unchanged,
//! stops at the first that fails.
//!
//! Everything of a run lies in `runs/RUN`: the steps' outputs, `steps/` (what is known of every step), `logs/`,
//! `replaced/` (outputs that a changed step made before; they are never deleted) and `summary.{json,md}`.

mod build;
pub(crate) mod config;
mod engine;
pub(crate) mod metrics;
mod place;
mod record;
pub(crate) mod summary;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::args::Args;
use crate::failure::{Failure, USAGE};
use crate::workspace;
use config::Pipeline;
use engine::{Engine, Range};
use place::Place;

const DEFAULT: &str = "configs/pipeline/demo.toml";

/// Runs the command.
pub(crate) fn command(mut args: Args) -> Result<()> {
    let root = workspace::root()?;
    let config = args.option("--config")?.unwrap_or_else(|| DEFAULT.into());
    let (run, device) = (args.option("--run")?, args.option("--device")?.unwrap_or_else(|| "auto".into()));
    let (from, until) = (args.option("--from")?, args.option("--until")?);
    let (prebuilt, sets) = (args.option("--programs")?, args.options("--set")?);
    let resume = args.flag("--resume");
    args.finish()?;
    let pipeline = Pipeline::load(&root, Path::new(&config), &sets)?;
    let range = Range {
        from: from.map(|name| pipeline.index(&name)).transpose()?,
        until: until.map(|name| pipeline.index(&name)).transpose()?.unwrap_or(pipeline.steps.len() - 1),
    };
    ensure!(range.from.unwrap_or(0) <= range.until, "`--from` comes after `--until`");
    let name = run.unwrap_or_else(|| pipeline.name.clone());
    config::check_run_name(&name)?;
    let place = Place { root, run: format!("runs/{name}"), device };
    let missing = pipeline.missing(&place.root, range.until + 1);
    if !missing.is_empty() {
        let message = format!("{config} needs {} from you; its comments say what belongs there", missing.join(", "));
        return Err(Failure::new(USAGE, message).into());
    }
    let programs = match prebuilt {
        // Absolute, because the programs are started in the repository's root and not here.
        Some(dir) => build::prebuilt(&std::path::absolute(dir).context("`--programs`")?, &pipeline)?,
        None => build::programs(&place.root, &pipeline, &place.device)?,
    };
    let run_dir = place.run_dir();
    for folder in ["steps", "logs"] {
        let dir = run_dir.join(folder);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let _lock = lock(&run_dir)?;
    Engine::new(place, &pipeline, programs, resume).run(&range)
}

/// Holds the run's folder until the end of the process; two pipelines in one run would mix their outputs.
fn lock(run_dir: &Path) -> Result<std::fs::File> {
    let path = run_dir.join("pipeline.lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let message =
                format!("{} is in use by another pipeline; wait for it or choose another --run", run_dir.display());
            Err(Failure::new(USAGE, message).into())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}
