//! Where a run's files lie, and what the placeholders of a pipeline stand for.

use std::path::PathBuf;

use anyhow::Result;
use gates::artifact;

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
    pub(crate) fn fill(&self, text: &str) -> String {
        text.replace("{run}", &self.run).replace("{device}", &self.device)
    }

    /// The path of an input or output.
    pub(crate) fn path(&self, text: &str) -> PathBuf {
        self.root.join(self.fill(text))
    }

    /// The content hash of an input or output.
    pub(crate) fn hash(&self, text: &str) -> Result<String> {
        Ok(artifact::hash_tree(&self.path(text))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced() {
        let place = Place { root: "/checkout".into(), run: "runs/demo".into(), device: "cpu".into() };
        assert_eq!(place.fill("--out={run}/a"), "--out=runs/demo/a");
        assert_eq!(place.fill("{device}"), "cpu");
        assert_eq!(place.path("{run}/sft/final"), PathBuf::from("/checkout/runs/demo/sft/final"));
    }
}
