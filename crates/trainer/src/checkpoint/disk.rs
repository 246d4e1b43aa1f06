//! The file operations of a save, one by one, so that a test can fail or stop before each of them.
//!
//! # Source
//! Failing the Nth operation for every N until a run is clean is how SQLite tests its I/O; most crash bugs of file
//! systems and their users need three operations or fewer (CrashMonkey, Mohan et al. 2018).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use crate::TrainError;

/// One operation that changes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new folder.
    CreateDir,
    /// The model's and optimizer's own files, which their owners write.
    Fill,
    /// A new file with its content.
    Write,
    /// Content of a file made durable.
    SyncFile,
    /// Names in a folder made durable.
    SyncDir,
    /// A folder's new name.
    Rename,
    /// A folder and all in it removed.
    Remove,
}

/// Called before every operation. An error takes the operation's place; a panic stands for the death of the process.
pub type Hook = Arc<dyn Fn(Operation, &Path) -> io::Result<()> + Send + Sync>;

/// The disk, with or without a hook.
#[derive(Clone, Default)]
pub struct Disk {
    hook: Option<Hook>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hook.is_some() { "Disk(hooked)" } else { "Disk" })
    }
}

impl Disk {
    /// A disk that asks `hook` first.
    pub fn hooked(hook: Hook) -> Self {
        Self { hook: Some(hook) }
    }

    /// Announces an operation that somebody else carries out.
    ///
    /// # Errors
    /// What the hook says.
    pub fn announce(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(operation, path))
    }

    fn run(
        &self,
        (operation, verb): (Operation, &'static str),
        path: &Path,
        act: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), TrainError> {
        self.announce(operation, path).and_then(|()| act()).map_err(TrainError::io(verb, path))
    }

    pub(super) fn create_dir(&self, path: &Path) -> Result<(), TrainError> {
        self.run((Operation::CreateDir, "create"), path, || fs::create_dir(path))
    }

    pub(super) fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
        self.run((Operation::Write, "write"), path, || {
            OpenOptions::new().write(true).create_new(true).open(path)?.write_all(bytes)
        })
    }

    pub(super) fn sync_file(&self, path: &Path) -> Result<(), TrainError> {
        self.run((Operation::SyncFile, "sync"), path, || File::open(path)?.sync_all())
    }

    pub(super) fn sync_dir(&self, path: &Path) -> Result<(), TrainError> {
        self.run((Operation::SyncDir, "sync the folder"), path, || File::open(path)?.sync_all())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), TrainError> {
        self.run((Operation::Rename, "rename"), from, || fs::rename(from, to))
    }

    pub(super) fn remove_dir_all(&self, path: &Path) -> Result<(), TrainError> {
        self.run((Operation::Remove, "remove"), path, || fs::remove_dir_all(path))
    }
}
