//! Where code to mutate comes from: pinned crates of a registry, each with its checksum and licence checked, and small
//! crates of our own. A crate belongs to training or to evaluation as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use eval_rust::sandbox::{Caps, collect};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::error::{MutateError, Result};
use super::licence::accepted;
use crate::rust_text::Tokens;

/// Most bytes of a list, a manifest or a lock file.
const MAX_LIST: u64 = 4 << 20;
/// What a source may have.
const CAPS: Caps = Caps { entries: 3000, bytes: 32 << 20, depth: 16 };
/// Licence of the crates of our own.
const OUR_LICENCE: &str = "MIT OR Apache-2.0";
/// Folders and files of a registry crate that no test of its library needs.
const LEFT_OUT: [&str; 9] =
    ["benches", "examples", "fuzz", "ci", "Cargo.toml", "Cargo.toml.orig", "Cargo.lock", "build.rs", "target"];

/// Which side a whole crate is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training data may be made of it.
    Train,
    /// Only evaluation may be made of it.
    Heldout,
}

impl Split {
    /// Its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
        }
    }
}

/// The list of sources as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceList {
    /// SPDX names of the licences that are accepted.
    pub(crate) licences: Vec<String>,
    /// Folder, relative to the list, with `train/NAME` and `heldout/NAME` of our own.
    #[serde(default)]
    pub(crate) ours: Option<PathBuf>,
    /// Crates of the registry.
    #[serde(default)]
    pub(crate) crates: Vec<Entry>,
}

/// A crate of the registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) split: Split,
    /// Another edition than its own, which must build too.
    #[serde(default)]
    pub(crate) edition: Option<String>,
    /// Files of `tests/` that are left out, such as those with dependencies that are not there.
    #[serde(default)]
    pub(crate) skip_tests: Vec<String>,
}

/// A crate whose code can be mutated.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) licence: String,
    pub(crate) split: Split,
    pub(crate) edition: String,
    /// The manifest that it is built with.
    pub(crate) manifest: Table,
    /// Relative paths and contents, without the manifest.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Source {
    /// Hash over everything that is built.
    pub(crate) fn hash(&self) -> String {
        let lines: String = self
            .files
            .iter()
            .map(|(name, bytes)| format!("{} {name:?}\n", gates::artifact::hash_bytes(bytes)))
            .collect();
        gates::artifact::hash_bytes(format!("{}\n{lines}", self.manifest).as_bytes())
    }

    /// Files of Rust below `src/`.
    pub(crate) fn code(&self) -> impl Iterator<Item = (&String, &str)> {
        let files = self.files.iter().filter(|(name, _)| is_code(name));
        files.filter_map(|(name, bytes)| Some((name, std::str::from_utf8(bytes).ok()?)))
    }

    /// Files below `src/` that only tests use, because another one declares them so.
    pub(crate) fn test_modules(&self) -> BTreeSet<String> {
        let declared = self.code().flat_map(|(name, text)| {
            let tokens = Tokens::new(text);
            let modules = tokens.test_items().into_iter().filter_map(|item| module_of(&text[item]));
            modules.flat_map(|module| module_files(name, &module)).collect::<Vec<_>>()
        });
        declared.filter(|path| self.files.contains_key(path)).collect()
    }
}

/// Whether a path is of the library's sources.
pub(crate) fn is_code(name: &str) -> bool {
    name.starts_with("src/") && name.ends_with(".rs")
}

/// The module that an item declares to be in a file of its own.
fn module_of(item: &str) -> Option<String> {
    let tokens = Tokens::new(item);
    let at = (0..tokens.len()).take_while(|&i| !tokens.is(i, "{")).find(|&i| tokens.is(i, "mod"))?;
    tokens.is(at + 2, ";").then(|| tokens.word(at + 1).to_owned())
}

/// Where the file of a module can be that `file` declares.
pub(crate) fn module_files(file: &str, module: &str) -> [String; 2] {
    let folder = file.strip_suffix("lib.rs").or(file.strip_suffix("mod.rs")).map(str::to_owned);
    let folder = folder.unwrap_or_else(|| format!("{}/", file.trim_end_matches(".rs")));
    [format!("{folder}{module}.rs"), format!("{folder}{module}/mod.rs")]
}

/// A source that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The crate.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

