//! S12 and honest work: the compiler inside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use eval_rust::sandbox::{Command, End, Layer, Limits, Mount, Outcome, Scratch, system_mounts};

use crate::{has, run, sandbox};

fn sysroot() -> PathBuf {
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let output = std::process::Command::new(rustc).args(["--print", "sysroot"]).output().unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A tool of the toolchain on a source folder, which is read-only at `/source`.
fn tool(name: &str, args: &[&str], source: &Path) -> Command {
    let mut mounts = system_mounts();
    // A place of its own for each test, which tells the processes of one from those of others.
    let toolchain = format!("/toolchain-{}", source.file_name().unwrap().to_str().unwrap());
    for (host, inside) in [(sysroot(), toolchain.as_str()), (source.into(), "/source")] {
        mounts.push(Mount { host, inside: inside.into(), writable: false });
    }
    let path = format!("{toolchain}/bin:/usr/bin:/bin");
    let env = [("PATH", path.as_str()), ("CARGO_HOME", "/build/cargo"), ("CARGO_TARGET_DIR", "/build/target")];
    Command {
        program: Path::new(&toolchain).join("bin").join(name),
        args: args.iter().map(Into::into).collect(),
        env: env.into_iter().chain([("TMPDIR", "/build")]).map(|(a, b)| (a.into(), b.into())).collect(),
        cwd: "/source".into(),
        stdin: Vec::new(),
        mounts,
        scratch: vec![Scratch { inside: "/build".into(), bytes: 256 << 20, inodes: 10_000 }],
        limits: Limits {
            wall: Duration::from_secs(120),
            cpu: Duration::from_secs(120),
            memory: 1 << 30,
            pids: 64,
            output: 1 << 20,
            file_size: 256 << 20,
            open_files: 1024,
        },
    }
}

/// A folder that everyone may read, with `files`.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn errors(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

#[test]
fn honest_crates_are_checked_linted_and_tested() {
    let Some(sandbox) = sandbox() else { return };
    let library = "/// Adds.\npub fn add(a: u8, b: u8) -> u8 { a + b }\n\
        #[test]\nfn adds() { assert_eq!(add(1, 2), 3); }\n\
        #[test]\nfn threads() { std::thread::spawn(|| ()).join().unwrap(); }\n\
        #[test]\nfn starts() { assert!(std::process::Command::new(\"/bin/true\").status().unwrap().success()); }\n";
    let manifest = "[package]\nname = \"honest\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let lock = "version = 4\n\n[[package]]\nname = \"honest\"\nversion = \"0.1.0\"\n";
    let source = folder(&[("Cargo.toml", manifest), ("Cargo.lock", lock), ("src/lib.rs", library)]);
    for verb in ["clippy", "test"] {
        let outcome = run(&sandbox, &tool("cargo", &[verb, "--offline", "--locked"], source.path()));
        assert_eq!(outcome.end, End::Exit(0), "{verb}: {}", errors(&outcome));
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert!(verb != "test" || text.contains("3 passed"), "{text}");
    }
}

#[test]
fn s12_the_compiler_reads_no_file_of_the_host() {
    let Some(sandbox) = sandbox() else { return };
    for path in ["/etc/passwd", "/etc/shadow", "/proc/1/environ", "/sys/kernel/notes", "/source/../etc/hostname"] {
        let text = format!("pub const A: &[u8] = include_bytes!(\"{path}\");");
        let source = folder(&[("lib.rs", &text)]);
        let args = ["--crate-type", "lib", "--emit", "metadata", "--out-dir", "/build", "/source/lib.rs"];
        let outcome = run(&sandbox, &tool("rustc", &args, source.path()));
        assert_eq!(outcome.end, End::Exit(1), "{path}: {}", errors(&outcome));
        assert!(errors(&outcome).contains("couldn't read"), "{path}: {}", errors(&outcome));
    }
}

#[test]
fn s12_an_endless_file_is_stopped_inside() {
    if !has(Layer::MemoryGroup) {
        return;
    }
    let source = folder(&[("lib.rs", "pub const A: &[u8] = include_bytes!(\"/dev/zero\");")]);
    let mut command = tool("rustc", &["--crate-type", "lib", "--out-dir", "/build", "/source/lib.rs"], source.path());
    command.limits.memory = 256 << 20;
    assert_eq!(run(&sandbox().unwrap(), &command).end, End::Memory);
}

#[test]
fn s03_a_compiler_that_never_ends_is_stopped() {
    let Some(sandbox) = sandbox() else { return };
    let text = "#![allow(long_running_const_eval)]\npub const A: u8 = loop {};";
    let source = folder(&[("lib.rs", text)]);
    let mut command = tool("rustc", &["--crate-type", "lib", "--out-dir", "/build", "/source/lib.rs"], source.path());
    command.limits.wall = Duration::from_secs(2);
    let outcome = run(&sandbox, &command);
    assert_eq!(outcome.end, End::WallTime, "{}", errors(&outcome));
    assert!(outcome.wall <= Duration::from_secs(3), "{:?}", outcome.wall);
}
