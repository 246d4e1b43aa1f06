//! Licences: ours is stated by every crate, those of dependencies are on the list of `deny.toml`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::workspace;

/// The licence of this workspace.
const OURS: &str = "MIT OR Apache-2.0";

/// Checks every crate that is built here, from `cargo tree`, against the allow-list of `deny.toml`.
pub(crate) fn check(root: &Path, members: &BTreeSet<String>) -> Result<Vec<Finding>> {
    // `cargo metadata` also lists crates that no feature of ours turns on.
    let args = ["tree", "--workspace", "--locked", "--edges", "all", "--prefix", "none", "--format", "{p}|{l}"];
    let tree = workspace::cargo_output(root, &args)?;
    Ok(compare(&tree, members, &workspace::read(root, Path::new("deny.toml"))?))
}

/// `tree` has a line `name version|licence` for each crate.
fn compare(tree: &str, members: &BTreeSet<String>, deny: &str) -> Vec<Finding> {
    let Some(allowed) = allowed(deny) else {
        return vec![Finding::new("deny.toml", 0, "has no list `licenses.allow`")];
    };
    let crates: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let mut findings = Vec::new();
    for (package, licence) in crates.into_iter().filter_map(|line| line.split_once('|')) {
        let name = package.split(' ').next().unwrap_or_default();
        if members.contains(name) {
            if licence != OURS {
                let message = format!("licence {licence:?}, expected {OURS:?}");
                findings.push(Finding::new(format!("{name}/Cargo.toml"), 0, message));
            }
        } else if !holds(licence, &allowed) {
            let message = format!("dependency `{name}` has licence {licence:?}, which deny.toml does not allow");
            findings.push(Finding::new("Cargo.lock", 0, message));
        }
    }
    findings
}

fn allowed(deny: &str) -> Option<Vec<String>> {
    let deny: toml::Table = deny.parse().ok()?;
    let list = deny.get("licenses")?.get("allow")?.as_array()?;
    Some(list.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect())
}

/// Whether an SPDX expression is satisfied by allowed licences; the old `MIT/Apache-2.0` means OR.
fn holds(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let value = any(&mut words, allowed);
    value == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut value = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        value |= all(words, allowed)?;
    }
    Some(value)
}

fn all(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut value = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        value &= one(words, allowed)?;
    }
    Some(value)
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let value = any(words, allowed)?;
        return words.next_if_eq(&")").map(|_| value);
    }
    let licence = match words.next_if_eq(&"WITH") {
        Some(_) => format!("{word} WITH {}", words.next()?),
        None => word.to_owned(),
    };
    Some(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read() {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned);
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
        ] {
            assert!(holds(good, &allowed), "{good}");
        }
        for bad in ["Apache-2.0", "MIT AND GPL-3.0", "", "(MIT", "MIT)", "MIT MIT", "GPL-3.0 WITH MIT"] {
            assert!(!holds(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn missing_and_foreign_licences_are_found() {
        let deny = "[licenses]\nallow = [\"MIT\"]\n";
        let members = BTreeSet::from(["gates".to_owned(), "new".to_owned()]);
        let tree = "gates v0.1.0 (/x/gates)|MIT OR Apache-2.0\nnew v0.1.0 (/x/new)|\n\ngood v1.0.0|MIT\n\
                    bad v1.0.0 (proc-macro)|AGPL-3.0\nbad v1.0.0 (proc-macro)|AGPL-3.0 (*)\nsilent v2.0.0|\n";
        let got: Vec<String> = compare(tree, &members, deny).iter().map(ToString::to_string).collect();
        assert_eq!(got.len(), 3, "{got:?}");
        assert!(
            got[0].contains("`bad`") && got[1].starts_with("new/Cargo.toml") && got[2].contains("`silent`"),
            "{got:?}"
        );
        assert_eq!(compare(tree, &members, "").len(), 1);
    }
}
