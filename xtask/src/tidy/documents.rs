//! `docs/ARCHITECTURE.md` names every crate and no other.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::workspace;

const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";

/// Compares the table under "## Crates" with the crates of the workspace.
pub(crate) fn check(root: &Path, members: &BTreeSet<String>) -> Result<Vec<Finding>> {
    Ok(compare(&workspace::read(root, Path::new(ARCHITECTURE))?, members))
}

fn compare(text: &str, members: &BTreeSet<String>) -> Vec<Finding> {
    let named = crates_of(text);
    let missing = members
        .iter()
        .filter(|name| !named.contains(*name))
        .map(|name| Finding::new(ARCHITECTURE, 0, format!("the table under \"## Crates\" does not name `{name}`")));
    let surplus = named.iter().filter(|name| !members.contains(*name)).map(|name| {
        Finding::new(ARCHITECTURE, 0, format!("the table under \"## Crates\" names `{name}`, which is no crate"))
    });
    missing.chain(surplus).collect()
}

/// What stands in backticks in the first column of the section's table.
fn crates_of(text: &str) -> BTreeSet<String> {
    let section = text.lines().skip_while(|line| line.trim() != "## Crates").skip(1);
    let rows = section.take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix('|'));
    let first = rows.filter_map(|row| row.split('|').next());
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Architecture
| `not-here` |
## Crates

| crate | owns |
|---|---|
| `gates` | reports, see `policy` |
| `stage-a` `stage-b` | stages |

## Later
| `not-there` |
";

    #[test]
    fn missing_and_surplus_crates_are_named() {
        let members = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(compare(TEXT, &members(&["gates", "stage-a", "stage-b"])), []);
        let got = compare(TEXT, &members(&["gates", "stage-a", "trainer"]));
        let got: Vec<&str> = got.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(got.len(), 2);
        assert!(got[0].contains("does not name `trainer`") && got[1].contains("names `stage-b`"), "{got:?}");
    }
}
