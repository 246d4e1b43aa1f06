//! A folder that looks like a checkout to the programs: configurations, a little data, `runs/tiny`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::line;
use crate::process::{Ended, command, run};
use crate::programs::repository;

/// Folder of the run, relative to the sandbox.
pub(crate) const RUN: &str = "runs/tiny";
/// The files of the sample that the tiny pipeline reads.
const DATA: [&str; 4] = [
    "text/train/conversations.parquet",
    "text/train/dictionary.parquet",
    "text/heldout/conversations.parquet",
    "text/heldout/dictionary.parquet",
];

/// Files by relative path: content hash, or where a link points.
pub(crate) type Listing = BTreeMap<String, String>;

/// A folder of one test; it stays behind when the test fails.
pub(crate) struct Sandbox {
    root: PathBuf,
}

impl Sandbox {
    /// Configurations and data, nothing run yet.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let root = folder().join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        copy_tree(&repository().join("tests/configs"), &root.join("configs"));
        for file in DATA {
            let to = root.join("data").join(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(repository().join("data").join(file), to).unwrap();
        }
        // What the orchestrator knows a checkout by.
        fs::create_dir(root.join("xtask")).unwrap();
        fs::write(root.join("Cargo.lock"), "").unwrap();
        fs::create_dir_all(root.join(RUN)).unwrap();
        Self { root }
    }

    /// The same with these parts of the finished tiny run, such as `rows` or `sft`; with an empty name all of it.
    pub(crate) fn with(parts: &[&str]) -> Self {
        let sandbox = Self::new();
        for part in parts {
            let part = Path::new(RUN).join(part);
            copy_tree(&line::finished().path(part.to_str().unwrap()), &sandbox.root.join(&part));
        }
        sandbox
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A path in the run's folder.
    pub(crate) fn run_path(&self, name: &str) -> PathBuf {
        self.root.join(RUN).join(name)
    }

    /// A program in this folder.
    pub(crate) fn command<S: AsRef<str>>(&self, name: &str, args: &[S]) -> Command {
        command(&self.root, name, args)
    }

    /// Runs a program in this folder to its end.
    pub(crate) fn run<S: AsRef<str>>(&self, name: &str, args: &[S]) -> Ended {
        run(&mut self.command(name, args))
    }

    /// The orchestrator on the tiny pipeline.
    pub(crate) fn pipeline_command(&self, more: &[&str]) -> Command {
        let mut args = vec!["pipeline", "--config", "configs/pipeline.toml", "--device", "cpu"];
        args.extend(more);
        let mut command = self.command("xtask", &args);
        // The programs are built already, and there is nothing to build here.
        command.env("CARGO", "true");
        command
    }

    /// Runs the orchestrator to its end.
    pub(crate) fn pipeline(&self, more: &[&str]) -> Ended {
        run(&mut self.pipeline_command(more))
    }

    /// Runs a program that must refuse: exit code, all of `words` in its message, and nothing changed on the disk.
    pub(crate) fn refuses<S: AsRef<str>>(&self, code: i32, name: &str, args: &[S], words: &[&str]) {
        let before = self.list("");
        let said = self.run(name, args).says(code, words);
        let after = self.list("");
        let changed: Vec<&String> = before
            .keys()
            .chain(after.keys())
            .filter(|path| before.get(*path) != after.get(*path))
            // A stage folder that was asked for may hold its empty lock.
            .filter(|path| !path.ends_with("/lock"))
            .collect();
        assert!(changed.is_empty(), "changed {changed:?} after: {said}");
    }

    /// Replaces a piece of a text file that must be there.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{from:?} is not in {name}");
        fs::write(self.path(name), text.replacen(from, to, 1)).unwrap();
    }

    /// A JSON file.
    pub(crate) fn json(&self, name: &str) -> Value {
        let path = self.path(name);
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).unwrap()
    }

    /// Every file and link below a folder.
    pub(crate) fn list(&self, name: &str) -> Listing {
        let mut found = Listing::new();
        collect(&self.path(name), "", &mut found);
        found
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what it left behind: {}", self.root.display());
        } else {
            // Only room on the disk is lost otherwise, until the next test run.
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// The folder of this test process; folders of processes that are gone are removed.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e");
        fs::create_dir_all(&all).unwrap();
        for entry in fs::read_dir(&all).unwrap() {
            let old = entry.unwrap();
            if !Path::new("/proc").join(old.file_name()).exists() {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let own = all.join(std::process::id().to_string());
        let _ = fs::remove_dir_all(&own);
        own
    })
}

/// Copies a file or a folder, links as links.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    let kind = from.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", from.display())).file_type();
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from).unwrap(), to).unwrap();
    } else if kind.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy_tree(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn collect(folder: &Path, prefix: &str, found: &mut Listing) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_str().unwrap()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            // The folder itself counts too: an empty one would be something half-made.
            found.insert(format!("{name}/"), String::new());
            collect(&path, &format!("{name}/"), found);
        } else if kind.is_symlink() {
            found.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
        } else {
            found.insert(name, gates::artifact::hash_file(&path).unwrap());
        }
    }
}
