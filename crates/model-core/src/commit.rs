//! Folders that appear whole or not at all: written beside their place, synced, then renamed into it.

use std::fs::File;
use std::path::Path;

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
    let Some(name) = out.file_name() else {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path has no last component");
        return Err(ModelError::Io { action: "create", path: out.to_path_buf(), source });
    };
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = parent.join(format!(".{}.tmp-{}", name.to_string_lossy(), std::process::id()));
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| ModelError::Io { action, path, source }
    };
    std::fs::create_dir_all(parent).map_err(io("create", parent))?;
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
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(io("write", parent))?;
    Ok(value)
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
