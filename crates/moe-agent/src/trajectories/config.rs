//! The configuration of `moe-agent trajectories`: what was written, and what runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use eval_rust::sandbox::Layer;
use serde::{Deserialize, Serialize};

use super::error::TrajectoryError;
use super::record::Kind;
use crate::tools::{CrateIndex, PromptStyle, Setup, Tool};

/// Most bytes of a configuration.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What to make, of what, and how. Paths are relative to where the program runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Mutation pairs, a JSON line each; without them only clippy and feature trajectories are made.
    #[serde(default)]
    pub mutations: Option<PathBuf>,
    /// The list of sources that the pairs were made of; its crates for training are used, out of `vendor`.
    #[serde(default)]
    pub sources: Option<PathBuf>,
    /// In place of `sources`: a folder of crates that are laid out, each in a folder `NAME-VERSION`.
    #[serde(default)]
    pub crates: Option<PathBuf>,
    /// Folder that must not be there, or one of the same run that was interrupted.
    pub output: PathBuf,
    /// Folder for what is gone afterwards.
    #[serde(default = "default_work")]
    pub work: PathBuf,
    /// Dependencies of the crates, as `cargo vendor` writes them.
    #[serde(default)]
    pub vendor: Option<PathBuf>,
    /// Index for `search_crates_io`.
    #[serde(default)]
    pub index: Option<PathBuf>,
    /// Folder of the toolchain; rustup's default where it is left out.
    #[serde(default)]
    pub toolchain: Option<PathBuf>,
    /// Layers of the sandbox that may be missing.
    #[serde(default)]
    pub allow_weaker: Vec<Layer>,
    /// Seed of every choice.
    #[serde(default)]
    pub seed: u64,
    /// Trajectories at a time.
    #[serde(default = "one")]
    pub jobs: usize,
    /// The kinds that are kept.
    #[serde(default = "every_kind")]
    pub kinds: Vec<Kind>,
    /// Most mutation pairs to try; 0 tries all.
    #[serde(default)]
    pub max_mutations: usize,
    /// Places of each crate to try for clippy trajectories.
    #[serde(default)]
    pub clippy_per_crate: usize,
    /// Functions of each crate to try for feature trajectories.
    #[serde(default)]
    pub features_per_crate: usize,
    /// Share of the trajectories in which a wrong attempt is tried first.
    #[serde(default = "multi_step_ratio")]
    pub multi_step_ratio: f64,
    /// Whether wrong attempts are trained on.
    #[serde(default)]
    pub supervise_wrong: bool,
    /// The tools that are declared and used.
    #[serde(default = "every_tool")]
    pub tools: Vec<Tool>,
    /// How much is said around the request, and in thoughts.
    #[serde(default)]
    pub style: PromptStyle,
    /// Most bytes of an output of a tool, about.
    #[serde(default = "output_bytes")]
    pub output_bytes: usize,
    /// Most lines of code that are read at a time.
    #[serde(default = "read_lines")]
    pub read_lines: usize,
    /// Longer trajectories are dropped; 0 keeps all.
    #[serde(default)]
    pub max_tokens: usize,
    /// The `tokenizer.json` that tokens are counted with; GPT-OSS's own vocabulary where it is left out.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Wall seconds of a program.
    #[serde(default = "seconds")]
    pub seconds: u64,
    /// Memory of a program, in MiB.
    #[serde(default = "memory_mib")]
    pub memory_mib: u64,
}

fn default_work() -> PathBuf {
    "runs/trajectories".into()
}
fn one() -> usize {
    1
}
fn every_kind() -> Vec<Kind> {
    Kind::ALL.to_vec()
}
fn every_tool() -> Vec<Tool> {
    Tool::ALL.to_vec()
}
fn multi_step_ratio() -> f64 {
    0.3
}
fn output_bytes() -> usize {
    2048
}
fn read_lines() -> usize {
    60
}
fn seconds() -> u64 {
    120
}
fn memory_mib() -> u64 {
    2048
}

