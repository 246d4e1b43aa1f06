//! Which licences may enter a training set.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// Public domain has no SPDX identifier of its own.
pub const PUBLIC_DOMAIN: &str = "LicenseRef-public-domain";

/// Licences that are allowed when a configuration does not list its own: permissive ones, and the public domain.
pub const PERMISSIVE: [&str; 20] = [
    PUBLIC_DOMAIN,
    "CC0-1.0",
    "CC-PDDC",
    "PDDL-1.0",
    "Unlicense",
    "0BSD",
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "BSL-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "ODC-By-1.0",
    "CDLA-Permissive-2.0",
    "PSF-2.0",
    "LicenseRef-WordNet",
];

/// An allow-list of licences. A source under any other licence is refused by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LicencePolicy {
    /// SPDX identifiers that are allowed; compared without regard to case.
    pub allow: Vec<String>,
}

impl Default for LicencePolicy {
    fn default() -> Self {
        Self { allow: PERMISSIVE.map(str::to_owned).to_vec() }
    }
}

impl LicencePolicy {
    /// Checks one source. `A OR B` needs one allowed licence, `A AND B` needs both; anything else that is not a bare
    /// identifier of the list, an empty licence included, is refused.
    ///
    /// # Errors
    /// [`DataError::Licence`] with the source, its licence and the allow-list.
    pub fn check(&self, source: &str, licence: &str) -> Result<()> {
        if licence.split(" OR ").any(|choice| choice.split(" AND ").all(|one| self.allows(one))) {
            return Ok(());
        }
        Err(DataError::Licence { name: source.to_owned(), licence: licence.to_owned(), allowed: self.allow.clone() })
    }

    fn allows(&self, licence: &str) -> bool {
        self.allow.iter().any(|allowed| allowed.eq_ignore_ascii_case(licence.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_licence_that_is_not_allowed_is_refused_by_name() {
        let policy = LicencePolicy::default();
        for good in ["MIT", "mit", "MIT OR GPL-3.0-only", "Apache-2.0 AND CC0-1.0", PUBLIC_DOMAIN] {
            policy.check("notes", good).unwrap();
        }
        for bad in ["CC-BY-NC-4.0", "GPL-3.0-only", "MIT AND CC-BY-NC-4.0", "", "(MIT)", "MIT/Apache-2.0", "unknown"] {
            let message = policy.check("alpaca", bad).unwrap_err().to_string();
            assert!(message.contains("`alpaca`") && message.contains(&format!("`{bad}`")), "{message}");
        }
        let own = LicencePolicy { allow: vec!["GPL-2.0-only".into()] };
        own.check("manual", "GPL-2.0-only").unwrap();
        assert!(own.check("notes", "MIT").is_err());
    }
}
