//! The folder of a run's checkpoints: save, verify, load, forget.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, Operation};
use super::manifest::{Identity, MANIFEST, Manifest};
use crate::TrainError;

/// Free space that a save must find, in percent of what it writes.
const SPACE_PERCENT: u64 = 120;
/// Begins the name of every checkpoint.
const PREFIX: &str = "step-";
/// In the name of a folder that is being written or removed.
const TEMPORARY: &str = ".tmp-";
/// In the name of a checkpoint that did not verify.
const BAD: &str = ".bad-";

/// `checkpoints/` of one run.
#[derive(Debug)]
pub struct CheckpointStore {
    root: PathBuf,
    identity: Identity,
    keep_last: usize,
    disk: Disk,
}

impl CheckpointStore {
    /// Opens the folder, making it if need be, and clears what an interrupted save left behind.
    ///
    /// The caller holds the run's lock.
    ///
    /// # Errors
    /// When the folder cannot be made, listed or written.
    pub fn open(root: &Path, identity: Identity, keep_last: usize) -> Result<Self, TrainError> {
        Self::open_on(Disk::default(), root, identity, keep_last)
    }

    /// As [`CheckpointStore::open`], on a disk with a hook.
    ///
    /// # Errors
    /// As [`CheckpointStore::open`].
    pub fn open_on(disk: Disk, root: &Path, identity: Identity, keep_last: usize) -> Result<Self, TrainError> {
        std::fs::create_dir_all(root).map_err(TrainError::io("create", root))?;
        let store = Self { root: root.to_path_buf(), identity, keep_last, disk };
        for name in store.names()?.iter().filter(|name| name.starts_with(PREFIX) && name.contains(TEMPORARY)) {
            store.disk.remove_dir_all(&root.join(name))?;
        }
        Ok(store)
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        let entries = std::fs::read_dir(&self.root).map_err(TrainError::io("list", &self.root))?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(TrainError::io("list", &self.root))
        };
        entries.map(name).collect()
    }

    /// Committed steps, ascending. The order is by step, never by the clock.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let names = self.names()?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The folder of all checkpoints.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(format!("{PREFIX}{step}"))
    }

    /// Commits what `fill` writes as the checkpoint of `step`; `fill` need not sync anything.
    ///
    /// # Errors
    /// Too little space, a failed write or sync. The older checkpoints are intact then, and nothing of this save is left
    /// under the name of a checkpoint, unless only the last sync failed: then it may or may not survive a power cut.
    pub fn save(
        &self,
        step: u64,
        n_bytes: u64,
        fill: &mut dyn FnMut(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        self.require_space(n_bytes)?;
        let (tmp, dest) = (self.temporary(step), self.path(step));
        let written = self.write(step, &tmp, fill).and_then(|()| self.disk.rename(&tmp, &dest));
        if let Err(error) = written {
            // The save has failed already; what cannot be removed now is removed when the run starts again. Files whose
            // sync failed are never synced again: the next save has new ones.
            let _ = self.disk.remove_dir_all(&tmp);
            return Err(error);
        }
        self.disk.sync_dir(&self.root)?;
        Ok(dest)
    }

    /// Everything up to the rename: content first, then the manifest, then the names.
    fn write(
        &self,
        step: u64,
        tmp: &Path,
        fill: &mut dyn FnMut(&Path) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        self.disk.create_dir(tmp)?;
        self.disk.announce(Operation::Fill, tmp).map_err(TrainError::io("write into", tmp))?;
        fill(tmp)?;
        let manifest = Manifest::of(tmp, step, self.identity.clone())?;
        for name in manifest.files.keys() {
            self.disk.sync_file(&tmp.join(name))?;
        }
        let path = tmp.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| TrainError::broken(&path, e.to_string()))?;
        self.disk.write_new(&path, &text)?;
        self.disk.sync_file(&path)?;
        for folder in manifest.folders() {
            self.disk.sync_dir(&tmp.join(folder))?;
        }
        self.disk.sync_dir(tmp)
    }

    /// A name that no other save has, also not one of this process that failed.
    fn temporary(&self, step: u64) -> PathBuf {
        static SAVES: AtomicU64 = AtomicU64::new(0);
        let (process, save) = (std::process::id(), SAVES.fetch_add(1, Ordering::Relaxed));
        self.root.join(format!("{PREFIX}{step}{TEMPORARY}{process}-{save}"))
    }

    fn require_space(&self, n_bytes: u64) -> Result<(), TrainError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| TrainError::Io {
            action: "measure",
            path: self.root.clone(),
            source: e.into(),
        })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = n_bytes.div_ceil(100).saturating_mul(SPACE_PERCENT);
        if free < needed { Err(TrainError::NoSpace { path: self.root.clone(), needed, free }) } else { Ok(()) }
    }

    /// The newest checkpoint that verifies; bad ones on the way are renamed, never deleted.
    ///
    /// # Errors
    /// [`TrainError::NoIntactCheckpoint`] when there are some, or were, and none verifies: nothing starts again from
    /// scratch silently. [`TrainError::ResumeMismatch`] or [`TrainError::CheckpointVersion`] when the newest intact one
    /// is of another run or build.
    pub fn load_latest(&self, warn: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, Manifest)>, TrainError> {
        let steps = self.steps()?;
        let mut problem = None;
        for &step in steps.iter().rev() {
            let path = self.path(step);
            let read = Manifest::read(&path);
            if let Err(error @ TrainError::CheckpointVersion { .. }) = read {
                return Err(error);
            }
            let verified = read.map_err(|e| e.to_string()).and_then(|m| m.verify(&path, step).map(|()| m));
            let reason = match verified {
                Ok(manifest) => {
                    self.identity.require(&manifest.identity, &path)?;
                    return Ok(Some((path, manifest)));
                }
                Err(reason) => reason,
            };
            let bad = self.quarantine(&path)?;
            warn(format!("{} is damaged ({reason}); set aside as {}", path.display(), bad.display()));
            problem = Some(reason);
        }
        let set_aside = self.names()?.iter().filter(|name| name.contains(BAD)).count();
        if set_aside == 0 {
            return Ok(None);
        }
        let problem = problem.unwrap_or_else(|| "they were set aside by an earlier start".into());
        Err(TrainError::NoIntactCheckpoint { path: self.root.clone(), found: set_aside, problem })
    }

    fn quarantine(&self, path: &Path) -> Result<PathBuf, TrainError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let free = (0..).map(|i| self.root.join(format!("{name}{BAD}{i}"))).find(|to| !to.exists());
        let to = free.expect("some number is free");
        self.disk.rename(path, &to)?;
        Ok(to)
    }

    /// Removes all but the newest `keep_last` and the best, once the newest has been read back intact.
    ///
    /// # Errors
    /// When the newest does not verify (nothing is removed then), or a folder cannot be removed.
    pub fn prune(&self, best: Option<u64>) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let n_old = steps.len().saturating_sub(self.keep_last);
        let old: Vec<u64> = steps[..n_old].iter().copied().filter(|&step| Some(step) != best).collect();
        let Some(&newest) = steps.last().filter(|_| !old.is_empty()) else { return Ok(()) };
        let path = self.path(newest);
        Manifest::read(&path)?.verify(&path, newest).map_err(|problem| TrainError::broken(&path, problem))?;
        for step in old {
            // Renamed first, so that a kill in the middle leaves no half-deleted folder under a good name.
            let (path, gone) = (self.path(step), self.temporary(step));
            self.disk.rename(&path, &gone)?;
            self.disk.remove_dir_all(&gone)?;
        }
        Ok(())
    }
}
