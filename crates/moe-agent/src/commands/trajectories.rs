//! `moe-agent trajectories`: makes them, replays them, and makes the index that a tool searches.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use eval_rust::sandbox::Sandbox;
use moe_agent::tools::index_sources;
use moe_agent::trajectories::{Config, TrajectoryError, generate, replay};

use super::stream;

/// A replay found a difference.
const DIFFERS: u8 = 1;
/// The environment lacks a layer of the sandbox.
const LACKING: u8 = 4;

/// Arguments of `trajectories`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// What to make.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// A key of the configuration with another value; can be given for each.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Subcommand)]
enum Other {
    /// Execute a share of the trajectories again and compare every result; exit code 1 shows what differs.
    Replay {
        /// Folder of the trajectories.
        #[arg(long, value_name = "DIR")]
        input: PathBuf,
        /// Share of them, above 0 and at most 1.
        #[arg(long, default_value_t = 0.01)]
        share: f64,
        /// Seed of the choice.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// A layer of the sandbox that may be missing; can be given for each.
        #[arg(long, value_name = "LAYER")]
        allow_weaker: Vec<eval_rust::sandbox::Layer>,
    },
    /// Make the index of `search_crates_io` out of the manifests of a folder of crates.
    Index {
        /// Folder of crates.
        #[arg(long, value_name = "DIR")]
        sources: PathBuf,
        /// Where the index goes; `-` is standard output.
        #[arg(long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
    },
}

/// Runs the subcommand; `helper` is this program, which the sandbox starts again.
pub(crate) fn run(arguments: &Arguments, helper: &Path) -> Result<ExitCode> {
    let env = |name: &str| std::env::var_os(name);
    let done = match (&arguments.other, &arguments.config) {
        (Some(Other::Index { sources, output }), _) => {
            stream::write(output, index_sources(sources)?.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        (Some(Other::Replay { input, share, seed, allow_weaker }), _) => {
            let sandbox = Sandbox::new(helper, allow_weaker)?;
            replay(input, *share, *seed, &sandbox, &env).map(|found| {
                if !found.same_toolchain {
                    eprintln!("moe-agent: the toolchain is not the one that these trajectories were made with");
                }
                let text = serde_json::to_string_pretty(&found).expect("a report becomes JSON");
                (text, if found.differences.is_empty() { 0 } else { DIFFERS })
            })
        }
        (None, Some(config)) => {
            let config = Config::load(config, &arguments.set)?;
            let sandbox = Sandbox::new(helper, &config.allow_weaker)?;
            generate(&config, &sandbox, &env).map(|(manifest, seconds)| {
                let n: usize = manifest.made.values().sum();
                let each = if n > 0 { seconds / n as f64 } else { 0.0 };
                let report = serde_json::json!({
                    "made": manifest.made,
                    "tried": manifest.tried,
                    "yield": manifest.yield_,
                    "dropped": manifest.dropped,
                    "with_wrong_attempt": manifest.with_wrong_attempt,
                    "calls": manifest.calls,
                    "tokens_min_mean_max": manifest.tokens,
                    "sandbox_s": seconds,
                    "sandbox_s_per_trajectory": each,
                });
                (serde_json::to_string_pretty(&report).expect("a report becomes JSON"), 0)
            })
        }
        (None, None) => unreachable!("clap asks for --config"),
    };
    match done {
        Ok((text, code)) => {
            stream::write(Path::new("-"), format!("{text}\n").as_bytes())?;
            Ok(ExitCode::from(code))
        }
        Err(error) if TrajectoryError::lacks_layer(&error) => {
            eprintln!("moe-agent: {error}");
            Ok(ExitCode::from(LACKING))
        }
        Err(error) => Err(error.into()),
    }
}
