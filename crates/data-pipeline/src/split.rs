//! The held-out split: by document, decided by the document's id alone.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// The parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitName {
    /// What is trained on.
    Train,
    /// What is only measured on.
    Heldout,
}

impl SplitName {
    /// The name of the part and of its folder.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
        }
    }
}

/// How much is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitConfig {
    /// Share of the documents that is held out, from 0 to below 1.
    pub heldout: f64,
    /// Another seed holds out other documents.
    pub seed: u64,
    /// Names of sources that are held out as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self { heldout: 0.02, seed: 0, sources: Vec::new() }
    }
}

impl SplitConfig {
    /// Checks the range.
    ///
    /// # Errors
    /// [`DataError::BadConfig`] for a share that is not in 0..1.
    pub fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.heldout) {
            return Ok(());
        }
        let found = self.heldout.to_string();
        Err(DataError::BadConfig { key: "split.heldout", expected: "a share from 0 to below 1", found })
    }

    /// Whether any document can be held out.
    pub(crate) fn holds_out(&self) -> bool {
        self.heldout > 0.0 || !self.sources.is_empty()
    }

    /// Whether a document is held out: a pure function of seed, source and id, so that it does not matter which other
    /// documents there are or in which order they come.
    pub fn is_heldout(&self, source: &str, id: &str) -> bool {
        if self.sources.iter().any(|name| name == source) {
            return true;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&(source.len() as u64).to_le_bytes());
        hasher.update(source.as_bytes());
        hasher.update(id.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // 53 bits fill the mantissa, so the comparison is exact.
        ((u64::from_le_bytes(first) >> 11) as f64) < self.heldout * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_right_and_the_decision_depends_on_the_id_alone() {
        let split = SplitConfig { heldout: 0.1, seed: 3, ..SplitConfig::default() };
        let ids: Vec<String> = (0..20_000).map(|i| format!("doc-{i}")).collect();
        let heldout: Vec<bool> = ids.iter().map(|id| split.is_heldout("a", id)).collect();
        let n = heldout.iter().filter(|&&h| h).count();
        assert!((1850..2150).contains(&n), "{n}");
        let again: Vec<bool> = ids.iter().rev().map(|id| split.is_heldout("a", id)).collect();
        assert!(heldout.iter().eq(again.iter().rev()));
        let other = SplitConfig { seed: 4, ..split.clone() };
        assert!(ids.iter().any(|id| split.is_heldout("a", id) != other.is_heldout("a", id)));
        assert!(ids.iter().any(|id| split.is_heldout("a", id) != split.is_heldout("b", id)));
    }

    #[test]
    fn shares_outside_the_range_are_refused() {
        for heldout in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            assert!(SplitConfig { heldout, ..SplitConfig::default() }.check().is_err());
        }
        let mut none = SplitConfig { heldout: 0.0, ..SplitConfig::default() };
        assert!(!none.holds_out() && (0..1000).all(|i| !none.is_heldout("a", &i.to_string())));
        none.sources = vec!["b".into()];
        assert!(none.holds_out() && none.is_heldout("b", "1") && !none.is_heldout("a", "1"));
    }
}