/// Reads every source of a list; those that cannot be used come back with their reason.
pub(crate) fn load(list_path: &Path, vendor: Option<&Path>) -> Result<(Vec<Source>, Vec<Refused>)> {
    let bad = |what: String| MutateError::Settings { path: list_path.into(), what };
    let list: SourceList = toml::from_str(&read(list_path)?).map_err(|error| bad(error.to_string()))?;
    let folder = list_path.parent().unwrap_or(Path::new("."));
    let mut found = Vec::new();
    if !list.crates.is_empty() {
        let Some(vendor) = vendor else {
            return Err(bad(
                "has crates of a registry: `cargo xtask crates` fetches them, --vendor names the folder".into()
            ));
        };
        let pins = Pins::read(folder, vendor)?;
        found.extend(list.crates.iter().map(|entry| (entry.name.clone(), pins.source(entry, &list.licences))));
    }
    if let Some(ours) = &list.ours {
        found.extend(our_crates(&folder.join(ours))?);
    }
    let (mut sources, mut refused, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (name, source) in found {
        if !names.insert(name.clone()) {
            return Err(bad(format!("`{name}` is there twice; a crate is on one side only")));
        }
        match source {
            Ok(source) => sources.push(source),
            Err(why) => refused.push(Refused { name, why }),
        }
    }
    Ok((sources, refused))
}

fn read(path: &Path) -> Result<String> {
    let bytes = gates::artifact::read_bounded(path, MAX_LIST)?;
    let what = "is not UTF-8".to_owned();
    String::from_utf8(bytes).map_err(|_| MutateError::Settings { path: path.into(), what })
}

/// What the manifest and the lock file beside the list pin, and what was fetched.
struct Pins {
    vendor: PathBuf,
    /// Versions that the manifest asks for, with their `=`.
    wanted: BTreeMap<String, String>,
    /// Version and checksum of each package that was locked.
    locked: BTreeMap<String, Vec<(String, String)>>,
    vendored: BTreeSet<String>,
}

impl Pins {
    fn read(folder: &Path, vendor: &Path) -> Result<Self> {
        let table = |name: &str| -> Result<Table> {
            let path = folder.join(name);
            let parsed = read(&path)?.parse::<Table>();
            parsed.map_err(|error| MutateError::Settings { path, what: error.to_string() })
        };
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let (manifest, lock) = (table("Cargo.toml")?, table("Cargo.lock")?);
        let dependencies = manifest.get("dependencies").and_then(Value::as_table).into_iter().flatten();
        let version = |value: &Value| value.as_str().map(str::to_owned).or_else(|| text(value, "version"));
        let wanted = dependencies.filter_map(|(name, value)| Some((name.clone(), version(value)?))).collect();
        let mut locked: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for package in lock.get("package").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(name), Some(version), Some(sum)) =
                (text(package, "name"), text(package, "version"), text(package, "checksum"))
            {
                locked.entry(name).or_default().push((version, sum));
            }
        }
        let vendored = locked.keys().cloned().collect();
        Ok(Self { vendor: vendor.into(), wanted, locked, vendored })
    }

    fn source(&self, entry: &Entry, licences: &[String]) -> Result<Source, String> {
        let wanted = self.wanted.get(&entry.name).ok_or("is not pinned in the manifest beside the list")?;
        let version = wanted.strip_prefix('=').ok_or("its version in the manifest must begin with `=`")?;
        let locked = self.locked.get(&entry.name).into_iter().flatten().find(|(locked, _)| locked == version);
        let (_, sum) = locked.ok_or_else(|| format!("Cargo.lock has no {version} of it"))?;
        let folder = self.vendor.join(format!("{}-{version}", entry.name));
        let files =
            collect(&folder, &CAPS).map_err(|error| format!("{error}; `cargo xtask crates` fetches sources"))?;
        let files: BTreeMap<String, Vec<u8>> =
            files.into_iter().filter_map(|(path, bytes)| Some((path.to_str()?.to_owned(), bytes))).collect();
        check_sums(&files, sum)?;
        let manifest = files.get("Cargo.toml").and_then(|bytes| std::str::from_utf8(bytes).ok());
        let manifest: Table = manifest.and_then(|text| text.parse().ok()).ok_or("has no manifest that can be read")?;
        let licence = manifest.get("package").and_then(|package| package.get("license")).and_then(Value::as_str);
        let licence = licence.ok_or("its manifest states no licence")?.to_owned();
        if !accepted(&licence, licences) {
            return Err(format!("licence {licence:?} is not accepted by the list"));
        }
        let manifest = build_manifest(&manifest, &self.vendored, entry.edition.as_deref())?;
        let files = files.into_iter().filter(|(name, _)| is_kept(name, &entry.skip_tests)).collect();
        finish(entry.name.clone(), version.to_owned(), licence, entry.split, manifest, files)
    }
}

