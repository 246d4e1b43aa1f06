//! The copy of a crate that an executor works on: its files in memory and the same on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use eval_rust::sandbox::{Caps, collect};
use gates::artifact;

use super::error::{CallError, ExecutorError, io};

/// Relative paths with `/` and the contents.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What a crate may have.
const CAPS: Caps = Caps { entries: 2000, bytes: 16 << 20, depth: 16 };
/// Most bytes of a file that a patch makes.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Most bytes of a path.
const MAX_PATH_BYTES: usize = 200;
/// Folders at the top that belong to tools.
const LEFT_BEHIND: [&str; 2] = ["target", ".git"];
/// Names that steer the build, or that run in it.
const STEERING: [&str; 3] = ["build.rs", "Cargo.toml", "Cargo.lock"];

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Reads a crate: regular files only, no link followed, at most a bounded number of bytes.
///
/// # Errors
/// [`ExecutorError::Collect`] for links, pipes and too much; [`ExecutorError::Crate`] without a manifest, or with a name
/// that is not UTF-8.
pub fn load_crate(folder: &Path) -> Result<Files, ExecutorError> {
    let failed = |source| ExecutorError::Collect { path: folder.into(), source };
    let mut files = Files::new();
    for (path, bytes) in collect(folder, &CAPS).map_err(failed)? {
        let name = path.into_os_string().into_string();
        let name = name.map_err(|_| ExecutorError::Crate { reason: "a file name is not UTF-8".into() })?;
        if !LEFT_BEHIND.iter().any(|own| name.split('/').next() == Some(own)) {
            files.insert(name, bytes);
        }
    }
    if !files.contains_key("Cargo.toml") {
        return Err(ExecutorError::Crate { reason: format!("{} has no Cargo.toml", folder.display()) });
    }
    Ok(files)
}

/// BLAKE3 over names and contents.
pub fn files_hash(files: &Files) -> String {
    let lines: String =
        files.iter().map(|(name, bytes)| format!("{} {name:?}\n", artifact::hash_bytes(bytes))).collect();
    artifact::hash_bytes(lines.as_bytes())
}

/// Files in memory, and a folder of one executor where programs see them.
#[derive(Debug)]
pub(super) struct Workspace {
    files: Files,
    hash: String,
    root: PathBuf,
}

