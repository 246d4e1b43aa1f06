//! Content hashes of files and models, and writes that are whole or absent after a crash.
//!
//! The write protocol is the one that survived power cuts on ext4 and xfs: temporary name, write, fsync of every file,
//! fsync of the folder, rename, fsync of the parent. Only then is success reported.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Files of a model folder that decide what the model computes, besides `*.safetensors`.
const MODEL_FILES: [&str; 3] = ["config.json", "tokenizer.json", "adapter_config.json"];

/// Hashing, an atomic write or a folder commit failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The operating system refused a file operation.
    #[error("cannot {op} {}: {source}; check the path, its permissions and the free space", path.display())]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason given by the operating system.
        source: io::Error,
    },
    /// Something that must be a plain file or folder is not.
    #[error("{}: expected a regular {expected}, found {found}; only regular files and folders are hashed and committed", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A file is larger than its reader accepts.
    #[error("{} has {found} bytes, the limit is {limit}; this is not the file it should be", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// The target of a commit is already there.
    #[error("cannot commit {}: {} already exists; commits never replace, choose another name", tmp.display(), dest.display())]
    Exists {
        /// The folder that was to be committed.
        tmp: PathBuf,
        /// The name that is taken.
        dest: PathBuf,
    },
    /// A folder is not a model.
    #[error("{} is not a model folder: expected {expected}, found {found:?}", dir.display())]
    NotAModel {
        /// The folder.
        dir: PathBuf,
        /// What is missing.
        expected: &'static str,
        /// The model files that are there.
        found: Vec<String>,
    },
}

/// Result of this module.
pub type Result<T, E = ArtifactError> = std::result::Result<T, E>;

fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.to_path_buf();
    move |source| ArtifactError::Io { op, path, source }
}

