//! A folder that somebody else wrote, read into memory: regular files only, none followed, everything counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Most files of a crate.
pub(crate) const MAX_FILES: usize = 1000;
/// Most bytes of one file.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most bytes of all files.
pub(crate) const MAX_BYTES: u64 = 16 << 20;
/// Most folders inside each other.
const MAX_DEPTH: usize = 24;
/// Folders that tools leave behind; nothing in them is looked at.
const LEFT_BEHIND: [&str; 2] = ["target", ".git"];

/// Relative paths with `/` and the contents.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Why a folder is not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{op} {path}: {source}")]
    Io { op: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{0}` is neither a file nor a folder; links, pipes and devices are not taken")]
    NotPlain(String),
    #[error("a name below `{0}` is not UTF-8")]
    Name(String),
    #[error("`{0}` is too large, or the folder has too many files")]
    TooMuch(String),
}

/// Reads every file below `root`; `target` and `.git` at its top are left out.
pub(crate) fn collect(root: &Path) -> Result<Files, Unfit> {
    let mut files = Files::new();
    let mut bytes = 0;
    let mut folders = vec![(root.to_path_buf(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let io = |op| {
            let path = folder.clone();
            move |source| Unfit::Io { op, path, source }
        };
        for entry in fs::read_dir(&folder).map_err(io("list"))? {
            let entry = entry.map_err(io("list"))?;
            let name = entry.file_name().into_string().map_err(|_| Unfit::Name(prefix.clone()))?;
            let relative = format!("{prefix}{name}");
            if depth == 0 && LEFT_BEHIND.contains(&name.as_str()) {
                continue;
            }
            let kind = fs::symlink_metadata(entry.path()).map_err(io("look at"))?;
            if kind.is_dir() {
                if depth + 1 > MAX_DEPTH || folders.len() > MAX_FILES {
                    return Err(Unfit::TooMuch(relative));
                }
                folders.push((entry.path(), format!("{relative}/"), depth + 1));
            } else if kind.is_file() {
                bytes += kind.len();
                if kind.len() > MAX_FILE_BYTES || bytes > MAX_BYTES || files.len() >= MAX_FILES {
                    return Err(Unfit::TooMuch(relative));
                }
                files.insert(relative, fs::read(entry.path()).map_err(io("read"))?);
            } else {
                return Err(Unfit::NotPlain(relative));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
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
        assert!(matches!(collect(root.path()), Err(Unfit::NotPlain(name)) if name == "src/c.rs"));
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        fs::File::create(root.path().join("big")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(matches!(collect(root.path()), Err(Unfit::TooMuch(_))));
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("d/".repeat(MAX_DEPTH + 1))).unwrap();
        assert!(matches!(collect(root.path()), Err(Unfit::TooMuch(_))));
    }
}
