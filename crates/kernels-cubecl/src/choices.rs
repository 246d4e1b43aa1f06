//! Which algorithm each large matrix product uses, remembered in a file.
//!
//! Algorithms are chosen by their measured time, and two of them may round differently. So a choice is made once on a machine
//! and every later run uses it: runs with the same file give the same bits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// First line of the file; another one means another program or another version.
const HEAD: &str = "firebrick matrix product algorithms, version 1";
/// Name of the file in the cache folder.
const FILE: &str = "matrix-products.txt";

/// An algorithm as cuBLASLt describes it: opaque, valid for one version of the library and one kind of device.
pub(crate) type Algorithm = [u64; 8];

/// The choices made so far.
#[derive(Debug)]
pub(crate) struct Choices {
    path: PathBuf,
    known: BTreeMap<String, Algorithm>,
}

/// The folder for choices: `FIREBRICK_CACHE`, or `firebrick` in the user's cache; `None` where that is `off` or there is none.
pub(crate) fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    match variable("FIREBRICK_CACHE") {
        Some(value) if value == "off" => None,
        Some(value) => Some(PathBuf::from(value)),
        None => {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
            cache.map(|cache| cache.join("firebrick"))
        }
    }
}

impl Choices {
    /// Reads what earlier runs chose; a file that is not ours is left out with a warning.
    pub(crate) fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let known = read(&path);
        Self { path, known }
    }

    /// The choice for this product.
    pub(crate) fn get(&self, key: &str) -> Option<Algorithm> {
        self.known.get(key).copied()
    }

    /// Keeps a choice and gives the one to use: that of another process, where it was faster to decide.
    pub(crate) fn settle(&mut self, key: &str, algorithm: Algorithm) -> Algorithm {
        match self.add(key, algorithm) {
            Ok(algorithm) => algorithm,
            Err(error) => {
                let path = self.path.display();
                eprintln!("warning: {path}: {error}; the next run may choose other algorithms for its matrix products");
                self.known.insert(key.to_owned(), algorithm);
                algorithm
            }
        }
    }

    /// Replaces a choice that the library does not take any more.
    pub(crate) fn forget(&mut self, key: &str) {
        self.known.remove(key);
        let _ = self.locked(|choices| {
            choices.known = read(&choices.path);
            choices.known.remove(key);
            choices.write()
        });
    }

    fn add(&mut self, key: &str, algorithm: Algorithm) -> io::Result<Algorithm> {
        self.locked(|choices| {
            // What this process knows and another has lost stays.
            let mut known = std::mem::take(&mut choices.known);
            known.extend(read(&choices.path));
            let chosen = *known.entry(key.to_owned()).or_insert(algorithm);
            choices.known = known;
            choices.write()?;
            Ok(chosen)
        })
    }

    /// Runs `work` while no other process changes the file.
    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let lock = File::create(self.path.with_extension("lock"))?;
        lock.lock()?;
        work(self)
    }

    /// Writes the file beside its place and moves it there, so that no reader sees half of it.
    fn write(&self) -> io::Result<()> {
        let part = self.path.with_extension("part");
        let mut file = File::create(&part)?;
        file.write_all(to_text(&self.known).as_bytes())?;
        file.sync_all()?;
        fs::rename(part, &self.path)
    }
}

/// The choices as the text of a file.
fn to_text(known: &BTreeMap<String, Algorithm>) -> String {
    let line = |(key, words): (&String, &Algorithm)| {
        let digits: String = words.iter().map(|word| format!("{word:016x}")).collect();
        format!("{key}\t{digits}\n")
    };
    format!("{HEAD}\n{}", known.iter().map(line).collect::<String>())
}

/// The choices in the text of a file, or what is wrong with it.
fn parse(text: &str) -> Result<BTreeMap<String, Algorithm>, String> {
    let mut lines = text.lines().enumerate();
    match lines.next() {
        Some((_, HEAD)) => {}
        first => return Err(format!("expected the first line {HEAD:?}, got {:?}", first.map_or("", |(_, line)| line))),
    }
    lines
        .map(|(i, line)| parse_line(line).ok_or_else(|| format!("line {}: expected a product and 128 digits", i + 1)))
        .collect()
}

