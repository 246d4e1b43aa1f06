//! The pipeline file: its steps, and everything about them that can be checked before one is started.
//!
//! ```toml
//! version = 1
//! name = "demo"                       # name of the run folder: {run} is runs/demo
//! external = ["data/mine"]            # what the user provides; asked for before the first step starts
//!
//! [[steps]]
//! name = "pretrain"
//! kind = "stage"                      # data, stage or gate
//! program = "stage-pretrain"          # a program of this workspace
//! args = ["--config", "configs/stage/pretrain.toml", "--out", "{run}/pretrain", "--device", "{device}"]
//! inputs = ["configs/stage/pretrain.toml", "{run}/rows"]
//! outputs = ["{run}/pretrain"]
//! resume_args = ["--resume"]          # appended when the step was interrupted and is continued
//! show = ["loss"]                     # metrics for the final table
//! ```
//!
//! A stage's result is `{run}/STAGE/final`, a link that the stage itself sets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A pipeline file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pipeline {
    version: u64,
    /// Default name of the run.
    pub(crate) name: String,
    /// Files and folders that the user provides and the repository does not hold.
    #[serde(default)]
    external: Vec<String>,
    /// The steps, in the order they run.
    pub(crate) steps: Vec<Step>,
}

/// One program with its arguments, what it reads and what it makes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Unique name.
    pub(crate) name: String,
    /// What kind of work this is.
    pub(crate) kind: Kind,
    /// A program of this workspace.
    pub(crate) program: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Files and folders that it reads.
    pub(crate) inputs: Vec<String>,
    /// Files and folders that it makes; all below the run's folder.
    pub(crate) outputs: Vec<String>,
    /// Arguments that make it continue an interrupted run of its own.
    #[serde(default)]
    pub(crate) resume_args: Vec<String>,
    /// Metrics that the final table shows.
    #[serde(default)]
    pub(crate) show: Vec<String>,
}

/// What kind of work a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Prepares data or a model.
    Data,
    /// Trains.
    Stage,
    /// Measures or decides.
    Gate,
}

impl Kind {
    /// The word, as in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Stage => "stage",
            Self::Gate => "gate",
        }
    }
}

impl Pipeline {
    /// Reads and checks a pipeline; `root` is where its paths start, `sets` are configuration keys for every stage.
    pub(crate) fn load(root: &Path, path: &Path, sets: &[String]) -> Result<Self> {
        let text = crate::workspace::read(root, path)?;
        Self::parse_with(root, &text, sets).with_context(|| format!("pipeline {}", path.display()))
    }

    /// Parses and checks the text of a pipeline.
    #[cfg(test)]
    pub(crate) fn parse(root: &Path, text: &str) -> Result<Self> {
        Self::parse_with(root, text, &[])
    }

    fn parse_with(root: &Path, text: &str, sets: &[String]) -> Result<Self> {
        let mut pipeline: Self = toml::from_str(text)?;
        // As if they stood in the file: the same checks apply, and a step with another setting is another step.
        for step in pipeline.steps.iter_mut().filter(|step| step.kind == Kind::Stage) {
            step.args.extend(sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
        }
        ensure!(pipeline.version == 1, "`version` must be 1, found {}", pipeline.version);
        ensure!(is_name(&pipeline.name), "`name` must be letters, digits, - and _, found {:?}", pipeline.name);
        ensure!(!pipeline.steps.is_empty(), "`steps` must have at least one step");
        for external in &pipeline.external {
            let plain = is_plain(external) && !external.starts_with("{run}");
            ensure!(plain, "`external`: expected a path inside the repository without `..`, found `{external}`");
        }
        let mut made = Made { external: &pipeline.external, ..Made::default() };
        for step in &pipeline.steps {
            step.check(root, &mut made).with_context(|| format!("step `{}`", step.name))?;
        }
        Ok(pipeline)
    }

    /// The programs that the steps run.
    pub(crate) fn programs(&self) -> BTreeSet<&str> {
        self.steps.iter().map(|step| step.program.as_str()).collect()
    }

    /// Inputs of the first `n` steps that the user has to provide, the missing ones of them.
    pub(crate) fn missing(&self, root: &Path, n: usize) -> Vec<String> {
        let inputs: BTreeSet<&String> = self.steps.iter().take(n).flat_map(|step| &step.inputs).collect();
        let is_missing = |input: &&String| is_external(&self.external, input) && !root.join(input).exists();
        inputs.into_iter().filter(is_missing).cloned().collect()
    }

    /// Number of the step of this name.
    pub(crate) fn index(&self, name: &str) -> Result<usize> {
        let found = self.steps.iter().position(|step| step.name == name);
        let known = || self.steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        found.with_context(|| format!("no step `{name}`; the steps are {}", known()))
    }
}

/// What earlier steps make, and what the user brings.
#[derive(Default)]
struct Made<'a> {
    names: BTreeSet<String>,
    outputs: BTreeMap<String, String>,
    external: &'a [String],
}