/// Compares what was fetched with what cargo noted about it, and that with the lock file.
fn check_sums(files: &BTreeMap<String, Vec<u8>>, locked: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Sums {
        files: BTreeMap<String, String>,
        package: String,
    }
    let sums = files.get(".cargo-checksum.json").ok_or("has no .cargo-checksum.json")?;
    let sums: Sums = serde_json::from_slice(sums).map_err(|error| format!(".cargo-checksum.json: {error}"))?;
    if sums.package != locked {
        return Err("its checksum is not the one of Cargo.lock".into());
    }
    for (name, bytes) in files.iter().filter(|(name, _)| *name != ".cargo-checksum.json") {
        let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if sums.files.get(name) != Some(&sum) {
            return Err(format!("`{name}` is not what was published"));
        }
    }
    Ok(())
}

fn is_kept(name: &str, skip: &[String]) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let skipped = skip.iter().any(|file| name.strip_prefix("tests/").is_some_and(|test| test == file));
    !first.starts_with('.') && !LEFT_OUT.contains(&first) && !skipped
}

/// The manifest to build with: a plain library with its tests, and only dependencies that are there.
fn build_manifest(published: &Table, vendored: &BTreeSet<String>, edition: Option<&str>) -> Result<Table, String> {
    let package = published.get("package").and_then(Value::as_table).ok_or("its manifest has no package")?;
    let mut own = Table::new();
    for key in ["name", "version", "edition", "license", "description"] {
        if let Some(value) = package.get(key) {
            own.insert(key.into(), value.clone());
        }
    }
    if let Some(edition) = edition {
        own.insert("edition".into(), edition.into());
    }
    let mut manifest = Table::from_iter([("package".to_owned(), Value::from(own))]);
    let lib = published.get("lib");
    if lib.and_then(|lib| lib.get("path")).and_then(Value::as_str).is_some_and(|path| path != "src/lib.rs") {
        return Err("its library is not src/lib.rs".into());
    }
    if let Some(name) = lib.and_then(|lib| lib.get("name")) {
        manifest.insert("lib".into(), Table::from_iter([("name".to_owned(), name.clone())]).into());
    }
    let mut kept = BTreeSet::new();
    let mut optional = BTreeSet::new();
    for table in ["dependencies", "dev-dependencies"] {
        let mut out = Table::new();
        for (name, value) in published.get(table).and_then(Value::as_table).into_iter().flatten() {
            let real = value.get("package").and_then(Value::as_str).unwrap_or(name);
            if value.get("optional").and_then(Value::as_bool) == Some(true) {
                optional.insert(name.clone());
            } else if vendored.contains(real) {
                kept.insert(name.clone());
                out.insert(name.clone(), value.clone());
            } else if table == "dependencies" {
                return Err(format!("needs `{real}`, which is not fetched; pin it in the manifest beside the list"));
            }
        }
        if !out.is_empty() {
            manifest.insert(table.into(), out.into());
        }
    }
    let features = features(published, &kept, &optional);
    if !features.is_empty() {
        manifest.insert("features".into(), features.into());
    }
    Ok(manifest)
}

/// The features without those of dependencies that are left out; one that such a dependency implied is there and empty.
fn features(published: &Table, kept: &BTreeSet<String>, optional: &BTreeSet<String>) -> Table {
    let published = published.get("features").and_then(Value::as_table).cloned().unwrap_or_default();
    let mut out = Table::new();
    for (name, wants) in &published {
        let wants = wants.as_array().into_iter().flatten().filter(|want| {
            let want = want.as_str().unwrap_or_default();
            let dependency = want.split(['/', '?']).next().unwrap_or_default();
            match want.strip_prefix("dep:") {
                Some(_) => false,
                None if want.contains('/') => kept.contains(dependency),
                None => published.contains_key(want) || optional.contains(want),
            }
        });
        out.insert(name.clone(), Value::Array(wants.cloned().collect()));
    }
    for name in optional.iter().filter(|name| !published.contains_key(*name)) {
        out.insert(name.clone(), Value::Array(Vec::new()));
    }
    out
}

