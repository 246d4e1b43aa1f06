//! Files say what they are for: a `//!` line first, and no name that could mean anything.

use super::Finding;
use super::source::Source;

/// Names that say nothing; a search result full of them is useless.
const BANNED: [&str; 8] =
    ["base.rs", "common.rs", "core.rs", "helper.rs", "helpers.rs", "misc.rs", "util.rs", "utils.rs"];

/// Checks the first line and the name of a file.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first = source.text.lines().next().unwrap_or_default();
    if first.strip_prefix("//! ").is_none_or(|purpose| purpose.trim().is_empty()) {
        findings.push(Finding::new(&source.path, 1, "must open with a `//!` line that says what the file is for"));
    }
    if source.path.file_name().is_some_and(|name| BANNED.iter().any(|banned| name == *banned)) {
        findings.push(Finding::new(&source.path, 0, "this name says nothing; name the file after what is in it"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn bad_names_and_missing_purposes_are_found() {
        let check = |path: &str, text: &str| check(&Source::new(Path::new(path), text.into())).len();
        assert_eq!(check("src/lexer.rs", "//! Splits text.\n"), 0);
        assert_eq!(check("src/lexer.rs", "// Splits text.\n"), 1);
        assert_eq!(check("src/lexer.rs", "//! \n"), 1);
        assert_eq!(check("src/lexer.rs", ""), 1);
        assert_eq!(check("src/utils.rs", "use std::io;\n//! late\n"), 2);
    }
}
