//! Folders and files that appear whole or not at all: written beside their place, synced, then renamed into it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::ModelError;

/// Whether something lies at `path` that is not an empty folder.
fn is_occupied(path: &Path) -> Result<bool, ModelError> {
    let io = |source| ModelError::Io { action: "read", path: path.to_path_buf(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(std::fs::read_dir(path).map_err(io)?.next().is_some()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(error)),
    }
}

/// Lets `fill` write into a new folder that becomes `out` only when everything in it is on disk.
///
/// # Errors
/// [`ModelError::OutputExists`] when `out` exists and is not an empty folder, [`ModelError::Io`], and whatever `fill`
/// returns; nothing is left behind in either case.
pub fn write_folder<T>(out: &Path, fill: impl FnOnce(&Path) -> Result<T, ModelError>) -> Result<T, ModelError> {
    if is_occupied(out)? {
        return Err(ModelError::OutputExists { path: out.to_path_buf() });
    }
    let (parent, beside) = place_beside(out)?;
    std::fs::create_dir(&beside).map_err(io("create", &beside))?;
    let finished = fill(&beside).and_then(|value| {
        sync_folder(&beside)?;
        std::fs::rename(&beside, out).map_err(io("rename", &beside))?;
        Ok(value)
    });
    if finished.is_err() {
        // The error that stopped the writing is the one worth telling; a leftover is visible by its name.
        let _ = std::fs::remove_dir_all(&beside);
    }
    let value = finished?;
    File::open(&parent).and_then(|folder| folder.sync_all()).map_err(io("write", &parent))?;
    Ok(value)
}

/// Lets `fill` write a new file that becomes `out` only when all of it is on disk and has been read back; returns its bytes.
///
/// # Errors
/// [`ModelError::OutputExists`] when something lies at `out`, [`ModelError::Io`], and whatever `fill` returns; nothing is left
/// behind in either case.
pub fn write_file(out: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<(), ModelError>) -> Result<u64, ModelError> {
    if std::fs::symlink_metadata(out).is_ok() {
        return Err(ModelError::OutputExists { path: out.to_path_buf() });
    }
    let (parent, beside) = place_beside(out)?;
    let finished = fill_file(&beside, fill).and_then(|bytes| {
        std::fs::rename(&beside, out).map_err(io("rename", &beside))?;
        Ok(bytes)
    });
    if finished.is_err() {
        // The error that stopped the writing is the one worth telling; a leftover is visible by its name.
        let _ = std::fs::remove_file(&beside);
    }
    let bytes = finished?;
    File::open(&parent).and_then(|folder| folder.sync_all()).map_err(io("write", &parent))?;
    Ok(bytes)
}

fn fill_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<(), ModelError>) -> Result<u64, ModelError> {
    let file = File::options().write(true).create_new(true).open(path).map_err(io("create", path))?;
    let mut hashed = Hashed { out: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new() };
    fill(&mut hashed)?;
    let file = hashed.out.into_inner().map_err(|error| io("write", path)(error.into_error()))?;
    file.sync_all().map_err(io("write", path))?;
    let mut read = blake3::Hasher::new();
    File::open(path).and_then(|file| read.update_reader(file).map(drop)).map_err(io("read", path))?;
    if read.finalize() != hashed.hasher.finalize() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "other bytes than were written");
        return Err(io("read", path)(source));
    }
    Ok(hashed.hasher.count())
}

/// A file and the hash of what was written to it.
struct Hashed {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// The folder of `out`, made where it is missing, and a place in it to write at first.
fn place_beside(out: &Path) -> Result<(PathBuf, PathBuf), ModelError> {
    let Some(name) = out.file_name() else {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path has no last component");
        return Err(io("create", out)(source));
    };
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(io("create", parent))?;
    Ok((parent.to_path_buf(), parent.join(format!(".{}.tmp-{}", name.to_string_lossy(), std::process::id()))))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
    let path = path.to_path_buf();
    move |source| ModelError::Io { action, path, source }
}

/// Syncs every file of a flat folder, then the folder.
fn sync_folder(folder: &Path) -> Result<(), ModelError> {
    let io = |source| ModelError::Io { action: "write", path: folder.to_path_buf(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        File::open(entry.map_err(io)?.path()).and_then(|file| file.sync_all()).map_err(io)?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn put(dir: &Path) -> Result<(), ModelError> {
        std::fs::write(dir.join("a"), b"1").unwrap();
        Ok(())
    }

    #[test]
    fn a_folder_appears_whole() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("deep").join("model");
        write_folder(&out, put).unwrap();
        assert_eq!(names(&out), ["a"]);
        assert_eq!(names(&base.path().join("deep")), ["model"]);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("model");
        let fail = |dir: &Path| {
            put(dir)?;
            Err::<(), _>(ModelError::OutputExists { path: dir.to_path_buf() })
        };
        write_folder(&out, fail).unwrap_err();
        assert!(names(base.path()).is_empty());
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("deep").join("model.gguf");
        let fill = |file: &mut dyn Write| {
            file.write_all(b"abc").unwrap();
            Ok(())
        };
        assert_eq!(write_file(&out, fill).unwrap(), 3);
        assert_eq!(std::fs::read(&out).unwrap(), b"abc");
        assert!(matches!(write_file(&out, |_| Ok(())), Err(ModelError::OutputExists { .. })));
        let fail = |file: &mut dyn Write| {
            file.write_all(b"half").unwrap();
            Err(ModelError::OutputExists { path: PathBuf::new() })
        };
        write_file(&base.path().join("deep").join("other"), fail).unwrap_err();
        assert_eq!(names(&base.path().join("deep")), ["model.gguf"]);
    }

    #[test]
    fn an_occupied_place_is_refused_and_an_empty_one_taken() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("model");
        std::fs::create_dir(&out).unwrap();
        write_folder(&out, put).unwrap();
        assert!(matches!(write_folder(&out, put), Err(ModelError::OutputExists { .. })));
        std::fs::write(base.path().join("file"), b"x").unwrap();
        assert!(matches!(write_folder(&base.path().join("file"), put), Err(ModelError::OutputExists { .. })));
    }
}