impl Config {
    /// Reads a file and puts `KEY=VALUE` pairs over it, whose values are TOML or else text.
    ///
    /// # Errors
    /// [`TrajectoryError::Config`] with what does not fit, [`TrajectoryError::Key`] as [`Self::check`].
    pub fn load(path: &Path, set: &[String]) -> Result<Self, TrajectoryError> {
        let wrong = |reason: String| TrajectoryError::Config { path: path.into(), reason };
        let bytes = gates::artifact::read_bounded(path, MAX_CONFIG_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        for pair in set {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| wrong(format!("--set {pair}: expected KEY=VALUE")))?;
            let parsed = format!("x = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("x"));
            table.insert(key.trim().into(), parsed.unwrap_or_else(|| value.into()));
        }
        let config: Self = table.try_into().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what one key alone does not show.
    ///
    /// # Errors
    /// [`TrajectoryError::Key`].
    pub fn check(&self) -> Result<(), TrajectoryError> {
        let require = |holds: bool, key, reason: &str| {
            if holds { Ok(()) } else { Err(TrajectoryError::Key { key, reason: reason.into() }) }
        };
        let has = |tool| self.tools.contains(&tool);
        let wants = |kind| self.kinds.contains(&kind);
        let one = self.sources.is_some() != self.crates.is_some();
        require(one, "sources, crates", "expected one of the two")?;
        require(!self.kinds.is_empty(), "kinds", "expected at least one kind")?;
        require(
            has(Tool::ApplyPatch) && has(Tool::RunTests),
            "tools",
            "expected apply_patch and run_tests among them",
        )?;
        let clippy = wants(Kind::FixClippyWarnings) && self.clippy_per_crate > 0;
        require(!clippy || has(Tool::RunCommand), "tools", "expected run_command, since clippy_per_crate is not 0")?;
        let mut tools = self.tools.clone();
        tools.sort_unstable();
        tools.dedup();
        require(tools.len() == self.tools.len(), "tools", "expected each tool once")?;
        require((0.0..=1.0).contains(&self.multi_step_ratio), "multi_step_ratio", "expected a share from 0 to 1")?;
        require((1..=64).contains(&self.jobs), "jobs", "expected 1 to 64")?;
        require((200..=1 << 20).contains(&self.output_bytes), "output_bytes", "expected 200 to 1048576")?;
        require(self.read_lines >= 3, "read_lines", "expected at least 3")?;
        require(self.seconds > 0 && self.memory_mib >= 256, "seconds, memory_mib", "expected at least 1 and 256")
    }

    /// What executors of this configuration work with.
    ///
    /// # Errors
    /// [`TrajectoryError::Executor`] when the index cannot be read, [`TrajectoryError::Io`] when the work folder cannot be made.
    pub(super) fn setup(&self, toolchain: PathBuf) -> Result<Arc<Setup>, TrajectoryError> {
        std::fs::create_dir_all(&self.work).map_err(super::error::io("create", &self.work))?;
        let absolute = |path: &Path| path.canonicalize().map_err(super::error::io("find", path));
        Ok(Arc::new(Setup {
            toolchain,
            vendor: self.vendor.as_deref().map(absolute).transpose()?,
            work: absolute(&self.work)?,
            index: Arc::new(self.index.as_deref().map(CrateIndex::load).transpose()?.unwrap_or_default()),
            tools: self.tools.clone(),
            output_bytes: self.output_bytes,
            brief: self.style == PromptStyle::Compact,
            may_change_tests: false,
            seconds: self.seconds,
            test_seconds: None,
            memory_mib: self.memory_mib,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, set: &[&str]) -> Result<Config, TrajectoryError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path, &set.iter().map(|pair| (*pair).to_owned()).collect::<Vec<_>>())
    }

    const LEAST: &str = "crates = \"c\"\noutput = \"o\"\n";

    #[test]
    fn files_and_pairs_make_a_configuration() {
        let config = load(LEAST, &["seed=7", "output=other", "tools=[\"apply_patch\", \"run_tests\"]"]).unwrap();
        assert_eq!((config.seed, config.output.as_path(), config.tools.len()), (7, Path::new("other"), 2));
        assert_eq!(config.kinds, Kind::ALL);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (pair, key) in [
            ("tools=[\"run_tests\"]", "tools"),
            ("multi_step_ratio=1.5", "multi_step_ratio"),
            ("jobs=0", "jobs"),
            ("output_bytes=10", "output_bytes"),
            ("kinds=[]", "kinds"),
        ] {
            assert!(matches!(load(LEAST, &[pair]), Err(TrajectoryError::Key { key: got, .. }) if got == key), "{pair}");
        }
        for pair in ["tool=[]", "seed", "kinds=[\"fix\"]", "seed=-1"] {
            assert!(matches!(load(LEAST, &[pair]), Err(TrajectoryError::Config { .. })), "{pair}");
        }
        assert!(matches!(load(LEAST, &["sources=s"]), Err(TrajectoryError::Key { key: "sources, crates", .. })));
        let both = ["clippy_per_crate=1", "tools=[\"apply_patch\", \"run_tests\"]"];
        assert!(matches!(load(LEAST, &both), Err(TrajectoryError::Key { key: "tools", .. })));
        assert!(load("crates = 1\n", &[]).is_err() && load("x", &[]).is_err());
    }

    #[test]
    fn the_configurations_of_the_repository_are_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/agent");
        for name in ["trajectories.toml", "trajectories-small.toml"] {
            let config = Config::load(&root.join(name), &[]).unwrap();
            assert!(config.sources.is_some() && config.vendor.is_some(), "{name}");
        }
    }

    #[test]
    fn the_keys_are_these() {
        let config = load(LEAST, &[]).unwrap();
        let keys: Vec<String> = toml::Table::try_from(&config).unwrap().keys().cloned().collect();
        assert_eq!(
            keys.join(" "),
            "allow_weaker clippy_per_crate crates features_per_crate jobs kinds max_mutations max_tokens memory_mib \
             multi_step_ratio output output_bytes read_lines seconds seed style supervise_wrong tools work"
        );
    }
}
