//! The crates that are built: the candidate's sources under a manifest of ours, beside a package with the judge's programs.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

use super::collect::Files;
use super::driver::{self, DRIVER};
use super::error::{JudgeError, Result, io};
use super::rewrite::MARKS;
use super::task::Task;

/// Package of the judge's programs.
pub(crate) const HARNESS: &str = "firebrick-judge-harness";

/// Program of a file of tests.
pub(crate) fn test_program(stem: &str) -> String {
    format!("test_{stem}")
}

/// The manifests, in the order root, candidate, harness.
pub(crate) fn manifests(task: &Task) -> [String; 3] {
    let root = "[workspace]\nresolver = \"3\"\nmembers = [\"candidate\", \"harness\"]\n\
                [profile.dev]\ndebug = false\nincremental = false\n";
    [root.into(), candidate(task).to_string(), harness(task).to_string()]
}

fn candidate(task: &Task) -> Table {
    let mut manifest = task.manifest.clone();
    for key in ["test", "example"] {
        manifest.remove(key);
    }
    if task.file.write_tests.is_none() {
        manifest.remove("dev-dependencies");
    } else {
        // Only clippy looks at them as they are.
        let tests = task.tests.keys().map(|stem| target(stem.clone(), format!("tests/{stem}.rs")));
        manifest.insert("test".into(), tests.collect::<Vec<_>>().into());
    }
    if let Some(Value::Table(package)) = manifest.get_mut("package") {
        for key in ["autotests", "autobenches", "autoexamples", "autobins", "build"] {
            package.insert(key.into(), false.into());
        }
    }
    if !task.file.allow_unsafe {
        let lints = manifest.entry("lints").or_insert_with(|| Table::new().into());
        if let Value::Table(lints) = lints
            && let Value::Table(rust) = lints.entry("rust").or_insert_with(|| Table::new().into())
        {
            rust.insert("unsafe_code".into(), "forbid".into());
        }
    }
    manifest
}

fn harness(task: &Task) -> Table {
    let text = format!(
        "[package]\nname = \"{HARNESS}\"\nversion = \"0.0.0\"\nedition = \"{}\"\nbuild = false\nautobins = false\n",
        task.edition
    );
    let mut manifest: Table = text.parse().unwrap_or_default();
    let mut dependencies = Table::new();
    for table in ["dependencies", "dev-dependencies"] {
        dependencies.extend(task.manifest.get(table).and_then(Value::as_table).cloned().unwrap_or_default());
    }
    let own = Table::from_iter([("path".to_owned(), Value::from("../candidate"))]);
    dependencies.insert(task.package.clone(), own.into());
    manifest.insert("dependencies".into(), dependencies.into());
    let program = |name: String| {
        let path = format!("src/{name}.rs");
        target(name, path)
    };
    manifest.insert("bin".into(), programs(task).into_iter().map(program).collect::<Vec<_>>().into());
    manifest
}

fn target(name: String, path: String) -> Value {
    Value::from(Table::from_iter([("name".to_owned(), Value::from(name)), ("path".to_owned(), path.into())]))
}

/// Names of the judge's programs.
pub(crate) fn programs(task: &Task) -> Vec<String> {
    let driver = (!task.file.functions.is_empty()).then(|| DRIVER.to_owned());
    task.tests.keys().map(|stem| test_program(stem)).chain(driver).collect()
}

/// Writes the workspace with the given crate, or with empty programs over an empty crate.
pub(crate) fn write(dir: &Path, task: &Task, files: Option<&Files>) -> Result<()> {
    let [root, candidate, harness] = manifests(task);
    for (name, text) in [("Cargo.toml", root), ("candidate/Cargo.toml", candidate), ("harness/Cargo.toml", harness)] {
        put(dir, name, text.as_bytes())?;
    }
    // An empty file of our own ends the search of clippy and rustfmt for a configuration in the folders above.
    for (name, file) in [("clippy.toml", "candidate/clippy.toml"), ("rustfmt.toml", "candidate/rustfmt.toml")] {
        put(dir, file, task.start.get(name).map_or(&[], Vec::as_slice))?;
    }
    let Some(files) = files else {
        put(dir, "candidate/src/lib.rs", b"")?;
        for stem in task.tests.keys().filter(|_| task.file.write_tests.is_some()) {
            put(dir, &format!("candidate/tests/{stem}.rs"), b"")?;
        }
        return programs(task).iter().try_for_each(|name| put(dir, &format!("harness/src/{name}.rs"), b"fn main() {}"));
    };
    for (name, bytes) in files.iter().filter(|(name, _)| !is_ours(name) || task.asks_for(name)) {
        put(dir, &format!("candidate/{name}"), bytes)?;
    }
    put(dir, "harness/src/marks.rs", MARKS.as_bytes())?;
    put(dir, "harness/src/wire.rs", driver::WIRE.as_bytes())?;
    for (stem, test) in &task.tests {
        put(dir, &format!("harness/src/{}.rs", test_program(stem)), test.program.as_bytes())?;
    }
    if !task.file.functions.is_empty() {
        put(dir, &format!("harness/src/{DRIVER}.rs"), driver::source(task).as_bytes())?;
    }
    Ok(())
}

/// Files that are written from something else than the crate's own, or that no build of a library needs.
fn is_ours(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    [
        "Cargo.toml",
        "Cargo.lock",
        "clippy.toml",
        "rustfmt.toml",
        ".clippy.toml",
        ".rustfmt.toml",
        ".cargo",
        "tests",
        "benches",
    ]
    .contains(&first)
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io("create", parent))?;
    }
    fs::File::create_new(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, bytes))
        .map_err(|source| JudgeError::Io { op: "write", path, source })
}