/// Our own crates: `SPLIT/NAME/lib.rs` with `tests.rs` beside it.
fn our_crates(root: &Path) -> Result<Vec<(String, Result<Source, String>)>> {
    let mut found = Vec::new();
    for split in [Split::Train, Split::Heldout] {
        let folder = root.join(split.name());
        if !folder.is_dir() {
            continue;
        }
        let mut by_crate: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        for (path, bytes) in collect(&folder, &CAPS)? {
            let mut parts = path.iter().filter_map(|part| part.to_str());
            if let (Some(name), Some(file), None) = (parts.next(), parts.next(), parts.next()) {
                by_crate.entry(name.to_owned()).or_default().insert(file.to_owned(), bytes);
            }
        }
        found.extend(by_crate.into_iter().map(|(name, files)| (name.clone(), our_crate(&name, split, files))));
    }
    Ok(found)
}

fn our_crate(name: &str, split: Split, mut files: BTreeMap<String, Vec<u8>>) -> Result<Source, String> {
    let (Some(lib), Some(tests)) = (files.remove("lib.rs"), files.remove("tests.rs")) else {
        return Err("a crate of ours is a folder with lib.rs and tests.rs".into());
    };
    let manifest =
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\nlicense = \"{OUR_LICENCE}\"\n");
    let manifest: Table = manifest.parse().map_err(|_| "its name is none of a package".to_owned())?;
    let files = [("src/lib.rs".to_owned(), lib), (format!("tests/{name}.rs"), tests)];
    finish(name.to_owned(), "0.1.0".into(), OUR_LICENCE.into(), split, manifest, files.into())
}

