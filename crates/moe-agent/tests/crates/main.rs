//! `moe-agent mutate` and `moe-agent tasks` over tiny crates that a test writes: no registry, and what `cargo-mutants` would
//! list comes from a file, because the program is not installed everywhere.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod pairs;
mod tasks;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A crate of two functions and three tests.
pub(crate) const LIB: &str = "//! Numbers.\n\n/// The sum, at most the largest number.\npub fn add(a: u32, b: u32) -> u32 {\n    \
    let mut sum = a;\n    for _ in 0..1 {\n        sum = sum.saturating_add(b);\n    }\n    sum\n}\n\n\
    /// The larger of two numbers.\npub fn larger(a: u32, b: u32) -> u32 {\n    if a > b { a } else { b }\n}\n";
pub(crate) const TESTS: &str = "//! Tests.\n\nuse NAME::{add, larger};\n\n#[test]\nfn adds() {\n    \
    assert_eq!(add(2, 3), 5);\n}\n\n#[test]\nfn saturates() {\n    assert_eq!(add(u32::MAX, 1), u32::MAX);\n}\n\n\
    #[test]\nfn takes_the_larger() {\n    assert_eq!(larger(1, 2), 2);\n    assert_eq!(larger(4, 3), 4);\n}\n";

/// A folder with a list of sources, their crates and what `cargo-mutants` listed for them.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    /// With these crates of our own: side, name, library, tests.
    pub(crate) fn new(crates: &[(&str, &str, &str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.put("sources.toml", "licences = [\"MIT\"]\nours = \"ours\"\n");
        std::fs::create_dir(place.path("listed")).unwrap();
        for (side, name, lib, tests) in crates {
            place.put(&format!("ours/{side}/{name}/lib.rs"), lib);
            place.put(&format!("ours/{side}/{name}/tests.rs"), &tests.replace("NAME", name));
            place.put(&format!("listed/{name}.json"), &listed(lib));
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// `mutate` into a folder.
    pub(crate) fn mutate(&self, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moe-agent"));
        command.arg("mutate").arg("--sources").arg(self.path("sources.toml")).arg("--out").arg(self.path(out));
        command.arg("--mutants").arg(self.path("listed")).args(more);
        if !more.contains(&"--max-edits") {
            command.args(["--max-edits", "4"]);
        }
        command
    }

    /// `tasks` from a folder of pairs.
    pub(crate) fn tasks(&self, pairs: &str, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moe-agent"));
        command.arg("tasks").arg("--sources").arg(self.path("sources.toml")).arg("--out").arg(self.path(out));
        command.arg("--pairs").arg(self.path(pairs)).arg("--work").arg(self.path("work")).args(more);
        command
    }
}

/// What `cargo-mutants` lists for [`LIB`]: caught, missed, not compiling, and a whole body.
fn listed(lib: &str) -> String {
    let mut all = Vec::new();
    for (what, replacement, genre) in [
        ("a > b", "a < b", "BinaryOperator"),
        ("a > b", "a >= b", "BinaryOperator"),
        ("a > b", "a & b", "BinaryOperator"),
        ("0..1", "0..0", "BinaryOperator"),
        ("saturating_add", "wrapping_add", "BinaryOperator"),
        ("if a > b { a } else { b }", "1", "FnValue"),
    ] {
        let Some(at) = lib.find(what) else { continue };
        let line = lib[..at].matches('\n').count() + 1;
        let column = at - lib[..at].rfind('\n').map_or(0, |end| end + 1) + 1;
        let end = column + what.len();
        all.push(serde_json::json!({
            "name": format!("src/lib.rs:{line}:{column}: replace {what} with {replacement}"), "package": "x",
            "file": "src/lib.rs", "function": null, "genre": genre, "replacement": replacement, "diff": "",
            "span": {"start": {"line": line, "column": column}, "end": {"line": line, "column": end}},
        }));
    }
    serde_json::to_string(&all).unwrap()
}

/// Runs a command; `None`, said past the capture of a test that passes, where this machine has no sandbox.
pub(crate) fn run(mut command: Command) -> Option<Output> {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && said.contains("is missing") {
        std::io::stderr().write_all(format!("NOT CHECKED: this machine has no sandbox: {said}\n").as_bytes()).unwrap();
        return None;
    }
    Some(output)
}

/// Runs a command that must succeed.
pub(crate) fn succeed(command: Command) -> Option<String> {
    let output = run(command)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &said)
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
