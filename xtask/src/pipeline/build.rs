//! Finds the programs of a pipeline: in a folder that the user names, or built once in the profile of this program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::config::Pipeline;
use crate::failure::{ENVIRONMENT, Failure};
use crate::workspace;

/// Builds the workspace and returns where each program of the pipeline lies.
///
/// The programs lie beside this one: same target folder, same profile. So nothing has to be configured, and the
/// pipeline runs what was built from this checkout. For a CUDA device the programs that have such a feature get it.
pub(crate) fn programs(root: &Path, pipeline: &Pipeline, device: &str) -> Result<BTreeMap<String, PathBuf>> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let dir = own.parent().context("this program lies in no folder")?;
    let names = pipeline.programs();
    let mut args = vec!["build".to_owned(), "--locked".to_owned()];
    args.extend(profile_args(dir));
    if is_cuda(device) {
        args.extend(["--features".to_owned(), cuda_features(&workspace::metadata(root)?, &names).join(",")]);
    }
    println!("building the programs: cargo {}", args.join(" "));
    let status = workspace::cargo(root).args(&args).status().context("cannot start cargo")?;
    if !status.success() {
        return Err(Failure::new(ENVIRONMENT, "the programs do not build; the compiler says why").into());
    }
    find(dir, &names, "is it a program of this workspace?")
}

/// The programs of the pipeline in a folder of programs that were built before; nothing is built.
pub(crate) fn prebuilt(dir: &Path, pipeline: &Pipeline) -> Result<BTreeMap<String, PathBuf>> {
    find(dir, &pipeline.programs(), "`--programs` builds nothing: put it there or leave the option out")
}

fn find(dir: &Path, names: &BTreeSet<&str>, hint: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for &name in names {
        let path = dir.join(name).with_extension(std::env::consts::EXE_EXTENSION);
        if !path.is_file() {
            let message = format!("no program `{name}` in {}; {hint}", dir.display());
            return Err(Failure::new(ENVIRONMENT, message).into());
        }
        found.insert(name.to_owned(), path);
    }
    Ok(found)
}

/// Whether a device needs programs with the feature `cuda`; `auto` takes what the programs have.
fn is_cuda(device: &str) -> bool {
    device == "cuda" || device.starts_with("cuda:")
}

/// The feature `cuda` of every package that makes one of these programs and has it.
fn cuda_features(metadata: &Value, programs: &BTreeSet<&str>) -> Vec<String> {
    let makes_one = |package: &Value| {
        let targets = package["targets"].as_array().into_iter().flatten();
        let is_bin = |target: &&Value| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == "bin"));
        targets.filter(is_bin).any(|target| target["name"].as_str().is_some_and(|name| programs.contains(name)))
    };
    let chosen = workspace::cuda_packages(metadata).filter(|package| makes_one(package));
    chosen.filter_map(|package| package["name"].as_str()).map(|name| format!("{name}/cuda")).collect()
}

/// cargo's profile arguments for the folder that a program lies in.
fn profile_args(dir: &Path) -> Vec<String> {
    match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => Vec::new(),
        Some(profile) => vec!["--profile".into(), profile.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_that_of_the_folder() {
        assert!(profile_args(Path::new("/t/debug")).is_empty());
        assert_eq!(profile_args(Path::new("/t/release")), ["--profile", "release"]);
    }

    #[test]
    fn a_cuda_device_turns_the_feature_on_where_a_program_has_it() {
        assert!(is_cuda("cuda") && is_cuda("cuda:3"));
        assert!(!is_cuda("auto") && !is_cuda("cpu"));
        let root = workspace::root().unwrap();
        let demo = Pipeline::load(&root, Path::new("configs/pipeline/demo.toml"), &[]).unwrap();
        let mut got = cuda_features(&workspace::metadata(&root).unwrap(), &demo.programs());
        got.sort();
        // Not data-pipeline, which has no such feature, and not perf, which no step runs.
        let want = ["gates-eval", "model-core", "stage-dpo", "stage-lora", "stage-pretrain", "stage-sft"];
        assert_eq!(got, want.map(|name| format!("{name}/cuda")));
    }

    #[test]
    fn prebuilt_programs_are_found_and_a_missing_one_is_named() {
        let root = workspace::root().unwrap();
        let demo = Pipeline::load(&root, Path::new("configs/pipeline/demo.toml"), &[]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in demo.programs() {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = prebuilt(dir.path(), &demo).unwrap();
        assert_eq!(found["gates"], dir.path().join("gates"));
        assert_eq!(found.len(), demo.programs().len());
        std::fs::remove_file(dir.path().join("stage-dpo")).unwrap();
        let error = prebuilt(dir.path(), &demo).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ENVIRONMENT);
        assert!(error.to_string().contains("no program `stage-dpo` in"), "{error}");
    }
}