fn finish(
    name: String,
    version: String,
    licence: String,
    split: Split,
    manifest: Table,
    files: BTreeMap<String, Vec<u8>>,
) -> Result<Source, String> {
    if !files.contains_key("src/lib.rs") {
        return Err("has no src/lib.rs".into());
    }
    let edition = manifest["package"].get("edition").and_then(Value::as_str).unwrap_or("2015").to_owned();
    Ok(Source { name, version, licence, split, edition, manifest, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Table {
        "[package]\nname = \"a\"\nversion = \"1.0.0\"\nlicense = \"MIT\"\nbuild = false\nautotests = false\n\
         [lib]\nname = \"a\"\npath = \"src/lib.rs\"\n[[test]]\nname = \"t\"\npath = \"tests/t.rs\"\n\
         [dependencies.memo]\nversion = \"1\"\n[dependencies.serde]\nversion = \"1\"\noptional = true\n\
         [dependencies.rand]\nversion = \"1\"\noptional = true\n[dev-dependencies.check]\nversion = \"1\"\n\
         [features]\ndefault = [\"std\", \"memo/std\", \"serde?/std\", \"serde\"]\nstd = []\nrandom = [\"dep:rand\"]\n"
            .parse()
            .unwrap()
    }

    #[test]
    fn a_manifest_keeps_the_library_and_what_is_there() {
        let vendored = BTreeSet::from(["memo".to_owned()]);
        let got = build_manifest(&published(), &vendored, Some("2021")).unwrap();
        let text = got.to_string();
        assert!(
            text.contains("edition = \"2021\"") && text.contains("default = [\"std\", \"memo/std\", \"serde\"]"),
            "{text}"
        );
        assert!(
            text.contains("serde = []") && text.contains("random = []") && text.contains("[dependencies.memo]"),
            "{text}"
        );
        assert!(!text.contains("check") && !text.contains("[[test]]") && !text.contains("build"), "{text}");
        let error = build_manifest(&published(), &BTreeSet::new(), None).unwrap_err();
        assert!(error.contains("needs `memo`"), "{error}");
    }

    /// A vendored crate with its list beside it.
    fn fixture(licence: &str, change: impl Fn(&mut BTreeMap<String, String>)) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let sum = "ab".repeat(32);
        let mut files = BTreeMap::from([
            (
                "data/list.toml".to_owned(),
                "licences = [\"MIT\"]\n[[crates]]\nname = \"a\"\nsplit = \"train\"\n".to_owned(),
            ),
            ("data/Cargo.toml".into(), "[dependencies]\na = \"=1.0.0\"\n".into()),
            (
                "data/Cargo.lock".into(),
                format!("[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"{sum}\"\n"),
            ),
        ]);
        let manifest = format!("[package]\nname = \"a\"\nversion = \"1.0.0\"\nlicense = \"{licence}\"\n");
        let code = "pub fn f() {}\n";
        let digest = |text: &str| Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sums = serde_json::json!({
            "files": {"Cargo.toml": digest(&manifest), "src/lib.rs": digest(code)}, "package": sum,
        });
        files.insert("vendor/a-1.0.0/Cargo.toml".into(), manifest);
        files.insert("vendor/a-1.0.0/src/lib.rs".into(), code.into());
        files.insert("vendor/a-1.0.0/.cargo-checksum.json".into(), sums.to_string());
        change(&mut files);
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let vendor = dir.path().join("vendor");
        (dir, vendor)
    }

    fn refusal(licence: &str, change: impl Fn(&mut BTreeMap<String, String>)) -> String {
        let (dir, vendor) = fixture(licence, change);
        let (sources, refused) = load(&dir.path().join("data/list.toml"), Some(&vendor)).unwrap();
        assert!(sources.is_empty(), "{sources:?}");
        refused[0].why.clone()
    }

    #[test]
    fn a_crate_is_taken_as_it_was_published_and_licensed_or_not_at_all() {
        let (dir, vendor) = fixture("MIT OR GPL-3.0", |_| {});
        let (sources, refused) = load(&dir.path().join("data/list.toml"), Some(&vendor)).unwrap();
        assert_eq!((sources.len(), refused.len()), (1, 0), "{refused:?}");
        assert_eq!((sources[0].licence.as_str(), sources[0].split), ("MIT OR GPL-3.0", Split::Train));
        assert!(refusal("GPL-3.0", |_| {}).contains("\"GPL-3.0\" is not accepted"));
        let set = |name: &'static str, text: &'static str| {
            move |files: &mut BTreeMap<String, String>| _ = files.insert(name.into(), text.into())
        };
        assert!(refusal("MIT", set("vendor/a-1.0.0/src/lib.rs", "pub fn g() {}\n")).contains("not what was published"));
        assert!(refusal("MIT", set("vendor/a-1.0.0/src/more.rs", "")).contains("not what was published"));
        assert!(refusal("MIT", set("data/Cargo.toml", "[dependencies]\na = \"1.0.0\"\n")).contains("begin with `=`"));
        let other = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"cd\"\n";
        assert!(refusal("MIT", set("data/Cargo.lock", other)).contains("not the one of Cargo.lock"));
    }

    #[test]
    fn files_that_only_tests_use_are_known() {
        let lib = b"mod a;\n#[cfg(test)]\nmod tests;\n".to_vec();
        let a = b"#[cfg(test)]\nmod more;\n#[cfg(test)]\nmod here {}\n".to_vec();
        let mut files = BTreeMap::from([("src/lib.rs".to_owned(), lib), ("src/a.rs".to_owned(), a)]);
        for name in ["src/tests.rs", "src/a/more/mod.rs", "src/here.rs"] {
            files.insert(name.into(), Vec::new());
        }
        let manifest = "[package]\nname = \"a\"\n".parse().unwrap();
        let source = finish("a".into(), "1.0.0".into(), "MIT".into(), Split::Train, manifest, files).unwrap();
        let want = ["src/a/more/mod.rs", "src/tests.rs"].map(str::to_owned);
        assert_eq!(source.test_modules(), want.into());
    }

    #[test]
    fn a_crate_is_on_one_side_only() {
        let (dir, vendor) = fixture("MIT", |files| {
            *files.get_mut("data/list.toml").unwrap() += "[[crates]]\nname = \"a\"\nsplit = \"heldout\"\n";
        });
        let error = load(&dir.path().join("data/list.toml"), Some(&vendor)).unwrap_err().to_string();
        assert!(error.contains("one side only"), "{error}");
    }
}
