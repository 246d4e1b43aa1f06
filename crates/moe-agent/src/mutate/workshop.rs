//! The folder in which one crate is built and tested, and the commands that do it, each in the sandbox.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eval_rust::sandbox::{Command, End, Limits, Mount, Outcome, Run, SandboxError, Scratch, system_mounts};
use serde::Deserialize;

use super::error::{MutateError, Result, io};
use super::source::Source;

/// Everything of ours inside a sandbox.
const INSIDE: &str = "/bench";
const MIB: u64 = 1 << 20;
/// Tries of a run that the sandbox itself failed.
const TRIES: usize = 3;
/// A build of a small crate with its tests, dependencies included.
const BUILD: Duration = Duration::from_secs(180);
/// Listing mutants and formatting.
const READ: Duration = Duration::from_secs(60);

/// The programs that build, test and list.
pub(crate) struct Tools<'a> {
    pub(crate) runner: &'a (dyn Run + Sync),
    /// Folder of a toolchain: `bin/cargo`, `lib/rustlib`.
    pub(crate) toolchain: PathBuf,
    /// Fetched sources of the dependencies.
    pub(crate) vendor: Option<PathBuf>,
    /// The program `cargo-mutants`, or a folder with what it listed, as `NAME.json`.
    pub(crate) mutants: Option<PathBuf>,
}

impl Tools<'_> {
    /// What results depend on besides the sources: the compiler, and what lists mutants.
    pub(crate) fn identity(&self) -> Result<String> {
        let lib = self.toolchain.join("lib");
        // The names of the compiler's libraries carry a hash of its version.
        let entries = fs::read_dir(&lib).map_err(io("list", &lib))?.flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let mutants = self.mutants.as_deref().map(gates::artifact::hash_tree).transpose()?.unwrap_or_default();
        Ok(gates::artifact::hash_bytes(format!("{} {mutants}", names.join(" ")).as_bytes()))
    }
}

/// A test program that was built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestProgram {
    /// Name of the target: the library's or the file's.
    pub(crate) target: String,
    /// Of the library itself, not of a file of `tests/`.
    pub(crate) lib: bool,
    /// Name of the program in `debug/deps`.
    pub(crate) program: String,
}

impl TestProgram {
    /// Its name among the kept programs.
    fn kept(&self) -> String {
        format!("{}-{}", if self.lib { "lib" } else { "test" }, self.target)
    }

    /// A test of it, as records name it.
    pub(crate) fn test_name(&self, name: &str) -> String {
        if self.lib { name.to_owned() } else { format!("{}::{name}", self.target) }
    }
}

/// What a build said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    pub(crate) ok: bool,
    pub(crate) timeout: bool,
    pub(crate) programs: Vec<TestProgram>,
    /// Errors of the compiler: code, and the message as it was shown.
    pub(crate) errors: Vec<(String, String)>,
    /// What cargo itself said.
    pub(crate) stderr: String,
}

/// A crate laid out to be built; gone with this value.
pub(crate) struct Bench<'a> {
    tools: &'a Tools<'a>,
    root: PathBuf,
    /// Milliseconds that the sandbox was busy for this crate.
    pub(crate) busy_ms: std::cell::Cell<u64>,
}

