//! Which crate may know which: the table of `docs/ARCHITECTURE.md`, compared with what cargo says.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::Finding;
use crate::workspace;

/// Everything a stage may know.
const STAGE: &[&str] = &["kernels-cubecl", "model-core", "trainer", "data-pipeline", "gates"];
/// May know anything.
const ANYTHING: &[&str] = &["*"];

/// Every crate of the workspace with those that it may depend on.
const EDGES: [(&str, &[&str]); 15] = [
    ("gates", &[]),
    ("kernels-cubecl", &[]),
    ("data-pipeline", &["gates"]),
    ("model-core", &["kernels-cubecl"]),
    ("trainer", &["kernels-cubecl", "model-core", "data-pipeline", "gates"]),
    ("stage-pretrain", STAGE),
    ("stage-sft", STAGE),
    ("stage-dpo", STAGE),
    ("stage-lora", STAGE),
    ("gates-eval", STAGE),
    ("eval-rust", &["gates"]),
    ("moe-agent", &["model-core", "eval-rust", "gates"]),
    ("xtask", &["gates"]),
    ("e2e", ANYTHING),
    ("perf", ANYTHING),
];

/// Crates that stay light, and how many crates they may pull in, themselves included.
const LIGHT: [(&str, usize); 2] = [("gates", 30), ("xtask", 30)];

/// The crates of the workspace, from `cargo metadata`.
pub(crate) fn members(metadata: &Value) -> BTreeSet<String> {
    packages(metadata).filter(|package| package["source"].is_null()).filter_map(name).collect()
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn name(package: &Value) -> Option<String> {
    package["name"].as_str().map(str::to_owned)
}

/// Compares the edges of `cargo metadata` with the table.
pub(crate) fn check(metadata: &Value) -> Vec<Finding> {
    let members = members(metadata);
    let mut findings = Vec::new();
    for (known, _) in EDGES.iter().filter(|(known, _)| !members.contains(*known)) {
        findings.push(Finding::new("xtask/src/tidy/graph.rs", 0, format!("`{known}` is no crate of the workspace")));
    }
    for package in packages(metadata).filter(|package| package["source"].is_null()) {
        let Some(crate_name) = name(package) else { continue };
        let manifest = format!("{crate_name}/Cargo.toml");
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == crate_name) else {
            let message = format!("`{crate_name}` is not in the table of edges; give it its place there");
            findings.push(Finding::new(manifest, 0, message));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten().filter_map(name);
        for to in dependencies.filter(|to| members.contains(to)).collect::<BTreeSet<_>>() {
            if *allowed != ANYTHING && !allowed.contains(&to.as_str()) {
                let message = format!("`{crate_name}` may not depend on `{to}`: an edge only points down");
                findings.push(Finding::new(&manifest, 0, message));
            }
        }
    }
    findings
}

/// Counts the crates that the light crates pull in.
pub(crate) fn check_weight(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (package, most) in LIGHT {
        let args = ["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package];
        findings.extend(too_heavy(package, most, &workspace::cargo_output(root, &args)?));
    }
    Ok(findings)
}

fn too_heavy(package: &str, most: usize, tree: &str) -> Option<Finding> {
    let crates: BTreeSet<&str> =
        tree.lines().map(|line| line.trim_end_matches(" (*)")).filter(|l| !l.is_empty()).collect();
    let message = || format!("`{package}` pulls in {} crates, at most {most}; it must stay light", crates.len());
    (crates.len() > most).then(|| Finding::new(format!("{package}/Cargo.toml"), 0, message()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(change: impl Fn(&str) -> Vec<&'static str>) -> Value {
        let package = |name: &str| {
            let dependencies: Vec<Value> =
                change(name).into_iter().chain(["serde"]).map(|to| json!({ "name": to })).collect();
            json!({ "name": name, "source": null, "dependencies": dependencies })
        };
        let mut packages: Vec<Value> = EDGES.iter().map(|(name, _)| package(name)).collect();
        packages.push(json!({ "name": "serde", "source": "registry", "dependencies": [] }));
        json!({ "packages": packages })
    }

    fn messages(metadata: &Value) -> Vec<String> {
        check(metadata).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn allowed_edges_pass() {
        assert_eq!(
            messages(&metadata(|name| if name == "trainer" { vec!["gates", "model-core"] } else { vec![] })),
            [""; 0]
        );
        assert_eq!(
            messages(&metadata(|name| if name == "e2e" { vec!["stage-sft", "gates"] } else { vec![] })),
            [""; 0]
        );
    }

    #[test]
    fn edges_upwards_and_between_stages_are_found() {
        for (from, to) in
            [("stage-sft", "stage-pretrain"), ("gates", "model-core"), ("xtask", "trainer"), ("model-core", "gates")]
        {
            let got = messages(&metadata(|name| if name == from { vec![to] } else { vec![] }));
            assert_eq!(
                got,
                [format!("{from}/Cargo.toml: `{from}` may not depend on `{to}`: an edge only points down")]
            );
        }
    }

    #[test]
    fn new_and_removed_crates_are_found() {
        let mut metadata = metadata(|_| vec![]);
        metadata["packages"][0]["name"] = json!("gates-two");
        let got = messages(&metadata);
        assert_eq!(got.len(), 2, "{got:?}");
        assert!(
            got[0].contains("`gates` is no crate") && got[1].contains("`gates-two` is not in the table"),
            "{got:?}"
        );
    }

    #[test]
    fn weight_counts_each_crate_once() {
        let tree = "xtask v0.1.0\nserde v1.0.0\nserde v1.0.0 (*)\n\ntoml v0.9.0\n";
        assert!(too_heavy("xtask", 3, tree).is_none());
        assert!(too_heavy("xtask", 2, tree).unwrap().message.contains("pulls in 3 crates"));
    }
}
