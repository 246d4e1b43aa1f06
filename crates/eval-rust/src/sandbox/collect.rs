//! Takes files out of a folder that a command could write: regular files only, no link followed, everything capped.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};

/// How much is taken at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Files and folders.
    pub entries: usize,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Folders within folders.
    pub depth: usize,
}

/// Why a folder was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Something that is neither a regular file nor a folder.
    #[error("{0} is no regular file; nothing of this folder is used")]
    Special(PathBuf),
    /// A cap was passed.
    #[error("{path}: more than {cap} {what}; nothing of this folder is used")]
    Cap {
        /// Where.
        path: PathBuf,
        /// The cap.
        cap: u64,
        /// Its unit.
        what: &'static str,
    },
    /// The system failed.
    #[error("{path}: {source}; nothing of this folder is used")]
    Read {
        /// What was being read.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Reads every file below `folder`, as paths relative to it with their content, in the order of their paths.
///
/// # Errors
/// `Special` for links, FIFOs, sockets and devices, which are never opened; `Cap` when there is too much; `Read` when the
/// system fails, also when an entry is swapped while it is being read.
pub fn collect(folder: &Path, caps: &Caps) -> Result<Vec<(PathBuf, Vec<u8>)>, CollectError> {
    collect_without(folder, caps, &[])
}

/// As [`collect`], but what has one of these names directly in `folder` is not looked at and does not count.
///
/// # Errors
/// As [`collect`].
pub fn collect_without(folder: &Path, caps: &Caps, left_out: &[&str]) -> Result<Vec<(PathBuf, Vec<u8>)>, CollectError> {
    let failed = |source: rustix::io::Errno| CollectError::Read { path: folder.into(), source: source.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty()).map_err(failed)?;
    let mut found = Collected { caps, left_out, entries: 0, bytes: 0, files: Vec::new() };
    found.folder(root, Path::new(""), 0)?;
    found.files.sort();
    Ok(found.files)
}

struct Collected<'a> {
    caps: &'a Caps,
    left_out: &'a [&'a str],
    entries: usize,
    bytes: u64,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Collected<'_> {
    fn folder(&mut self, fd: OwnedFd, path: &Path, depth: usize) -> Result<(), CollectError> {
        let read = |source: rustix::io::Errno| CollectError::Read { path: path.into(), source: source.into() };
        let cap = |cap: usize, what| CollectError::Cap { path: path.into(), cap: cap as u64, what };
        if depth > self.caps.depth {
            return Err(cap(self.caps.depth, "folders within folders"));
        }
        for entry in Dir::read_from(&fd).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().to_bytes();
            let left_out = depth == 0 && self.left_out.iter().any(|out| out.as_bytes() == name);
            if name == b"." || name == b".." || left_out {
                continue;
            }
            self.entries += 1;
            if self.entries > self.caps.entries {
                return Err(cap(self.caps.entries, "entries"));
            }
            let inner = path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
            let opened = open(fd.as_fd(), entry.file_name());
            match opened.map_err(|source| CollectError::Read { path: inner.clone(), source })? {
                Some((fd, FileType::Directory)) => self.folder(fd, &inner, depth + 1)?,
                Some((fd, _)) => self.file(fd, inner)?,
                None => return Err(CollectError::Special(inner)),
            }
        }
        Ok(())
    }

    fn file(&mut self, fd: OwnedFd, path: PathBuf) -> Result<(), CollectError> {
        let room = self.caps.bytes - self.bytes;
        let mut content = Vec::new();
        let read = std::fs::File::from(fd).take(room + 1).read_to_end(&mut content);
        read.map_err(|source| CollectError::Read { path: path.clone(), source })?;
        if content.len() as u64 > room {
            return Err(CollectError::Cap { path, cap: self.caps.bytes, what: "bytes" });
        }
        self.bytes += content.len() as u64;
        self.files.push((path, content));
        Ok(())
    }
}

/// Opens a folder or a regular file; `None` for anything else, of which only the kind is looked at.
fn open(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<Option<(OwnedFd, FileType)>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let seen = rustix::fs::openat(parent, name, look, Mode::empty())?;
    let before = rustix::fs::fstat(&seen)?;
    let kind = FileType::from_raw_mode(before.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
    let after = rustix::fs::fstat(&fd)?;
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
        return Err(io::Error::other("it was replaced while it was being opened"));
    }
    Ok(Some((fd, kind)))
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    const CAPS: Caps = Caps { entries: 20, bytes: 100, depth: 3 };

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b"), b"one").unwrap();
        std::fs::write(folder.path().join("c"), b"two").unwrap();
        folder
    }

    #[test]
    fn s11_regular_files_are_taken_in_order() {
        let folder = folder();
        let want = vec![(PathBuf::from("a/b"), b"one".to_vec()), (PathBuf::from("c"), b"two".to_vec())];
        assert_eq!(collect(folder.path(), &CAPS).unwrap(), want);
        assert_eq!(collect_without(folder.path(), &CAPS, &["a", "b"]).unwrap(), want[1..]);
        assert_eq!(collect_without(folder.path(), &CAPS, &["b", "c"]).unwrap(), want[..1], "only at the top");
    }

    #[test]
    fn s11_links_and_fifos_are_refused_without_opening_them() {
        for target in ["/etc/shadow", "c", "."] {
            let folder = folder();
            std::os::unix::fs::symlink(target, folder.path().join("link")).unwrap();
            assert!(
                matches!(collect(folder.path(), &CAPS), Err(CollectError::Special(path)) if path == Path::new("link"))
            );
            let linked = folder.path().join("link");
            assert!(target != "." || collect(&linked, &CAPS).is_err(), "the folder itself is a link");
        }
        let folder = folder();
        rustix::fs::mkfifoat(CWD, folder.path().join("fifo"), Mode::RUSR).unwrap();
        assert!(matches!(collect(folder.path(), &CAPS), Err(CollectError::Special(_))));
    }

    #[test]
    fn s11_too_much_is_refused() {
        let folder = folder();
        for i in 0..20 {
            std::fs::write(folder.path().join(format!("f{i}")), b"").unwrap();
        }
        assert!(matches!(collect(folder.path(), &CAPS), Err(CollectError::Cap { what: "entries", .. })));
        let folder = self::folder();
        std::fs::File::create(folder.path().join("big")).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(collect(folder.path(), &CAPS), Err(CollectError::Cap { what: "bytes", .. })));
        let folder = self::folder();
        std::fs::create_dir_all(folder.path().join("1/2/3/4")).unwrap();
        assert!(matches!(collect(folder.path(), &CAPS), Err(CollectError::Cap { what: "folders within folders", .. })));
    }
}