impl Workspace {
    /// Lays a crate out in a folder of its own below `work`; it is gone with the value.
    pub(super) fn new(work: &Path, files: Files) -> Result<Self, ExecutorError> {
        let runs = work.join("tools");
        fs::create_dir_all(&runs).map_err(io("create", &runs))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = runs.join(format!("{}-{number}", std::process::id()));
        // What an ended process of the same number left behind.
        if root.exists() {
            fs::remove_dir_all(&root).map_err(io("remove", &root))?;
        }
        fs::DirBuilder::new().mode(0o700).create(&root).map_err(io("create", &root))?;
        let mut this = Self { files: Files::new(), hash: String::new(), root };
        for folder in [this.crate_folder(), this.target_folder()] {
            fs::create_dir(&folder).map_err(io("create", &folder))?;
        }
        let target = this.target_folder();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o777)).map_err(io("open", &target))?;
        this.replace(files)?;
        Ok(this)
    }

    pub(super) fn crate_folder(&self) -> PathBuf {
        self.root.join("ws")
    }

    pub(super) fn target_folder(&self) -> PathBuf {
        self.root.join("target")
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Makes the files these, writing only what differs.
    pub(super) fn replace(&mut self, files: Files) -> Result<(), ExecutorError> {
        let folder = self.crate_folder();
        for name in self.files.keys().filter(|name| !files.contains_key(*name)) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        for (name, bytes) in files.iter().filter(|(name, bytes)| self.files.get(*name) != Some(*bytes)) {
            write(&folder.join(name), bytes)?;
        }
        self.hash = files_hash(&files);
        self.files = files;
        Ok(())
    }

    /// Takes over what a program wrote into the folder.
    pub(super) fn take_over(&mut self) -> Result<(), ExecutorError> {
        let files = load_crate(&self.crate_folder())?;
        self.hash = files_hash(&files);
        self.files = files;
        Ok(())
    }

    /// A file as text.
    pub(super) fn text(&self, path: &str) -> Result<&str, CallError> {
        let bytes = self.files.get(path).ok_or_else(|| self.no_file(path))?;
        std::str::from_utf8(bytes).map_err(|_| CallError::path(path, "is not text"))
    }

    fn no_file(&self, path: &str) -> CallError {
        let name = path.rsplit('/').next().unwrap_or(path);
        let like = self.files.keys().find(|known| known.rsplit('/').next() == Some(name));
        let hint = like.map_or_else(String::new, |known| format!("; there is {known}"));
        CallError::not_found(format!("file {}", super::error::shown(path)), hint)
    }

    /// Replaces `old`, which must stand once in the file, by `new`; says what was done.
    pub(super) fn patch(
        &mut self,
        path: &str,
        old: &str,
        new: &str,
        tests: bool,
    ) -> Result<Result<String, ExecutorError>, CallError> {
        let path = writable(path, tests)?;
        let wrong = |reason: String| CallError::Patch { path: path.into(), reason };
        let (text, said) = if old.is_empty() {
            if self.files.contains_key(path) {
                return Err(wrong("the file exists; name the text to replace in old".into()));
            }
            (new.to_owned(), format!("{path}: new, {} lines", new.lines().count()))
        } else {
            let text = self.text(path)?;
            let places: Vec<usize> = text.match_indices(old).map(|(at, _)| at).take(2).collect();
            let line = |at: usize| text[..at].lines().count().max(1) + usize::from(text[..at].ends_with('\n'));
            let at = match places[..] {
                [] => return Err(CallError::not_found(format!("the old text in {path}"), "; read the file again")),
                [at] => at,
                _ => {
                    let reason = format!(
                        "the old text occurs more than once, first at line {}; give more of the lines around it",
                        line(places[0])
                    );
                    return Err(wrong(reason));
                }
            };
            if old == new {
                return Err(wrong("old and new are the same".into()));
            }
            let said = format!("{path}: patched at line {}", line(at));
            (format!("{}{new}{}", &text[..at], &text[at + old.len()..]), said)
        };
        if text.len() > MAX_FILE_BYTES {
            return Err(wrong(format!("the file would have {} bytes, at most {MAX_FILE_BYTES} are taken", text.len())));
        }
        Ok(self.put(path, text.into_bytes()).map(|()| said))
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), ExecutorError> {
        write(&self.crate_folder().join(path), &bytes)?;
        self.files.insert(path.to_owned(), bytes);
        self.hash = files_hash(&self.files);
        Ok(())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Writes a file through a new one, so that a link that should not be there is never written through.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ExecutorError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io("create", parent))?;
    }
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).map_err(io("replace", path))?;
    }
    fs::File::create_new(path).and_then(|mut file| file.write_all(bytes)).map_err(io("write", path))
}

/// A path that stays inside the crate.
pub(super) fn inside(path: &str) -> Result<&str, CallError> {
    let wrong = |reason| Err(CallError::path(path, reason));
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        return wrong("is empty or too long");
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return wrong("has a character that no path here has");
    }
    if path.starts_with('/') {
        return wrong("is absolute; paths are relative to the crate");
    }
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let parts = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !plain || !parts {
        return wrong("leads through `.`, `..` or an empty name");
    }
    if path.split('/').any(|part| part.starts_with('.')) || path.split('/').next() == Some("target") {
        return wrong("is hidden, or in the target folder");
    }
    Ok(path)
}

