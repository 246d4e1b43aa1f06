//! Where a run's files lie, and what the placeholders of a pipeline stand for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gates::artifact;

use super::config::model_of;

/// A run's folder and device.
#[derive(Debug)]
pub(crate) struct Place {
    /// The repository.
    pub(crate) root: PathBuf,
    /// The run's folder, relative to the root.
    pub(crate) run: String,
    /// What `{device}` stands for.
    pub(crate) device: String,
}

impl Place {
    /// The run's folder.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.root.join(&self.run)
    }

    /// A text with its placeholders replaced.
    pub(crate) fn fill(&self, text: &str) -> Result<String> {
        let (before, text) = match text.split_once('=') {
            Some((key, value)) if model_of(value).is_some() => (format!("{key}="), value),
            _ => (String::new(), text),
        };
        let text = match model_of(text) {
            Some(stage) => text.replacen(&format!("{{model:{stage}}}"), &self.model_of_stage(stage)?, 1),
            None => text.to_owned(),
        };
        Ok(before + &text.replace("{run}", &self.run).replace("{device}", &self.device))
    }

    /// The path of an input or output.
    pub(crate) fn path(&self, text: &str) -> Result<PathBuf> {
        Ok(self.root.join(self.fill(text)?))
    }

    /// The content hash of an input or output; a model is what its weights, configuration and tokenizer are.
    pub(crate) fn hash(&self, text: &str) -> Result<String> {
        let path = self.path(text)?;
        let is_model = model_of(text).is_some();
        let hash = if is_model { artifact::model_hash(&path) } else { artifact::hash_tree(&path) };
        Ok(hash?)
    }

    /// The model folder that a stage names as its result, relative to the root.
    fn model_of_stage(&self, stage: &str) -> Result<String> {
        let dir = format!("{}/{stage}", self.run);
        let path = self.root.join(&dir).join("stage.json");
        let bytes = artifact::read_bounded(&path, 16 << 20)?;
        let json: serde_json::Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))?;
        let model =
            model_in(&json).with_context(|| format!("{} names no model; is the stage done?", path.display()))?;
        let inside = Path::new(model).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        ensure!(inside, "{}: the model `{model}` must be a path below the stage's folder", path.display());
        Ok(format!("{dir}/{model}"))
    }
}

/// The path of the resulting model, relative to the stage's folder.
fn model_in(stage: &serde_json::Value) -> Option<&str> {
    stage.get("output")?.get("path")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced() {
        let root = tempfile::tempdir().unwrap();
        let place = Place { root: root.path().into(), run: "runs/demo".into(), device: "cpu".into() };
        assert_eq!(place.fill("--out={run}/a").unwrap(), "--out=runs/demo/a");
        assert_eq!(place.fill("{device}").unwrap(), "cpu");
        assert!(place.fill("{model:sft}").unwrap_err().to_string().contains("stage.json"));
        let stage = root.path().join("runs/demo/sft");
        std::fs::create_dir_all(&stage).unwrap();
        std::fs::write(stage.join("stage.json"), r#"{"output": {"path": "checkpoints/step-9"}}"#).unwrap();
        assert_eq!(place.fill("{model:sft}").unwrap(), "runs/demo/sft/checkpoints/step-9");
        assert_eq!(place.fill("model={model:sft}").unwrap(), "model=runs/demo/sft/checkpoints/step-9");
        for bad in [r#"{"output": null}"#, "{}", r#"{"output": {"path": "../x"}}"#, "{"] {
            std::fs::write(stage.join("stage.json"), bad).unwrap();
            assert!(place.fill("{model:sft}").is_err(), "{bad}");
        }
    }
}
