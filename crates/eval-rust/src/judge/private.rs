//! Folders of one judging, which are gone afterwards.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{JudgeError, Result, io};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A folder that nobody else may enter, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Private(PathBuf);

impl Private {
    /// Makes one with an empty `target` and `bin` in the judge's work folder.
    pub(crate) fn new(work: &Path) -> Result<Self> {
        for folder in [work.to_path_buf(), work.join("cache"), work.join("runs")] {
            fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = work.join("runs").join(format!("{}-{number}", std::process::id()));
        // What an ended process of the same number left behind.
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(io("create", &path))?;
        let private = Self(path);
        for name in ["target", "bin", "ws"] {
            let path = private.0.join(name);
            fs::create_dir(&path).map_err(io("create", &path))?;
        }
        open_to_all(&private.0.join("target"))?;
        Ok(private)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Lets whatever user a sandbox has write below a folder, which no other user can reach.
pub(crate) fn open_to_all(path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path).map_err(io("open", path))?;
    let mode = meta.permissions().mode() | if meta.is_dir() { 0o777 } else { 0o666 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io("open", path))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(io("list", path))? {
            open_to_all(&entry.map_err(io("list", path))?.path())?;
        }
    }
    Ok(())
}

/// Writes a file that is not there yet.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::File::create_new(path).and_then(|mut file| file.write_all(bytes)).map_err(|source| JudgeError::Io {
        op: "write",
        path: path.into(),
        source,
    })
}
