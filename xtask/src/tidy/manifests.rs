//! Dependencies are chosen: each has its reason here and its version in one place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;
use crate::workspace;

/// Why each dependency is worth its compile time and its trust.
const REASONS: [(&str, &str); 44] = [
    ("burn", "tensors and automatic differentiation"),
    ("burn-flex", "the CPU backend's storage, which our kernels work on"),
    ("burn-train", "the live terminal view of a training run"),
    ("burn-cuda", "the CUDA backend, behind the feature `cuda`"),
    ("burn-cubecl", "its tensors, which our kernels work on"),
    ("cubecl", "kernels in Rust that are compiled for the GPU at run time"),
    ("cubecl-common", "work of our own on the GPU's queue"),
    ("cudarc", "cuBLASLt and the driver, loaded at run time"),
    ("gemm", "matrix products on the CPU"),
    ("half", "bf16 and f16 tensors in model files"),
    ("bytemuck", "tensors as bytes and back without copies"),
    ("multiversion", "one kernel source for several vector widths, chosen at run time"),
    ("rayon", "threads for kernels and text"),
    ("serde", "configuration and file formats"),
    ("serde_json", "reports, receipts, lineage, Hugging Face configuration"),
    ("toml", "configuration files"),
    ("figment", "configuration files with overrides from --set"),
    ("clap", "arguments of the programs"),
    ("safetensors", "the format of weights"),
    ("tokenizers", "byte-level BPE as Hugging Face runs it"),
    ("tiktoken-rs", "the ranks of GPT-OSS's vocabulary and the encoder over them"),
    ("sha2", "the published hash of those ranks"),
    ("base64", "the spelling of the ranks that is hashed"),
    ("regex", "patterns of personal data in text, matched in linear time"),
    ("regex-syntax", "the character classes of split patterns, for the splitter of our own"),
    ("proc-macro2", "Rust text as tokens, in which comments and strings hide nothing from the judge"),
    ("minijinja", "chat templates of other models, rendered to compare with ours"),
    ("arrow-array", "columns of records and token rows"),
    ("arrow-schema", "their types"),
    ("parquet", "shards on disk"),
    ("tensorboard-rs", "event files for TensorBoard"),
    ("blake3", "content hashes"),
    ("thiserror", "typed errors of the libraries"),
    ("anyhow", "errors of the programs"),
    ("rustix", "free space and other facts of the system without unsafe code"),
    ("libc", "the allocator's settings and the sandbox's calls that have no other interface"),
    ("landlock", "the sandbox's rules on files and sockets, without unsafe code"),
    ("seccompiler", "the sandbox's list of system calls, compiled for the kernel in Rust"),
    ("signal-hook", "saving before SIGTERM ends a run"),
    ("indicatif", "progress bars of long data steps"),
    ("liblzma", "the xz baseline that a model must beat"),
    ("tempfile", "folders of tests"),
    ("proptest", "properties over random inputs"),
    ("divan", "benchmarks of the CPU path"),
];

/// Checks the root manifest against the reasons, and that members take every version from it.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let read = |path: &Path| -> Result<Table> {
        let text = workspace::read(root, path)?;
        text.parse().with_context(|| format!("cannot read {}", path.display()))
    };
    let mut findings = check_reasons(&read(Path::new("Cargo.toml"))?);
    for dir in ["crates", "xtask", "tests", "benches"] {
        for path in workspace::files(root, dir, "toml")? {
            if path.ends_with("Cargo.toml") {
                findings.extend(check_member(&path, &read(&path)?));
            }
        }
    }
    Ok(findings)
}

fn check_reasons(manifest: &Table) -> Vec<Finding> {
    let table = manifest.get("workspace").and_then(|w| w.get("dependencies")).and_then(Value::as_table);
    let is_ours = |value: &Value| value.get("path").is_some();
    let used: BTreeSet<&str> =
        table.into_iter().flatten().filter(|(_, value)| !is_ours(value)).map(|(name, _)| name.as_str()).collect();
    let has_reason = |name: &str| REASONS.iter().any(|(known, reason)| *known == name && !reason.is_empty());
    let mut findings = Vec::new();
    for name in used.iter().filter(|name| !has_reason(name)) {
        let message =
            format!("dependency `{name}` has no reason in xtask/src/tidy/manifests.rs; add one or do without");
        findings.push(Finding::new("Cargo.toml", 0, message));
    }
    for (name, _) in REASONS.iter().filter(|(name, _)| !used.contains(name)) {
        let message = format!("reason for `{name}`, which is not used any more; remove it");
        findings.push(Finding::new("xtask/src/tidy/manifests.rs", 0, message));
    }
    findings
}

fn check_member(path: &PathBuf, manifest: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in manifest.get(kind).and_then(Value::as_table).into_iter().flatten() {
            if value.get("workspace").and_then(Value::as_bool) != Some(true) {
                let message = format!("`{name}` must be `workspace = true`; versions stand in the root Cargo.toml");
                findings.push(Finding::new(path, 0, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_without_reason_and_reasons_without_dependency_are_found() {
        let all: String = REASONS.iter().map(|(name, _)| format!("{name} = \"1\"\n")).collect();
        let manifest =
            |more: &str| format!("[workspace.dependencies]\ngates = {{ path = \"x\" }}\n{more}").parse().unwrap();
        assert_eq!(check_reasons(&manifest(&all)), []);
        let got = check_reasons(&manifest(&format!("{all}left-pad = \"1\"\n")));
        assert!(got.len() == 1 && got[0].message.contains("`left-pad` has no reason"), "{got:?}");
        let got = check_reasons(&manifest(&all.replace("rayon = \"1\"\n", "")));
        assert!(got.len() == 1 && got[0].message.contains("`rayon`"), "{got:?}");
    }

    #[test]
    fn versions_in_members_are_found() {
        let member = |text: &str| check_member(&"x/Cargo.toml".into(), &text.parse().unwrap()).len();
        assert_eq!(
            member("[dependencies]\nserde.workspace = true\n[dev-dependencies]\ntoml = { workspace = true }\n"),
            0
        );
        assert_eq!(member("[dependencies]\nserde = \"1\"\n[dev-dependencies]\ntoml = { version = \"1\" }\n"), 2);
    }
}