impl<'a> Bench<'a> {
    /// Lays out a crate in `root`, which must not be there.
    pub(crate) fn new(tools: &'a Tools<'a>, root: &Path, source: &Source) -> Result<Self> {
        let bench = Self { tools, root: root.into(), busy_ms: 0.into() };
        if root.exists() {
            fs::remove_dir_all(root).map_err(io("remove", root))?;
        }
        for folder in ["ws", "target", "kept"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(io("create", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(io("open", &path))?;
        }
        bench.put("Cargo.toml", build_text(source).as_bytes())?;
        if tools.vendor.is_some() {
            let config = format!(
                "[source.crates-io]\nreplace-with = \"vendored\"\n[source.vendored]\ndirectory = \"{INSIDE}/vendor\"\n"
            );
            bench.put(".cargo/config.toml", config.as_bytes())?;
        }
        for (name, bytes) in &source.files {
            bench.put(name, bytes)?;
        }
        Ok(bench)
    }

    /// Writes a file of the crate.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join("ws").join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        let mut file = fs::File::create(&path).map_err(io("write", &path))?;
        std::io::Write::write_all(&mut file, bytes).map_err(io("write", &path))
    }

    /// Resolves dependencies; afterwards nothing writes the crate's folder but this side.
    pub(crate) fn resolve(&self) -> Result<Built> {
        let outcome = self.cargo(&["generate-lockfile", "--offline"], true)?;
        Ok(built(&outcome))
    }

    /// Builds every test program.
    pub(crate) fn build_tests(&self) -> Result<Built> {
        let args = ["test", "--frozen", "--no-run", "--lib", "--tests", "--message-format=json"];
        Ok(built(&self.cargo(&args, false)?))
    }

    /// Checks the library alone.
    pub(crate) fn check(&self) -> Result<Built> {
        Ok(built(&self.cargo(&["check", "--frozen", "--lib", "--message-format=json"], false)?))
    }

    /// Keeps the programs of the unchanged crate, by which a fix is tested.
    pub(crate) fn keep(&self, programs: &[TestProgram]) -> Result<()> {
        for program in programs {
            let from = self.root.join("target/debug/deps").join(&program.program);
            fs::copy(&from, self.root.join("kept").join(program.kept())).map_err(io("copy", &from))?;
        }
        Ok(())
    }

    /// Runs a program that was just built, or the kept one of its target.
    pub(crate) fn test(&self, program: &TestProgram, kept: bool, args: &[&str], wall: Duration) -> Result<Outcome> {
        let (folder, name) =
            if kept { ("kept", program.kept()) } else { ("target/debug/deps", program.program.clone()) };
        let mut command = self.command(&inside("bin").join(name), args, wall);
        command.mounts.push(mount(self.root.join(folder), "bin", false));
        command.mounts.push(mount(self.root.join("ws"), "ws", false));
        command.limits.memory = 512 * MIB;
        command.limits.pids = 64;
        self.run(&command)
    }

    /// What `cargo-mutants` lists for the crate of this name, as it prints it.
    pub(crate) fn list_mutants(&self, name: &str) -> Result<Vec<u8>> {
        let tool = "cargo-mutants";
        let missing = || MutateError::Tool { tool, what: "is not there; `cargo xtask tools` installs it".into() };
        let program = self.tools.mutants.as_ref().filter(|path| path.exists()).ok_or_else(missing)?;
        if program.is_dir() {
            let list = program.join(format!("{name}.json"));
            return if list.exists() {
                Ok(gates::artifact::read_bounded(&list, 64 * MIB)?)
            } else {
                Ok(b"[]".to_vec())
            };
        }
        let args = ["mutants", "--list", "--json", "--dir", "/bench/ws"];
        let mut command = self.command(&inside("tools/cargo-mutants"), &args, READ);
        command.mounts.push(mount(program.clone(), "tools/cargo-mutants", false));
        self.add_build(&mut command, false);
        command.limits.output = 64 * MIB;
        let outcome = self.run(&command)?;
        if outcome.end != End::Exit(0) {
            let said = String::from_utf8_lossy(&outcome.stderr).trim().to_owned();
            return Err(MutateError::Tool { tool, what: format!("ended by {:?}: {said}", outcome.end) });
        }
        Ok(outcome.stdout)
    }

    /// A file as rustfmt writes it; `None` when it cannot be read.
    pub(crate) fn format(&self, text: &str, edition: &str) -> Result<Option<String>> {
        let mut command = self.command(&inside("toolchain/bin/rustfmt"), &["--edition", edition], READ);
        command.mounts.push(mount(self.tools.toolchain.clone(), "toolchain", false));
        command.cwd = inside("tmp");
        command.stdin = text.as_bytes().to_vec();
        let outcome = self.run(&command)?;
        let formatted = String::from_utf8(outcome.stdout).ok().filter(|_| outcome.end == End::Exit(0));
        Ok(formatted.filter(|text| !text.trim().is_empty()))
    }

    fn cargo(&self, args: &[&str], writable: bool) -> Result<Outcome> {
        let mut command = self.command(&inside("toolchain/bin/cargo"), args, BUILD);
        self.add_build(&mut command, writable);
        self.run(&command)
    }

    fn add_build(&self, command: &mut Command, writable: bool) {
        command.mounts.push(mount(self.tools.toolchain.clone(), "toolchain", false));
        command.mounts.push(mount(self.root.join("ws"), "ws", writable));
        command.mounts.push(mount(self.root.join("target"), "target", true));
        if let Some(vendor) = &self.tools.vendor {
            command.mounts.push(mount(vendor.clone(), "vendor", false));
        }
        command.scratch.push(Scratch { inside: inside("home"), bytes: 64 * MIB, inodes: 4096 });
    }

    fn command(&self, program: &Path, args: &[&str], wall: Duration) -> Command {
        let env = [
            ("PATH", "/bench/toolchain/bin:/usr/bin:/bin"),
            ("HOME", "/bench/tmp"),
            ("TMPDIR", "/bench/tmp"),
            ("CARGO", "/bench/toolchain/bin/cargo"),
            ("CARGO_HOME", "/bench/home"),
            ("CARGO_TARGET_DIR", "/bench/target"),
            ("CARGO_NET_OFFLINE", "true"),
            ("CARGO_TERM_COLOR", "never"),
            ("CARGO_BUILD_JOBS", "2"),
            ("RUSTC", "/bench/toolchain/bin/rustc"),
            ("RUST_BACKTRACE", "0"),
            ("LANG", "C.UTF-8"),
        ];
        Command {
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: inside("ws"),
            stdin: Vec::new(),
            mounts: system_mounts(),
            scratch: vec![Scratch { inside: inside("tmp"), bytes: 256 * MIB, inodes: 4096 }],
            limits: Limits {
                wall,
                cpu: wall * 2,
                memory: 2048 * MIB,
                pids: 128,
                output: 8 * MIB,
                file_size: 512 * MIB,
                open_files: 1024,
            },
        }
    }

    fn run(&self, command: &Command) -> Result<Outcome> {
        let mut last: Option<SandboxError> = None;
        for _ in 0..TRIES {
            match self.tools.runner.run(command) {
                Ok(outcome) => {
                    self.busy_ms.set(self.busy_ms.get() + outcome.wall.as_millis() as u64);
                    return Ok(outcome);
                }
                Err(error @ SandboxError::Missing { .. }) => return Err(error.into()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| MutateError::Empty("nothing was run".into()), MutateError::Sandbox))
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The manifest with a profile that builds fast.
fn build_text(source: &Source) -> String {
    let profile = "[workspace]\n[profile.dev]\ndebug = false\nincremental = false\n";
    format!("{}\n{profile}", source.manifest)
}

fn inside(name: &str) -> PathBuf {
    Path::new(INSIDE).join(name)
}

fn mount(host: PathBuf, name: &str, writable: bool) -> Mount {
    Mount { host, inside: inside(name), writable }
}

#[derive(Deserialize)]
struct Line {
    reason: String,
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    #[serde(default)]
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Message {
    level: String,
    #[serde(default)]
    code: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default)]
    rendered: Option<String>,
    #[serde(default)]
    spans: Vec<serde_json::Value>,
}

/// Reads what cargo printed.
fn built(outcome: &Outcome) -> Built {
    let mut built = Built {
        ok: outcome.end == End::Exit(0) && !outcome.truncated,
        timeout: matches!(outcome.end, End::WallTime | End::CpuTime),
        programs: Vec::new(),
        errors: Vec::new(),
        stderr: String::from_utf8_lossy(&outcome.stderr).into_owned(),
    };
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    for line in stdout.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        if let (Some(path), Some(target), "compiler-artifact") = (&line.executable, &line.target, line.reason.as_str())
        {
            let program = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let lib = !target.kind.iter().any(|kind| kind == "test");
            built.programs.push(TestProgram { target: target.name.clone(), lib, program });
        }
        // The summary at the end has no place in the source.
        let Some(message) = line.message.filter(|message| message.level == "error" && !message.spans.is_empty()) else {
            continue;
        };
        let code = message.code.as_ref().and_then(|code| code.get("code")?.as_str()).unwrap_or_default().to_owned();
        let error = (code, message.rendered.unwrap_or_default());
        // The library is compiled with and without its tests, and says the same twice.
        if !built.errors.contains(&error) {
            built.errors.push(error);
        }
    }
    built.programs.sort();
    built
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_errors_are_read_from_cargo() {
        let stdout = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"t","kind":["test"]},"executable":"/bench/target/debug/deps/t-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":null}"#,
            "\nno json\n",
            r#"{"reason":"compiler-message","target":{"name":"a"},"message":{"level":"error","code":{"code":"E0308"},"rendered":"m","spans":[{}]}}"#,
            "\n",
            r#"{"reason":"compiler-message","target":{"name":"a"},"message":{"level":"error","code":{"code":"E0308"},"rendered":"m","spans":[{}]}}"#,
            "\n",
            r#"{"reason":"compiler-message","message":{"level":"error","code":null,"rendered":"aborting","spans":[]}}"#,
            "\n",
            r#"{"reason":"compiler-message","message":{"level":"warning","code":null,"rendered":"w","spans":[{}]}}"#,
        );
        let outcome = Outcome {
            end: End::Exit(101),
            stdout: stdout.into(),
            stderr: b"error: could not compile".to_vec(),
            truncated: false,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
            peak_memory: 0,
            weaker: Vec::new(),
        };
        let got = built(&outcome);
        assert_eq!(got.programs, [TestProgram { target: "t".into(), lib: false, program: "t-1".into() }]);
        assert_eq!(got.errors, [("E0308".to_owned(), "m".to_owned())]);
        assert!(!got.ok && !got.timeout);
    }
}