/// A path of a file that may be changed.
fn writable(path: &str, tests: bool) -> Result<&str, CallError> {
    let path = inside(path)?;
    let name = path.rsplit('/').next().unwrap_or(path);
    if STEERING.contains(&name) || !name.ends_with(".rs") {
        return Err(CallError::path(path, "only Rust sources may be changed, and no build script or manifest"));
    }
    if !tests && matches!(path.split('/').next(), Some("tests" | "benches")) {
        return Err(CallError::path(path, "tests and benches may not be changed"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for path in ["src/lib.rs", "tests/data/a.txt", "lib.rs", "src/ä b.rs"] {
            assert_eq!(inside(path).unwrap(), path);
        }
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "src/../../x",
            "./src",
            "src//lib.rs",
            "src/",
            ".cargo/config.toml",
            "a/.git/x",
            "target/debug/x",
            "a\0b",
            "a\nb",
            "..\\x",
            &"a/".repeat(200),
        ] {
            assert!(matches!(inside(path), Err(CallError::Path { .. })), "{path:?}");
        }
    }

    #[test]
    fn what_steers_the_build_is_not_changed() {
        for path in ["build.rs", "src/build.rs", "Cargo.toml", "Cargo.lock", "src/x.txt", "clippy.toml"] {
            assert!(matches!(writable(path, true), Err(CallError::Path { .. })), "{path}");
        }
        assert!(writable("src/lib.rs", false).is_ok() && writable("tests/a.rs", true).is_ok());
        assert!(writable("tests/a.rs", false).is_err() && writable("benches/a.rs", false).is_err());
    }

    fn workspace(work: &Path) -> Workspace {
        let files = [("Cargo.toml", ""), ("src/lib.rs", "one\ntwo\ntwo\n")];
        Workspace::new(work, files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect())
            .unwrap()
    }

    #[test]
    fn a_patch_replaces_what_stands_once() {
        let work = tempfile::tempdir().unwrap();
        let mut ws = workspace(work.path());
        let before = ws.hash().to_owned();
        let said = ws.patch("src/lib.rs", "one\n", "1\n", false).unwrap().unwrap();
        assert_eq!((said.as_str(), ws.text("src/lib.rs").unwrap()), ("src/lib.rs: patched at line 1", "1\ntwo\ntwo\n"));
        assert_eq!(fs::read_to_string(ws.crate_folder().join("src/lib.rs")).unwrap(), "1\ntwo\ntwo\n");
        assert_ne!(ws.hash(), before);
        assert!(
            matches!(ws.patch("src/lib.rs", "two", "2", false), Err(CallError::Patch { reason, .. }) if reason.contains("line 2"))
        );
        assert!(matches!(ws.patch("src/lib.rs", "three", "3", false), Err(CallError::NotFound { .. })));
        assert!(matches!(ws.patch("src/lib.rs", "1", "1", false), Err(CallError::Patch { .. })));
        assert!(matches!(ws.patch("src/lib.rs", "", "x", false), Err(CallError::Patch { .. })));
        assert!(
            matches!(ws.patch("lib.rs", "a", "b", false), Err(CallError::NotFound { hint, .. }) if hint.contains("src/lib.rs"))
        );
        let huge = "x".repeat(MAX_FILE_BYTES + 1);
        assert!(matches!(ws.patch("src/new.rs", "", &huge, false), Err(CallError::Patch { .. })));
        assert!(ws.patch("src/a/new.rs", "", "//! New.\n", false).unwrap().unwrap().contains("new, 1 lines"));
        let said = ws.patch("src/lib.rs", "two\ntwo\n", "2\n", false).unwrap().unwrap();
        assert_eq!(said, "src/lib.rs: patched at line 2");
        let root = ws.root.clone();
        drop(ws);
        assert!(!root.exists(), "the folder is gone with the value");
    }

    #[test]
    fn links_are_neither_read_nor_written_through() {
        let work = tempfile::tempdir().unwrap();
        let outside = work.path().join("outside.rs");
        fs::write(&outside, "safe").unwrap();
        let mut ws = workspace(work.path());
        let link = ws.crate_folder().join("src/new.rs");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(matches!(ws.take_over(), Err(ExecutorError::Collect { .. })));
        ws.patch("src/new.rs", "", "changed", false).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "safe");
    }
}
