//! Hostile and honest candidates before the judge. The runner here has no walls: what is shown is that the judge does not
//! believe a candidate, not that a candidate is contained.

mod attacks;
mod direct;
mod faults;
mod honest;
mod words;
mod written;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Judge, Judgement, Options, Task, find_toolchain};
use direct::Direct;

/// The seed of every test.
const SEED: u64 = 7;

/// A task of two functions, with tests and with questions.
const MANIFEST: &str = "[package]\nname = \"two\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
const START: &str = "//! Two functions.\n\n/// The sum, at most `u32::MAX`.\npub fn add(a: u32, b: u32) -> u32 {\n    \
                     a - b\n}\n\n/// The words, longest first.\npub fn words(text: &str) -> Vec<String> {\n    \
                     text.split(' ').map(str::to_owned).collect()\n}\n\n/// Is zero.\npub fn zero() -> u32 {\n    0\n}\n";
const SOLUTION: &str = "//! Two functions.\n\n/// The sum, at most `u32::MAX`.\npub fn add(a: u32, b: u32) -> u32 {\n    \
                        a.saturating_add(b)\n}\n\n/// The words, longest first.\npub fn words(text: &str) -> Vec<String> {\n    \
                        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();\n    \
                        words.sort_by_key(|word| std::cmp::Reverse(word.len()));\n    words\n}\n\n/// Is zero.\n\
                        pub fn zero() -> u32 {\n    0\n}\n";
const VISIBLE: &str = "//! Visible.\n\n#[test]\nfn nothing() {\n    assert_eq!(two::zero(), 0);\n}\n";
const HIDDEN: &str = "use two::{add, words};\n#[test]\nfn adds() { let r: u32 = add(2, 3); assert_eq!(r, 5); }\n\
                      #[test]\nfn saturates() { let r: u32 = add(u32::MAX, 1); assert_eq!(r, u32::MAX); }\n\
                      #[test]\nfn longest() -> Result<(), String> {\n    let r: Vec<String> = words(\"a  bcd ef\");\n    \
                      assert_eq!(r, [\"bcd\", \"ef\", \"a\"]);\n    Ok(())\n}\n";
const TESTS: &str = "fail_to_pass = [\"hidden::adds\", \"hidden::saturates\", \"hidden::longest\"]\n\
                     pass_to_pass = [\"visible::nothing\"]\n[limits]\ntest_s = 20\n";
const FUNCTIONS: &str = "[limits]\ntest_s = 20\n[[functions]]\npath = \"add\"\nargs = [\"u32\", \"u32\"]\nreturns = \"u32\"\n\
                         [[functions]]\npath = \"words\"\nargs = [\"&str\"]\nreturns = \"Vec<String>\"\nedges = [\"x\"]\n";

fn toolchain() -> PathBuf {
    find_toolchain(&|name| std::env::var_os(name)).unwrap()
}

/// One work folder for all tests, beside their program, so that the cache is made once.
fn judge() -> &'static Judge<'static> {
    static JUDGE: OnceLock<Judge<'static>> = OnceLock::new();
    JUDGE.get_or_init(|| {
        let exe = std::env::current_exe().unwrap();
        let work = exe.parent().unwrap().join("judge-tests");
        fs::create_dir_all(&work).unwrap();
        let options = Options { toolchain: toolchain(), vendor: None, work: work.canonicalize().unwrap() };
        Judge::new(&Direct, options).unwrap()
    })
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// A folder with the task.
struct Set(tempfile::TempDir);

impl Set {
    fn new(kind: &str, rest: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let task = format!("id = \"two\"\ndescription = \"Add.\"\nkind = \"{kind}\"\n{rest}");
        write(dir.path(), &[("task.toml", &task), ("start/Cargo.toml", MANIFEST), ("solution/Cargo.toml", MANIFEST)]);
        write(dir.path(), &[("start/src/lib.rs", START), ("solution/src/lib.rs", SOLUTION)]);
        if kind == "tests" {
            write(dir.path(), &[("start/tests/visible.rs", VISIBLE), ("solution/tests/visible.rs", VISIBLE)]);
            write(dir.path(), &[("hidden/tests/hidden.rs", HIDDEN)]);
        }
        Self(dir)
    }

    fn tests() -> Self {
        Self::new("tests", TESTS)
    }

    fn functions() -> Self {
        Self::new("functions", FUNCTIONS)
    }

    fn task(&self) -> Task {
        Task::load(self.0.path()).unwrap()
    }

    /// A candidate that is the start or the solution with other files on top.
    fn candidate(&self, from: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.0.path().join("candidate");
        let _ = fs::remove_dir_all(&dir);
        super::cache::copy(&self.0.path().join(from), &dir).unwrap();
        write(&dir, files);
        dir
    }

    fn judge(&self, from: &str, files: &[(&str, &str)]) -> Judgement {
        judge().judge(&self.task(), &self.candidate(from, files), SEED)
    }
}