/// BLAKE3 of bytes, in lower-case hex.
pub fn hash_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// BLAKE3 of a file's content, in lower-case hex; the file is streamed.
///
/// # Errors
/// [`ArtifactError::Io`], and [`ArtifactError::NotRegular`] for anything but a regular file.
pub fn hash_file(path: &Path) -> Result<String> {
    let file = open_regular(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(io_error("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// BLAKE3 over a file's content, or over the sorted relative names and hashes of everything below a folder.
///
/// A symbolic link below the folder counts as where it points, not as what is there; `path` itself may be a link.
///
/// # Errors
/// [`ArtifactError::Io`], and [`ArtifactError::NotRegular`] for pipes and devices.
pub fn hash_tree(path: &Path) -> Result<String> {
    if fs::metadata(path).map_err(io_error("read", path))?.is_file() {
        return hash_file(path);
    }
    let mut named = Vec::new();
    walk(path, &mut |entry, kind| {
        let name = || entry.strip_prefix(path).unwrap_or(entry).to_string_lossy().into_owned();
        match kind {
            Kind::Folder => {}
            Kind::File => named.push((name(), hash_file(entry)?)),
            Kind::Link => {
                let target = fs::read_link(entry).map_err(io_error("read", entry))?;
                // No file has this name, so a link never equals a file.
                named.push((format!("{}/->", name()), hash_bytes(target.as_os_str().as_encoded_bytes())));
            }
        }
        Ok(())
    })?;
    Ok(hash_named(named))
}

/// The identity of a model folder: BLAKE3 over the sorted names and hashes of `config.json`, `tokenizer.json`,
/// `adapter_config.json` (each where present) and every `*.safetensors` directly in it.
///
/// What training keeps beside the model (`trainer/`, the manifest) does not count, so a copied or exported model keeps
/// its hash.
///
/// # Errors
/// [`ArtifactError::NotAModel`] without a configuration or without weights; [`ArtifactError::Io`].
pub fn model_hash(dir: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let name = entry.map_err(io_error("list", dir))?.file_name().to_string_lossy().into_owned();
        if MODEL_FILES.contains(&name.as_str()) || name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    let has = |name: &str| names.iter().any(|n| n == name);
    if !has("config.json") && !has("adapter_config.json") {
        let expected = "config.json or adapter_config.json";
        return Err(ArtifactError::NotAModel { dir: dir.into(), expected, found: names });
    }
    if !names.iter().any(|n| n.ends_with(".safetensors")) {
        return Err(ArtifactError::NotAModel { dir: dir.into(), expected: "at least one *.safetensors", found: names });
    }
    let mut named = Vec::with_capacity(names.len());
    for name in names {
        let hash = hash_file(&dir.join(&name))?;
        named.push((name, hash));
    }
    Ok(hash_named(named))
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`ArtifactError::TooLarge`] before anything is read, [`ArtifactError::NotRegular`], [`ArtifactError::Io`].
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let found = file.metadata().map_err(io_error("read", path))?.len();
    if found > limit {
        return Err(ArtifactError::TooLarge { path: path.into(), found, limit });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    // One byte beyond the limit shows a file that grew since its size was asked.
    io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(ArtifactError::TooLarge { path: path.into(), found: bytes.len() as u64, limit });
    }
    Ok(bytes)
}

/// Writes a file so that after a crash `path` holds the old content or the new, never a part.
///
/// The parent folder must exist. On an error the temporary file is removed and `path` is as it was.
///
/// # Errors
/// [`ArtifactError::Io`]; after a failed fsync the file is abandoned, never synced again.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = temporary_sibling(path);
    let written = write_synced(&tmp, bytes).and_then(|()| fs::rename(&tmp, path).map_err(io_error("rename", &tmp)));
    if let Err(error) = written {
        // Removing is a courtesy: a leftover temporary file is never taken for an artifact.
        let _ = fs::remove_file(&tmp);
        return Err(error);
    }
    sync_dir(parent(path))
}

/// Makes a finished folder appear under its final name, durably: fsync of every file and folder in `tmp`, rename,
/// fsync of the parents.
///
/// # Errors
/// [`ArtifactError::Exists`] when `dest` is there, [`ArtifactError::NotRegular`] for links, pipes and devices in
/// `tmp`, [`ArtifactError::Io`]. On an error `dest` does not appear, or, if only the last fsync failed, may vanish in
/// a crash.
pub fn commit_dir(tmp: &Path, dest: &Path) -> Result<()> {
    if fs::symlink_metadata(dest).is_ok() {
        return Err(ArtifactError::Exists { tmp: tmp.into(), dest: dest.into() });
    }
    walk(tmp, &mut |entry, kind| match kind {
        Kind::Folder => sync_dir(entry),
        Kind::File => sync_file(entry),
        Kind::Link => Err(not_regular(entry, "a symbolic link")),
    })?;
    fs::rename(tmp, dest).map_err(io_error("rename", tmp))?;
    sync_dir(parent(dest))?;
    if parent(tmp) != parent(dest) {
        sync_dir(parent(tmp))?;
    }
    Ok(())
}

/// Hash over names and hashes; the lengths of the parts are unambiguous because a hash has a fixed length.
fn hash_named(mut named: Vec<(String, String)>) -> String {
    named.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, hash) in named {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn open_regular(path: &Path) -> Result<File> {
    let meta = fs::metadata(path).map_err(io_error("open", path))?;
    if !meta.is_file() {
        let found = if meta.is_dir() { "a folder" } else { "a pipe, socket or device" };
        return Err(ArtifactError::NotRegular { path: path.into(), expected: "file", found });
    }
    File::open(path).map_err(io_error("open", path))
}

/// What [`walk`] finds.
enum Kind {
    Folder,
    File,
    Link,
}

/// Visits everything below `dir`, files before the folder that holds them, `dir` itself last. Links are not followed.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, Kind) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(io_error("read", &entry.path()))?);
        if kind.is_dir() {
            walk(&path, visit)?;
        } else if kind.is_file() {
            visit(&path, Kind::File)?;
        } else if kind.is_symlink() {
            visit(&path, Kind::Link)?;
        } else {
            return Err(not_regular(&path, "a pipe, socket or device"));
        }
    }
    visit(dir, Kind::Folder)
}

fn not_regular(path: &Path, found: &'static str) -> ArtifactError {
    ArtifactError::NotRegular { path: path.into(), expected: "file or folder", found }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(io_error("create", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("sync", path))
}

fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync the folder", path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// A name that no other write uses, in the same folder so that the rename stays within one file system.
fn temporary_sibling(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let nonce = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{nonce}.tmp", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dir: &Path) {
        for (name, content) in [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")] {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    #[test]
    fn hashes_are_blake3_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, b"").unwrap();
        // The test vector of the BLAKE3 paper for the empty input.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!((hash_bytes(b"").as_str(), hash_file(&file).unwrap().as_str()), (empty, empty));
        assert!(hash_file(dir.path()).unwrap_err().to_string().contains("expected a regular file, found a folder"));
    }

    #[test]
    fn model_hash_sees_weights_config_and_tokenizer_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(model_hash(dir).unwrap_err().to_string().contains("expected config.json"));
        fs::write(dir.join("config.json"), "{}").unwrap();
        assert!(model_hash(dir).unwrap_err().to_string().contains("at least one *.safetensors"));
        model(dir);
        let before = model_hash(dir).unwrap();
        fs::create_dir(dir.join("trainer")).unwrap();
        fs::write(dir.join("trainer/optimizer.safetensors"), "m").unwrap();
        fs::write(dir.join("manifest.json"), "{}").unwrap();
        assert_eq!(model_hash(dir).unwrap(), before);
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            model(dir);
            fs::write(dir.join(name), "other").unwrap();
            assert_ne!(model_hash(dir).unwrap(), before, "{name}");
        }
    }

    #[test]
    fn hash_tree_depends_on_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/a"), "1").unwrap();
        fs::write(dir.join("b"), "2").unwrap();
        let before = hash_tree(dir).unwrap();
        assert_eq!(hash_tree(dir).unwrap(), before);
        assert_eq!(hash_tree(&dir.join("b")).unwrap(), hash_bytes(b"2"));
        fs::rename(dir.join("b"), dir.join("c")).unwrap();
        assert_ne!(hash_tree(dir).unwrap(), before);
    }

    #[cfg(unix)]
    #[test]
    fn hash_tree_sees_where_a_link_points() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, link) = (dir.path().join("stage"), dir.path().join("stage/final"));
        for step in ["step-1", "step-2"] {
            fs::create_dir_all(dir.join(step)).unwrap();
            fs::write(dir.join(step).join("weights"), step).unwrap();
        }
        std::os::unix::fs::symlink("step-1", &link).unwrap();
        let before = hash_tree(&dir).unwrap();
        assert_eq!(hash_tree(&link).unwrap(), hash_tree(&dir.join("step-1")).unwrap());
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("step-2", &link).unwrap();
        assert_ne!(hash_tree(&dir).unwrap(), before);
    }

    #[test]
    fn write_atomic_replaces_whole_files_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        // A folder cannot be replaced by a file: the rename fails after the temporary file was written.
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(write_atomic(&taken, b"x").is_err());
        assert!(write_atomic(&dir.path().join("no/such/folder/x"), b"x").is_err());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["report.json", "taken"]);
    }

    #[test]
    fn commit_dir_moves_whole_folders_and_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let (tmp, dest) = (dir.path().join("step-1.tmp"), dir.path().join("step-1"));
        fs::create_dir_all(tmp.join("trainer")).unwrap();
        fs::write(tmp.join("trainer/a"), "1").unwrap();
        commit_dir(&tmp, &dest).unwrap();
        assert!(!tmp.exists());
        assert_eq!(fs::read(dest.join("trainer/a")).unwrap(), b"1");
        fs::create_dir(&tmp).unwrap();
        assert!(matches!(commit_dir(&tmp, &dest), Err(ArtifactError::Exists { .. })));
        assert!(tmp.exists() && dest.join("trainer/a").exists());
    }

    #[cfg(unix)]
    #[test]
    fn commit_dir_refuses_links() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("t");
        fs::create_dir(&tmp).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tmp.join("weights")).unwrap();
        let error = commit_dir(&tmp, &dir.path().join("d")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(tmp.exists());
    }

    #[test]
    fn read_bounded_refuses_before_reading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_bounded(&path, 4), Err(ArtifactError::TooLarge { found: 5, limit: 4, .. })));
    }
}
