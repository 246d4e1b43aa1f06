//! The tools and trajectories with the real sandbox and toolchain, on a crate of a few lines.
//!
//! Where this machine lacks a layer of the sandbox, a test says what it could not check.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eval_rust::judge::find_toolchain;
use eval_rust::sandbox::{Command, Layer, Limits, Outcome, Run, Sandbox, SandboxError, system_mounts};
use moe_agent::MutationRecord;
use moe_agent::tools::{Executor, Files, Setup, Status, ToolCall, ToolResult};
use moe_agent::trajectories::{Config, Kind, Manifest, TrajectoryError, generate, replay};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-agent");
const MANIFEST: &str = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\nlicense = \"MIT\"\n";
const LIB: &str = r#"//! Tiny things.

/// The larger one.
pub fn larger(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}

/// How many words there are.
pub fn words(text: &str) -> usize {
    let mut count = 0;
    for word in text.split(' ') {
        if !word.is_empty() {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_is_found() {
        assert_eq!(larger(2, 3), 3);
        assert_eq!(larger(3, 2), 3);
    }

    #[test]
    fn words_are_counted() {
        assert_eq!(words("a  b"), 2);
    }
}
"#;

fn not_checked(what: &str) {
    std::io::stderr().write_all(format!("NOT CHECKED: {what}\n").as_bytes()).unwrap();
}

/// The layers that this machine lacks and may lack; `None` where it can hold nothing.
fn layers() -> Option<&'static [Layer]> {
    static LAYERS: OnceLock<Option<Vec<Layer>>> = OnceLock::new();
    let find = || {
        let mut allowed = Vec::new();
        loop {
            let sandbox = Sandbox::new(Path::new(PROGRAM), &allowed).unwrap();
            let limits = Limits {
                wall: Duration::from_secs(20),
                cpu: Duration::from_secs(20),
                memory: 64 << 20,
                pids: 16,
                output: 1 << 16,
                file_size: 1 << 20,
                open_files: 64,
            };
            let command = Command {
                program: "/bin/true".into(),
                args: Vec::new(),
                env: Vec::new(),
                cwd: "/".into(),
                stdin: Vec::new(),
                mounts: system_mounts(),
                scratch: Vec::new(),
                limits,
            };
            match sandbox.run(&command) {
                Ok(_) => return Some(allowed),
                Err(SandboxError::Missing { layer, .. }) if layer.stand_in().is_some() && !allowed.contains(&layer) => {
                    allowed.push(layer);
                }
                Err(error) => {
                    not_checked(&format!("the executor, since this machine runs nothing in a sandbox: {error}"));
                    return None;
                }
            }
        }
    };
    LAYERS.get_or_init(find).as_deref()
}

fn sandbox() -> Option<Sandbox> {
    Some(Sandbox::new(Path::new(PROGRAM), layers()?).unwrap())
}

fn setup(work: &Path) -> Arc<Setup> {
    Arc::new(Setup::new(find_toolchain(&|name| std::env::var_os(name)).unwrap(), work.canonicalize().unwrap()))
}

fn files(lib: &str) -> Files {
    [("Cargo.toml", MANIFEST), ("src/lib.rs", lib)]
        .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
        .into()
}

fn call(executor: &mut Executor<'_>, name: &str, arguments: &str) -> ToolResult {
    executor.call(&ToolCall::new(format!("functions.{name}"), arguments)).unwrap()
}

fn patch(executor: &mut Executor<'_>, old: &str, new: &str) -> ToolResult {
    let arguments = serde_json::json!({ "path": "src/lib.rs", "old": old, "new": new }).to_string();
    call(executor, "apply_patch", &arguments)
}

/// The same calls on a fresh executor.
fn session(sandbox: &Sandbox, work: &Path) -> Vec<ToolResult> {
    let executor = &mut Executor::new(sandbox, &setup(work), files(LIB)).unwrap();
    vec![
        call(executor, "run_tests", "{}"),
        patch(executor, "a > b", "a < b"),
        call(executor, "run_tests", "{}"),
        call(executor, "run_tests", "{\"filter\":\"words\",\"target\":\"lib\"}"),
        patch(executor, "a < b", "a < c"),
        call(executor, "run_tests", "{}"),
        call(executor, "read_error", "{\"number\":1}"),
        call(executor, "run_command", "{\"command\":[\"cargo\",\"check\"]}"),
        patch(executor, "a < c { a }", "a > b   { return a }"),
        call(executor, "run_command", "{\"command\":[\"cargo\",\"fmt\",\"--check\"]}"),
        call(executor, "run_command", "{\"command\":[\"cargo\",\"fmt\"]}"),
        call(executor, "run_command", "{\"command\":[\"cargo\",\"fmt\",\"--check\"]}"),
        call(executor, "run_command", "{\"command\":[\"cargo\",\"test\",\"larger\",\"--\",\"--exact\"]}"),
        call(executor, "cargo_doc", "{\"item\":\"tiny::larger\"}"),
        call(executor, "cargo_doc", "{\"item\":\"smaller\"}"),
        call(executor, "run_command", "{\"command\":[\"rustc\",\"--explain\",\"E0425\"]}"),
        patch(executor, "return a", "return a;"),
        call(executor, "run_command", "{\"command\":[\"cargo\",\"clippy\"]}"),
    ]
}

#[test]
fn tools_do_what_they_say_and_the_same_again() {
    let Some(sandbox) = sandbox() else { return };
    let work = tempfile::tempdir().unwrap();
    let first = session(&sandbox, work.path());
    let said: Vec<(Status, &str)> = first.iter().map(|result| (result.status(), result.output())).collect();
    assert_eq!(said[0], (Status::Exit(0), "ok: 2 passed\n"));
    assert_eq!(said[2].0, Status::Exit(101));
    assert!(
        said[2].1.starts_with("FAILED: 1 passed, 1 failed\ntests::the_larger_is_found\n  panicked at src/lib.rs:"),
        "{}",
        said[2].1
    );
    assert_eq!(said[3], (Status::Exit(0), "ok: 1 passed\n"));
    assert!(
        said[5].0 == Status::Exit(101) && said[5].1.contains("error[E0425]") && said[5].1.contains("src/lib.rs:5:12"),
        "{}",
        said[5].1
    );
    assert!(said[6].1.contains("cannot find value `c`"));
    assert!(said[7].1.starts_with("exit code 101\n1. error[E0425]"), "{}", said[7].1);
    assert!(said[9].0 == Status::Exit(1) && said[9].1.contains("Diff in src/lib.rs:"), "{}", said[9].1);
    assert_eq!(said[10], (Status::Exit(0), "formatted\n"));
    assert_eq!(said[11].0, Status::Exit(0));
    assert_eq!(said[12], (Status::Exit(0), "no test ran\n"), "no test has exactly this name");
    assert!(
        said[13].1.contains("pub fn larger(a: u32, b: u32) -> u32") && said[13].1.contains("The larger one."),
        "{}",
        said[13].1
    );
    assert!(said[14].1.contains("there are larger, words"), "{}", said[14].1);
    assert!(said[15].1.contains("unresolved name"), "{}", said[15].1);
    assert!(said[17].1.contains("needless_return") || said[17].1.contains("clippy::"), "{}", said[17].1);
    for result in &first {
        assert!(
            !result.output().contains(work.path().to_str().unwrap()) && !result.output().contains("/agent/"),
            "{}",
            result.output()
        );
    }
    assert_eq!(session(&sandbox, work.path()), first, "a fresh executor says the same, hashes included");
    assert_eq!(std::fs::read_dir(work.path().join("tools")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn code_of_the_crate_is_held() {
    let Some(sandbox) = sandbox() else { return };
    let work = tempfile::tempdir().unwrap();
    let secret = work.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let test = format!(
        "\n#[test]\nfn t() {{\n    assert!(std::fs::read({secret:?}).is_err());\n    \
         assert!(std::fs::write(\"src/lib.rs\", \"\").is_err());\n    \
         assert!(std::net::TcpStream::connect(\"1.1.1.1:80\").is_err());\n    assert!(std::env::var(\"USER\").is_err());\n}}\n\
         #[test]\nfn u() {{\n    std::process::exit(0);\n}}\n"
    );
    let mut executor = Executor::new(&sandbox, &setup(work.path()), files(&format!("//! A.\n{test}"))).unwrap();
    let held = call(&mut executor, "run_tests", "{\"filter\":\"t\"}");
    assert_eq!((held.status(), held.output()), (Status::Exit(0), "ok: 1 passed\n"));
    let left = call(&mut executor, "run_tests", "{\"filter\":\"u\"}");
    assert!(!left.status().is_success(), "a test that leaves is no test that passes: {left:?}");
}

#[test]
fn a_crate_with_a_build_script_or_links_is_not_taken() {
    let Some(sandbox) = sandbox() else { return };
    let work = tempfile::tempdir().unwrap();
    let mut with_script = files(LIB);
    with_script.insert("build.rs".into(), b"fn main() {}".to_vec());
    assert!(Executor::new(&sandbox, &setup(work.path()), with_script).is_err());
    let mut with_dependency = files(LIB);
    with_dependency.insert("Cargo.toml".into(), format!("{MANIFEST}[dependencies]\nserde = \"1\"\n").into_bytes());
    let error = Executor::new(&sandbox, &setup(work.path()), with_dependency).unwrap_err().to_string();
    assert!(error.contains("no lock file"), "{error}");
}

/// A folder with the crate, its faults and a configuration.
struct Set(tempfile::TempDir);

impl Set {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let set = Self(dir);
        for (name, bytes) in files(LIB) {
            let path = set.path("crates/tiny-0.1.0").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let faults = [
            ("a > b", "a < b"),
            ("a > b", "a == b"),
            ("count += 1", "count -= 1"),
            ("if !word", "if !words"),
            ("/// How", "/// Who"),
        ];
        let record = |(good, bad): (&str, &str)| MutationRecord {
            buggy_code: LIB.replace(good, bad),
            error_message: "assertion failed".into(),
            fixed_code: LIB.into(),
            repo: Some("tiny".into()),
            file: Some("src/lib.rs".into()),
            ..MutationRecord::default()
        };
        let lines: Vec<String> = faults.map(|fault| serde_json::to_string(&record(fault)).unwrap()).into();
        std::fs::write(set.path("mutations.jsonl"), lines.join("\n")).unwrap();
        set
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The configuration with its output in this folder, as a file.
    fn config(&self, output: &str, more: &str) -> PathBuf {
        let text = format!(
            "mutations = {:?}\ncrates = {:?}\noutput = {:?}\nwork = {:?}\nseed = 3\nmulti_step_ratio = 1.0\n\
             clippy_per_crate = 2\nfeatures_per_crate = 1\nallow_weaker = {:?}\n{more}",
            self.path("mutations.jsonl"),
            self.path("crates"),
            self.path(output),
            self.path("work"),
            layers().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        let path = self.path(&format!("{output}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    fn manifest(&self, output: &str) -> Manifest {
        serde_json::from_slice(&std::fs::read(self.path(output).join("manifest.json")).unwrap()).unwrap()
    }

    /// Puts another text into the records, with the hashes as if it had been written.
    fn forge(&self, output: &str, file: &str, old: &str, new: &str) {
        let path = self.path(output).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(&path, text.replacen(old, new, 1)).unwrap();
        let mut manifest = self.manifest(output);
        manifest.records_hash = gates::artifact::hash_file(&self.path(output).join("records/records.jsonl")).unwrap();
        manifest.calls_hash = gates::artifact::hash_file(&self.path(output).join("calls.jsonl")).unwrap();
        let text = serde_json::to_string(&manifest).unwrap();
        std::fs::write(self.path(output).join("manifest.json"), text).unwrap();
    }
}

fn program(arguments: &[&str]) -> Output {
    std::process::Command::new(PROGRAM).arg("trajectories").args(arguments).output().unwrap()
}

#[test]
fn s22_trajectories_are_executed_and_a_replay_finds_what_was_not() {
    if layers().is_none() {
        return;
    }
    let set = Set::new();
    let config = set.config("out", "");
    let made = program(&["--config", config.to_str().unwrap(), "--set", "jobs=2"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let manifest = set.manifest("out");
    let kinds: Vec<Kind> = manifest.made.keys().copied().collect();
    assert_eq!(kinds, Kind::ALL, "{manifest:?}");
    assert!(manifest.with_wrong_attempt >= 3, "{manifest:?}");
    assert_eq!(manifest.dropped.get("fault_passes"), Some(&1), "the fault in a comment: {manifest:?}");

    let text = std::fs::read_to_string(set.path("out/records/records.jsonl")).unwrap();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let messages = record["messages"].as_array().unwrap();
        let last_tool = messages.iter().rfind(|message| message["role"] == "tool").unwrap();
        let said = last_tool["content"][0]["text"].as_str().unwrap();
        assert!(said.starts_with("ok: "), "the last run passes: {line}");
        for place in record["untrained"].as_array().into_iter().flatten() {
            assert_eq!(messages[place.as_u64().unwrap() as usize]["role"], "assistant");
        }
    }

    let out = set.path("out");
    let weaker: Vec<String> = layers().unwrap().iter().flat_map(|l| ["--allow-weaker".into(), l.to_string()]).collect();
    let again = |share: &str| {
        let mut arguments = vec!["replay", "--input", out.to_str().unwrap(), "--share", share];
        arguments.extend(weaker.iter().map(String::as_str));
        program(&arguments)
    };
    let same = again("1");
    assert_eq!(
        same.status.code(),
        Some(0),
        "{}{}",
        String::from_utf8_lossy(&same.stdout),
        String::from_utf8_lossy(&same.stderr)
    );
    let report: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert_eq!(
        (report["replayed"].as_u64(), report["differences"].as_array().map(Vec::len)),
        (Some(text.lines().count() as u64), Some(0))
    );
    let few = again("0.01");
    assert_eq!(serde_json::from_slice::<Value>(&few.stdout).unwrap()["replayed"], 1);

    // A record with another output: its hash gives it away, and so does the replay where hashes were forged too.
    let records = set.path("out/records/records.jsonl");
    std::fs::write(&records, text.replacen("ok: ", "ok: 9", 1)).unwrap();
    assert_eq!(again("1").status.code(), Some(2));
    std::fs::write(&records, &text).unwrap();
    set.forge("out", "records/records.jsonl", "1 failed", "0 failed");
    let forged = again("1");
    let shown = String::from_utf8_lossy(&forged.stdout).into_owned();
    assert!(
        forged.status.code() == Some(1) && shown.contains("output in the record") && shown.contains("0 failed"),
        "{shown}"
    );
    std::fs::write(&records, &text).unwrap();
    set.forge("out", "calls.jsonl", "\"exit\":101", "\"exit\":0");
    let forged = again("1");
    assert!(forged.status.code() == Some(1) && String::from_utf8_lossy(&forged.stdout).contains("hashes"));
    assert_eq!(again("0").status.code(), Some(2));
}

/// A sandbox that is lost for good after some runs.
struct Lost<'s>(&'s Sandbox, AtomicUsize);

impl Run for Lost<'_> {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        if self.1.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.1.store(0, Ordering::Relaxed);
            return Err(SandboxError::Start { program: "cargo".into(), detail: "gone".into() });
        }
        self.0.run(command)
    }
}

#[test]
fn an_interrupted_run_goes_on_and_makes_the_same() {
    let Some(sandbox) = sandbox() else { return };
    let env = |name: &str| std::env::var_os(name);
    let set = Set::new();
    let more = "style = \"compact\"\ntools = [\"run_tests\", \"apply_patch\"]\noutput_bytes = 300\nread_lines = 8\n\
                kinds = [\"fix_failing_tests\", \"fix_panics\"]\nmax_tokens = 700\n";
    let load = |output: &str| Config::load(&set.config(output, more), &[]).unwrap();
    let (whole, parts) = (load("whole"), load("parts"));
    generate(&whole, &sandbox, &env).unwrap();
    let lost = Lost(&sandbox, AtomicUsize::new(9));
    assert!(matches!(generate(&parts, &lost, &env), Err(TrajectoryError::Executor(_))));
    let kept = std::fs::read_to_string(set.path("parts/state.jsonl")).unwrap().lines().count();
    assert!(kept > 1, "what was finished is kept");
    let other = Config { seed: 4, ..parts.clone() };
    assert!(matches!(generate(&other, &sandbox, &env), Err(TrajectoryError::OtherRun { .. })));
    generate(&parts, &sandbox, &env).unwrap();
    assert!(matches!(generate(&parts, &sandbox, &env), Err(TrajectoryError::Exists { .. })));
    let read = |output: &str, file: &str| std::fs::read(set.path(output).join(file)).unwrap();
    for file in ["records/records.jsonl", "calls.jsonl"] {
        assert_eq!(read("whole", file), read("parts", file), "{file}");
    }
    let (a, b) = (set.manifest("whole"), set.manifest("parts"));
    assert_eq!(Manifest { config: b.config.clone(), ..a }, b);
    let counts: BTreeMap<Kind, usize> = b.made.clone();
    assert!(counts.contains_key(&Kind::FixFailingTests) && b.tokens.2 <= 700, "{b:?}");
    let found = replay(&set.path("parts"), 1.0, 0, &sandbox, &env).unwrap();
    assert!(found.differences.is_empty() && found.replayed == counts.values().sum::<usize>(), "{found:?}");
}
