//! S14 and failing closed: a launcher that dies, what it leaves, and machines that lack a layer.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use eval_rust::sandbox::{End, Layer, Mount, Run, Sandbox, SandboxError};

use crate::{HELPER, attack, attacker, has, not_checked, processes, run, sandbox, text};

/// Set to the path of the attacker for a copy of this test that only launches a run and waits.
pub(crate) const ROLE: &str = "EVAL_RUST_TEST_LAUNCHER";

/// Control groups of this crate anywhere on this machine whose launcher has this id.
fn groups(launcher: u32) -> Vec<PathBuf> {
    fn walk(folder: &Path, launcher: u32, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if is_of(&entry.file_name().to_string_lossy(), launcher) {
                    found.push(entry.path());
                }
                walk(&entry.path(), launcher, found);
            }
        }
    }
    fn is_of(name: &str, launcher: u32) -> bool {
        let mut parts = name.split('-');
        parts.next() == Some("firebrick") && parts.nth(1) == Some(&launcher.to_string())
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), launcher, &mut found);
    found
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn s14_a_killed_launcher_takes_its_run_along() {
    let Some(sandbox) = sandbox() else { return };
    if std::env::var_os(ROLE).is_some() {
        let outcome = sandbox.run(&attack("orphan", &["sleep"]));
        panic!("the launcher was to be killed: {outcome:?}");
    }
    let mut launcher = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "launcher::s14_a_killed_launcher_takes_its_run_along"])
        .env(ROLE, attacker())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the run starts", || !processes("/attacker-orphan").is_empty());
    assert_eq!(groups(launcher.id()).is_empty(), !has(Layer::MemoryGroup), "the search finds the groups of a run");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the run ends with its launcher", || processes("/attacker-orphan").is_empty());
    // Its groups are still there, and the next start removes them, but none of a launcher that lives.
    let _next = Sandbox::new(Path::new(HELPER), &[]).unwrap();
    wait_until("its groups go", || groups(launcher.id()).is_empty());
}

#[test]
fn runs_leave_no_group() {
    let Some(sandbox) = sandbox() else { return };
    // Tests run side by side in this process, so only the groups of a process of its own can be counted.
    let output =
        Program::new(HELPER).args(["sandbox-check", "--launches", "3"]).stdout(Stdio::piped()).spawn().unwrap();
    let id = output.id();
    let output = output.wait_with_output().unwrap();
    assert_eq!(groups(id), Vec::<PathBuf>::new(), "{output:?}");
    assert_eq!(run(&sandbox, &attack("after", &["exit", "0"])).end, End::Exit(0));
}

/// A sandbox inside a sandbox has no control groups and may make no namespace: two machines that lack something.
#[test]
fn a_missing_layer_refuses_the_run_and_is_named() {
    let Some(sandbox) = sandbox() else { return };
    let nested = |args: &[&str]| {
        let mut command = attack("nested", args);
        command.mounts.push(Mount { host: HELPER.into(), inside: "/helper".into(), writable: false });
        command.program = "/helper".into();
        let outcome = sandbox.run(&command).unwrap();
        (outcome.end, text(&outcome), String::from_utf8_lossy(&outcome.stderr).into_owned())
    };
    let (end, _, errors) = nested(&["sandbox-check"]);
    assert_eq!(end, End::Exit(4), "{errors}");
    assert!(errors.contains("the layer `memory-group` is missing"), "{errors}");
    let mut args = vec!["sandbox-check"];
    for layer in ["memory-group", "pids-group", "cpu-group", "proc", "landlock"] {
        args.extend(["--allow-weaker", layer]);
    }
    let (end, text, errors) = nested(&args);
    assert_eq!(end, End::Exit(4), "{text} {errors}");
    assert!(errors.contains("the layer `user-namespace` is missing"), "{errors}");
}

#[test]
fn an_ordinary_user_is_held_as_well() {
    const NOBODY: u32 = 65_534;
    if sandbox().is_none() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("every test of this run was one as an ordinary user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("eval-rust");
    std::fs::copy(HELPER, &helper).unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let check = |allowed: &[&str]| {
        let allowed = allowed.iter().flat_map(|layer| ["--allow-weaker", *layer]);
        let mut program = Program::new(&helper);
        program.args(["sandbox-check", "--json", "--launches", "3"]).args(allowed).current_dir("/");
        // Setting the user as root drops the supplementary groups too.
        program.uid(NOBODY).gid(NOBODY);
        let output = program.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, errors) = check(&[]);
    if code == Some(4) {
        assert!(errors.contains("the layer `"), "{errors}");
    }
    let (code, text, errors) = check(&["memory-group", "pids-group", "cpu-group", "proc", "landlock"]);
    if errors.contains("the layer `user-namespace` is missing") {
        not_checked("ordinary users get no user namespace here, and were refused");
        return;
    }
    assert_eq!(code, Some(0), "{text} {errors}");
    assert!(text.contains("\"holds\": true"), "{text}");
}

#[test]
fn a_helper_that_is_none_is_an_error_and_no_outcome() {
    if sandbox().is_none() {
        return;
    }
    for helper in ["/bin/true", "/absent"] {
        let mut allowed = Vec::new();
        let error = loop {
            match Sandbox::new(Path::new(helper), &allowed).unwrap().run(&attack("helper", &["exit", "0"])) {
                Err(SandboxError::Missing { layer, .. }) => allowed.push(layer),
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(error, SandboxError::Lost(_) | SandboxError::Host { .. }), "{helper}: {error}");
    }
}