impl Step {
    fn check(&self, root: &Path, made: &mut Made<'_>) -> Result<()> {
        ensure!(is_name(&self.name), "`name` must be letters, digits, - and _");
        ensure!(made.names.insert(self.name.clone()), "the name is there twice");
        ensure!(is_name(&self.program), "`program` must be the name of a program, found {:?}", self.program);
        for input in &self.inputs {
            check_input(input, root, made)?;
        }
        for output in &self.outputs {
            ensure!(output.starts_with("{run}/"), "output `{output}` must lie below {{run}}/");
            ensure!(is_plain(output), "output `{output}` must not contain `..`, or braces after {{run}}");
            for (other, step) in &made.outputs {
                ensure!(!covers(other, output) && !covers(output, other), "output `{output}` is also one of `{step}`");
            }
        }
        for arg in self.args.iter().chain(&self.resume_args) {
            self.check_arg(arg, root, made)?;
        }
        made.outputs.extend(self.outputs.iter().map(|output| (output.clone(), self.name.clone())));
        Ok(())
    }

    /// A path in an argument must be declared, or a change of it would go unnoticed.
    fn check_arg(&self, arg: &str, root: &Path, made: &Made<'_>) -> Result<()> {
        let value = arg.split_once('=').map_or(arg, |(_, value)| value);
        check_placeholders(value)?;
        let exists = value.contains('/') && root.join(value).exists();
        let is_path = value.contains("{run}") || exists || is_external(made.external, value);
        let mut declared = self.inputs.iter().chain(&self.outputs);
        // A folder that holds declared paths may be named as a whole, such as the root of the data.
        let known = declared.any(|path| covers(path, value) || covers(value, path));
        ensure!(!is_path || known, "argument `{arg}` names a path that is neither an input nor an output of this step");
        Ok(())
    }
}

fn check_input(input: &str, root: &Path, made: &Made<'_>) -> Result<()> {
    check_placeholders(input)?;
    if input.starts_with("{run}/") {
        ensure!(
            made.outputs.keys().any(|output| covers(output, input)),
            "input `{input}` is not an output of an earlier step"
        );
    } else if !is_external(made.external, input) {
        ensure!(is_plain(input) && root.join(input).exists(), "input `{input}` does not exist in the repository");
    }
    Ok(())
}

fn check_placeholders(text: &str) -> Result<()> {
    let mut rest = text;
    while let Some((_, tail)) = rest.split_once('{') {
        let Some((name, after)) = tail.split_once('}') else { bail!("`{text}` has an open brace without an end") };
        let known = matches!(name, "run" | "device");
        ensure!(known, "`{text}`: unknown placeholder `{{{name}}}`; there are {{run}} and {{device}}");
        rest = after;
    }
    Ok(())
}

/// Whether the user provides this path.
fn is_external(external: &[String], path: &str) -> bool {
    external.iter().any(|given| covers(given, path))
}

/// Whether `inner` is `outer` or lies below it.
fn covers(outer: &str, inner: &str) -> bool {
    Path::new(inner).starts_with(Path::new(outer))
}