fn parse_line(line: &str) -> Option<(String, Algorithm)> {
    let (key, digits) = line.split_once('\t')?;
    if key.is_empty() || digits.len() != 128 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut algorithm = [0; 8];
    for (i, word) in algorithm.iter_mut().enumerate() {
        *word = u64::from_str_radix(digits.get(16 * i..16 * i + 16)?, 16).ok()?;
    }
    Some((key.to_owned(), algorithm))
}

/// The choices in a file; none, where it is missing or not ours.
fn read(path: &Path) -> BTreeMap<String, Algorithm> {
    let known = match fs::read_to_string(path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error.to_string()),
    };
    known.unwrap_or_else(|error| {
        eprintln!("warning: {}: {error}; matrix products choose their algorithms anew", path.display());
        BTreeMap::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test's own, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("firebrick-choices-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn choices_outlive_the_process() {
        let folder = Folder::new("outlive");
        let algorithm = [1, u64::MAX, 0, 7, 8, 9, 10, 11];
        let mut choices = Choices::open(&folder.0);
        assert_eq!(choices.get("m 1"), None);
        assert_eq!(choices.settle("m 1", algorithm), algorithm);
        assert_eq!(choices.settle("m 2", [2; 8]), [2; 8]);
        let mut again = Choices::open(&folder.0);
        assert_eq!((again.get("m 1"), again.get("m 2")), (Some(algorithm), Some([2; 8])));
        again.forget("m 1");
        let last = Choices::open(&folder.0);
        assert_eq!((last.get("m 1"), last.get("m 2")), (None, Some([2; 8])));
    }

    /// Two processes that search at the same time use one result.
    #[test]
    fn the_first_process_decides() {
        let folder = Folder::new("first");
        let [mut one, mut two] = [0, 1].map(|_| Choices::open(&folder.0));
        assert_eq!(one.settle("product", [1; 8]), [1; 8]);
        assert_eq!(two.settle("other", [3; 8]), [3; 8]);
        assert_eq!(two.settle("product", [2; 8]), [1; 8]);
        assert_eq!(Choices::open(&folder.0).get("other"), Some([3; 8]));
    }

    #[test]
    fn a_file_of_another_program_is_ignored() {
        let folder = Folder::new("foreign");
        fs::create_dir_all(&folder.0).expect("a folder");
        let whole = to_text(&BTreeMap::from([("a product".to_owned(), [5; 8])]));
        assert_eq!(parse(&whole).map(|known| known.len()), Ok(1));
        for text in
            ["", "{\"json\": 1}", &whole[..whole.len() - 2], &whole.replace('\t', " "), &whole.replace('5', "x")]
        {
            fs::write(folder.0.join(FILE), text).expect("a file");
            let mut choices = Choices::open(&folder.0);
            assert_eq!(choices.get("a product"), None, "{text:?}");
            assert_eq!(choices.settle("a product", [6; 8]), [6; 8]);
            assert_eq!(Choices::open(&folder.0).get("a product"), Some([6; 8]));
        }
        fs::write(folder.0.join(FILE), [0xff, 0xfe, 0]).expect("a file");
        assert_eq!(Choices::open(&folder.0).get("a product"), None);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_panic() {
        let mut choices = Choices::open(Path::new("/proc/firebrick"));
        assert_eq!(choices.settle("product", [1; 8]), [1; 8]);
        assert_eq!(choices.get("product"), Some([1; 8]));
    }

    #[test]
    fn the_folder_follows_the_environment() {
        for (set, want) in [
            (&[("FIREBRICK_CACHE", "off"), ("HOME", "/h")][..], None),
            (&[("FIREBRICK_CACHE", "/c"), ("HOME", "/h")], Some("/c")),
            (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/firebrick")),
            (&[("FIREBRICK_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HOME", "/h")], Some("/h/.cache/firebrick")),
            (&[], None),
        ] {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            assert_eq!(folder(variable).as_deref(), want.map(Path::new), "{set:?}");
        }
    }
}
