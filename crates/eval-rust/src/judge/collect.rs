//! A crate that somebody else wrote, as names and contents.

use std::collections::BTreeMap;
use std::path::Path;

use crate::sandbox::{Caps, CollectError, collect_without};

/// What a crate may have.
const CAPS: Caps = Caps { entries: 1000, bytes: 16 << 20, depth: 24 };
/// Most bytes of one file.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Most bytes of a path, so that it can be written below any folder of the judge.
const MAX_PATH_BYTES: usize = 1024;
/// Folders that tools leave behind; nothing in them is looked at.
const LEFT_BEHIND: [&str; 2] = ["target", ".git"];

/// Relative paths with `/` and the contents.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Why a folder is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error("the name `{0}` is not UTF-8")]
    Name(String),
    #[error("`{0}` is too large")]
    TooLarge(String),
    #[error("a path of {0} bytes is too long")]
    TooLong(usize),
}

/// Reads every file below `root`; `target` and `.git` at its top are left out.
pub(crate) fn collect(root: &Path) -> Result<Files, Unfit> {
    let mut files = Files::new();
    for (path, bytes) in collect_without(root, &CAPS, &LEFT_BEHIND)? {
        let name = path.to_str().ok_or_else(|| Unfit::Name(path.to_string_lossy().into_owned()))?;
        if name.len() > MAX_PATH_BYTES {
            return Err(Unfit::TooLong(name.len()));
        }
        if bytes.len() > MAX_FILE_BYTES {
            return Err(Unfit::TooLarge(name.into()));
        }
        files.insert(name.into(), bytes);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn plain_files_are_read_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [("src/a.rs", "a"), ("target/x", "x"), (".git/config", "x"), ("src/target/b.rs", "b")] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let names: Vec<String> = collect(root.path()).unwrap().into_keys().collect();
        assert_eq!(names, ["src/a.rs", "src/target/b.rs"]);
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("src/c.rs")).unwrap();
        let got = collect(root.path());
        assert!(matches!(got, Err(Unfit::Collect(CollectError::Special(path))) if path == Path::new("src/c.rs")));
    }

    #[test]
    fn names_and_sizes_are_checked() {
        let root = tempfile::tempdir().unwrap();
        fs::File::create(root.path().join("big")).unwrap().set_len(MAX_FILE_BYTES as u64 + 1).unwrap();
        assert!(matches!(collect(root.path()), Err(Unfit::TooLarge(name)) if name == "big"));
        let root = tempfile::tempdir().unwrap();
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff.rs");
        fs::write(root.path().join(name), "").unwrap();
        assert!(matches!(collect(root.path()), Err(Unfit::Name(_))));
        let root = tempfile::tempdir().unwrap();
        let deep = ["d".repeat(250).as_str(); 5].join("/");
        fs::create_dir_all(root.path().join(&deep)).unwrap();
        fs::write(root.path().join(&deep).join("a.rs"), "").unwrap();
        assert!(matches!(collect(root.path()), Err(Unfit::TooLong(1259))));
    }
}
