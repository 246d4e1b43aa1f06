//! What judging one task can reuse: built dependencies with their lock file, and the solution as a program.
//!
//! An entry is made from the task and the vendored sources alone, never from a candidate, and no sandbox sees the cache: every
//! judging works on a copy of its own, and the hash that was stored with an entry is checked before each copy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gates::artifact;

use super::collect::collect;
use super::commands::{self, Places};
use super::driver::{self, DRIVER};
use super::error::{JudgeError, Result, io};
use super::policy;
use super::private::{Private, open_to_all, write_new};
use super::report::Judgement;
use super::task::Task;
use super::workspace::{self, HARNESS, programs};
use super::{Judge, Step};
use crate::sandbox::End;

/// Part of every name, to be raised when what an entry holds is made in another way.
const VERSION: &str = "2";
/// Dependencies may take longer than any candidate.
const DEPENDENCIES: Duration = Duration::from_secs(1800);

impl Judge<'_> {
    /// The folder with `Cargo.lock` and `target/` of the task's dependencies.
    pub(super) fn dependencies(&self, task: &Task) -> Result<PathBuf> {
        let mut parts: Vec<&[u8]> = vec![self.identity.as_bytes()];
        let manifests = workspace::manifests(task);
        parts.extend(manifests.iter().map(String::as_bytes));
        parts.push(task.start.get("Cargo.lock").map_or(&[], Vec::as_slice));
        self.entry("dependencies", &parts, |private, dest| {
            let dir = private.path();
            workspace::write(&dir.join("ws"), task, None)?;
            if let Some(lock) = task.start.get("Cargo.lock") {
                write_new(&dir.join("ws/Cargo.lock"), lock)?;
            }
            open_to_all(&dir.join("ws"))?;
            // The empty programs are built as well, so that a missing linker is noticed here and no candidate's fault. Clippy runs
            // too, because cargo notes in the target folder what it asks every compiler at its first use.
            for args in [["build", "--workspace", "--offline"], ["clippy", "--workspace", "--offline"]] {
                self.own(dir, "dependencies", &args)?;
            }
            forget(&dir.join("target/debug"), task)?;
            copy(&dir.join("ws/Cargo.lock"), &dest.join("Cargo.lock"))?;
            copy(&dir.join("target"), &dest.join("target"))
        })
    }

    /// The folder with the driver over the solution.
    pub(super) fn reference(&self, task: &Task) -> Result<PathBuf> {
        let tree = artifact::hash_tree(&task.dir)?;
        let source = driver::source(task) + driver::WIRE;
        let parts = [self.identity.as_bytes(), tree.as_bytes(), source.as_bytes()];
        self.entry("reference", &parts, |private, dest| {
            let bad = |what: String| JudgeError::Task { path: task.dir.clone(), what: format!("solution: {what}") };
            let files = collect(&task.solution()).map_err(|error| bad(error.to_string()))?;
            let admitted = policy::admit(task, &files).map_err(bad)?;
            self.lay_out(private, task, Some(&admitted.files))?;
            self.own(private.path(), "solution", &["build", "--frozen", "-p", HARNESS, "--bin", DRIVER])?;
            copy(&private.path().join("target/debug").join(DRIVER), &dest.join(DRIVER))
        })
    }

    /// Puts a workspace, of these files or of empty ones, the dependencies and an empty `bin` into a private folder.
    pub(super) fn lay_out(&self, private: &Private, task: &Task, files: Option<&super::collect::Files>) -> Result<()> {
        let dependencies = self.dependencies(task)?;
        let dir = private.path();
        workspace::write(&dir.join("ws"), task, files)?;
        copy(&dependencies.join("Cargo.lock"), &dir.join("ws/Cargo.lock"))?;
        copy(&dependencies.join("target"), &dir.join("target"))?;
        open_to_all(&dir.join("target"))
    }

    /// Runs cargo over what is the judge's and the task's own.
    fn own(&self, dir: &Path, step: Step, args: &[&str]) -> Result<()> {
        let command = commands::tool(&self.places(dir), "cargo", args, "ws", true, DEPENDENCIES);
        let outcome = commands::run(self.runner, &command, &mut Judgement::new("", 0))?;
        if outcome.end == End::Exit(0) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        Err(JudgeError::Own {
            step,
            what: format!("cargo {}: {}\n{said}", args.join(" "), commands::ended(outcome.end)),
        })
    }

    pub(super) fn places<'a>(&'a self, private: &'a Path) -> Places<'a> {
        Places { toolchain: &self.options.toolchain, vendor: self.options.vendor.as_deref(), private }
    }

    /// Finds an entry, or makes it; one at a time, so that nothing is made twice.
    fn entry(&self, kind: &str, parts: &[&[u8]], make: impl FnOnce(&Private, &Path) -> Result<()>) -> Result<PathBuf> {
        let hashes: String = parts.iter().map(|part| artifact::hash_bytes(part)).collect();
        let hashes = VERSION.to_owned() + &hashes;
        let name = format!("{kind}-{}", &artifact::hash_bytes(hashes.as_bytes())[..32]);
        let entry = self.options.work.join("cache").join(name);
        let lock = if kind == "reference" { &self.making_reference } else { &self.making };
        let _one = lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !entry.exists() {
            let private = Private::new(&self.options.work)?;
            let dest = private.path().join("entry");
            let tree = dest.join("tree");
            fs::create_dir_all(&tree).map_err(io("create", &tree))?;
            make(&private, &tree)?;
            write_new(&dest.join("hash"), artifact::hash_tree(&tree)?.as_bytes())?;
            match artifact::commit_dir(&dest, &entry) {
                Ok(()) | Err(artifact::ArtifactError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let tree = entry.join("tree");
        let stored = artifact::read_bounded(&entry.join("hash"), 64)?;
        if artifact::hash_tree(&tree)?.as_bytes() != stored {
            return Err(JudgeError::CacheChanged { path: entry });
        }
        Ok(tree)
    }
}

/// Takes the empty crate and the empty programs out of a target folder, so that cargo builds these two packages anew whatever
/// the clock says.
fn forget(debug: &Path, task: &Task) -> Result<()> {
    let marks = debug.join(".fingerprint");
    for entry in fs::read_dir(&marks).map_err(io("list", &marks))? {
        let entry = entry.map_err(io("list", &marks))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let package = name.rsplit_once('-').map_or(name.as_str(), |(package, _)| package);
        if package == task.package || package == HARNESS {
            fs::remove_dir_all(entry.path()).map_err(io("remove", &marks))?;
        }
    }
    for name in programs(task) {
        let path = debug.join(name);
        fs::remove_file(&path).map_err(io("remove", &path))?;
    }
    Ok(())
}

/// Copies a file or a folder with the times of change, by which cargo tells what is fresh; other things are an error.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(from).map_err(io("copy", from))?;
    if meta.is_dir() {
        fs::create_dir_all(to).map_err(io("create", to))?;
        for entry in fs::read_dir(from).map_err(io("list", from))? {
            let entry = entry.map_err(io("list", from))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if !meta.is_file() {
        return Err(JudgeError::Own { step: "copy", what: format!("{} is not a plain file", from.display()) });
    }
    fs::copy(from, to).map_err(io("copy", from))?;
    let time = meta.modified().map_err(io("copy", from))?;
    File::options().append(true).open(to).and_then(|file| file.set_modified(time)).map_err(io("copy", to))
}