/// A relative path without surprises.
fn is_plain(path: &str) -> bool {
    let path = path.strip_prefix("{run}/").unwrap_or(path);
    !path.contains(['{', '}'])
        && !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Whether a run may have this name.
pub(crate) fn check_run_name(name: &str) -> Result<()> {
    ensure!(is_name(name), "a run's name must be letters, digits, - and _, found {name:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
version = 1
name = "demo"

[[steps]]
name = "ingest"
kind = "data"
program = "data-pipeline"
args = ["ingest", "--config", "configs/data.toml", "--out", "{run}/text"]
inputs = ["configs/data.toml"]
outputs = ["{run}/text"]

[[steps]]
name = "pretrain"
kind = "stage"
program = "stage-pretrain"
args = ["--set", "data.train={run}/text/train", "--out={run}/pretrain", "--device", "{device}"]
inputs = ["{run}/text/train"]
outputs = ["{run}/pretrain"]
resume_args = ["--resume"]

[[steps]]
name = "eval"
kind = "gate"
program = "gates"
args = ["eval", "--model", "{run}/pretrain/final", "--data", "{run}", "--out", "{run}/eval.json"]
inputs = ["{run}/pretrain/final", "{run}/text"]
outputs = ["{run}/eval.json"]
show = ["heldout.bits_per_byte"]
"#;

    fn parse(text: &str) -> Result<Pipeline> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("configs")).unwrap();
        std::fs::write(root.path().join("configs/data.toml"), "").unwrap();
        Pipeline::parse(root.path(), text)
    }

    #[test]
    fn a_good_pipeline_reads() {
        let pipeline = parse(GOOD).unwrap();
        assert_eq!(pipeline.programs().into_iter().collect::<Vec<_>>(), ["data-pipeline", "gates", "stage-pretrain"]);
        assert_eq!(pipeline.index("eval").unwrap(), 2);
        let message = pipeline.index("sft").unwrap_err().to_string();
        assert_eq!(message, "no step `sft`; the steps are ingest, pretrain, eval");
    }

    #[test]
    fn s25_paths_must_meet_before_anything_runs() {
        for (from, to, want) in [
            // The name of a stage's output and the name that the next one looks for.
            ("inputs = [\"{run}/text/train\"]", "inputs = [\"{run}/texts\"]", "not an output of an earlier step"),
            (
                "\"{run}/pretrain/final\", \"{run}/text\"]",
                "\"{run}/pretrained\", \"{run}/text\"]",
                "not an output of an earlier step",
            ),
            ("data.train={run}/text/train", "data.train={run}/words", "neither an input nor an output"),
            ("\"--model\", \"{run}/pretrain/final\"", "\"--model\", \"{run}/sft\"", "neither an input nor an output"),
            ("inputs = [\"configs/data.toml\"]", "inputs = [\"configs/other.toml\"]", "does not exist"),
            ("inputs = [\"configs/data.toml\"]", "inputs = []", "neither an input nor an output"),
            ("outputs = [\"{run}/pretrain\"]", "outputs = [\"{run}/text/x\"]", "is also one of `ingest`"),
            ("outputs = [\"{run}/pretrain\"]", "outputs = [\"checkpoints\"]", "must lie below {run}/"),
            ("outputs = [\"{run}/pretrain\"]", "outputs = [\"{run}/../x\"]", "must not contain"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let message = format!("{:#}", parse(&GOOD.replacen(from, to, 1)).unwrap_err());
            assert!(message.contains(want), "{to}: {message}");
        }
    }

    #[test]
    fn settings_reach_every_stage_and_only_stages() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("configs")).unwrap();
        std::fs::write(root.path().join("configs/data.toml"), "").unwrap();
        let with = |set: &str| Pipeline::parse_with(root.path(), GOOD, &[set.to_owned()]);
        let (plain, set) = (Pipeline::parse(root.path(), GOOD).unwrap(), with("train.precision=bf16").unwrap());
        assert_eq!(set.steps[1].args[plain.steps[1].args.len()..], ["--set", "train.precision=bf16"]);
        for other in [0, 2] {
            assert_eq!(set.steps[other].args, plain.steps[other].args);
        }
        let message = format!("{:#}", with("data={run}/elsewhere").unwrap_err());
        assert!(message.contains("neither an input nor an output"), "{message}");
    }

    #[test]
    fn what_the_user_provides_may_be_missing_until_the_run() {
        let text = GOOD.replacen("inputs = [\"configs/data.toml\"]", "inputs = [\"configs/data.toml\", \"mine/a\"]", 1);
        assert!(format!("{:#}", parse(&text).unwrap_err()).contains("`mine/a` does not exist"));
        let text = text.replacen("name = \"demo\"", "name = \"demo\"\nexternal = [\"mine\"]", 1);
        let (pipeline, root) = (parse(&text).unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(pipeline.missing(root.path(), 1), ["mine/a"]);
        assert!(pipeline.missing(root.path(), 0).is_empty(), "steps that do not run need nothing");
        std::fs::create_dir_all(root.path().join("mine/a")).unwrap();
        assert!(pipeline.missing(root.path(), 3).is_empty());
        let undeclared = text.replacen("\"--config\", \"configs/data.toml\"", "\"--config\", \"mine/b\"", 1);
        assert!(format!("{:#}", parse(&undeclared).unwrap_err()).contains("neither an input nor an output"));
        for outside in ["/mine", "../mine", "{run}/mine", ""] {
            let text = text.replacen("[\"mine\"]", &format!("[{outside:?}]"), 1);
            assert!(format!("{:#}", parse(&text).unwrap_err()).contains("`external`"), "{outside}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, want) in [
            ("version = 1", "version = 2", "`version` must be 1"),
            ("name = \"demo\"", "name = \"../demo\"", "`name` must be letters"),
            ("name = \"eval\"", "name = \"ingest\"", "twice"),
            ("kind = \"gate\"", "kind = \"check\"", "unknown variant"),
            ("show =", "shows =", "unknown field `shows`"),
            ("program = \"gates\"", "program = \"/bin/sh\"", "`program` must be the name"),
            ("{device}", "{gpu}", "unknown placeholder `{gpu}`"),
            ("{device}", "{device", "without an end"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let message = format!("{:#}", parse(&GOOD.replacen(from, to, 1)).unwrap_err());
            assert!(message.contains(want), "{to}: {message}");
        }
    }
}
