//! `gates check`: reports and a policy in, a verdict out, with a receipt for the next stage.

use std::path::{Path, PathBuf};

use gates::verdict::{self, Evidence};
use gates::{EvalReport, Policy, Receipt, artifact};

/// Checks reports against a policy; exit code 1 when the gate does not open.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The policy.
    #[arg(long)]
    policy: PathBuf,
    /// The transition, as named in the policy.
    #[arg(long)]
    transition: String,
    /// Reports of this model.
    #[arg(long, required = true, num_args = 1..)]
    eval: Vec<PathBuf>,
    /// Reports to compare with: of other models, or of `gates baseline`.
    #[arg(long, num_args = 1..)]
    baseline: Vec<PathBuf>,
    /// Folder of the model that asks for promotion.
    #[arg(long)]
    model: PathBuf,
    /// The receipt to write, passed or not.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command; returns whether the gate was passed.
pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<bool> {
    let policy = Policy::load(&args.policy)?;
    let model_hash = artifact::model_hash(&args.model)?;
    let (evals, baselines) = (load(&args.eval)?, load(&args.baseline)?);
    let verdict = verdict::check(&policy, &args.transition, &model_hash, &evals, &baselines)?;
    print!("{verdict}");
    let passed = verdict.passed;
    if let Some(out) = &args.out {
        super::make_parent(out)?;
        Receipt::new(verdict, &policy, &model_hash, &evals, &baselines).write(out)?;
        println!("wrote {}", out.display());
    }
    Ok(passed)
}

fn load(paths: &[PathBuf]) -> anyhow::Result<Vec<Evidence>> {
    let load = |path: &PathBuf| -> anyhow::Result<Evidence> {
        let (report, hash) = EvalReport::load(Path::new(path))?;
        Ok(Evidence { report, hash })
    };
    paths.iter().map(load).collect()
}
