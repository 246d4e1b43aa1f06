//! S6-S10, S13, S15, S16: what a run can see, reach and change.

use eval_rust::sandbox::{End, Mount, Run, SandboxError};

use crate::{HELPER, SCRATCH, attack, run, sandbox, text};

const EPERM: &str = "1";
const ENOSYS: &str = "38";

#[test]
fn s06_s08_s09_what_the_probes_try_is_refused() {
    let Some(sandbox) = sandbox() else { return };
    let mut command = attack("probes", &["__probe"]);
    command.mounts.push(Mount { host: HELPER.into(), inside: "/probe".into(), writable: false });
    command.program = "/probe".into();
    let outcome = sandbox.run(&command).unwrap();
    assert_eq!(outcome.end, End::Exit(0));
    let text = text(&outcome);
    assert!(text.lines().count() > 30, "{text}");
    for line in text.lines() {
        assert!(line.contains("\"holds\":true"), "{line}");
    }
}

/// The same probes outside find plenty: they can fail.
#[test]
fn the_probes_see_the_difference() {
    let output = std::process::Command::new(HELPER).arg("__probe").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["user-id", "environment", "host-name", "absence of /etc/passwd", "system call: local socket"] {
        let line = text.lines().find(|line| line.contains(&format!("\"{name}\""))).unwrap();
        assert!(line.contains("\"holds\":false"), "{line}");
    }
}

#[test]
fn s07_nothing_of_the_launcher_shows() {
    let Some(sandbox) = sandbox() else { return };
    // A descriptor that every child would inherit, and an environment of its own.
    let secret = tempfile::tempfile().unwrap();
    let inherited = rustix::io::dup(&secret).unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let outcome = run(&sandbox, &attack("look", &["look"]));
    let text = text(&outcome);
    assert!(text.contains("environment []"), "{text}");
    assert!(text.contains("first Err("), "{text}");
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    // The fourth descriptor is that of the listing.
    let fds = ["0", "1", "2", "3"].map(|fd| format!("/proc/self/fd/{fd}"));
    assert_eq!(line("/proc/self/fd "), format!("/proc/self/fd {fds:?}"));
    assert_eq!(line("/scratch "), "/scratch []");
    for (name, value) in
        [("Uid", "1000\t1000\t1000\t1000"), ("CapEff", "0000000000000000"), ("CapBnd", "0000000000000000")]
    {
        assert_eq!(line(&format!("/proc/self/status {name}")), format!("/proc/self/status {name}:\t{value}"));
    }
    // The program ignores SIGPIPE itself, as Rust programs do.
    assert_eq!(line("/proc/self/status SigIgn"), "/proc/self/status SigIgn:\t0000000000001000");
    assert_eq!(line("/proc/self/status NoNewPrivs"), "/proc/self/status NoNewPrivs:\t1");
    assert_eq!(line("/proc/self/status Seccomp:"), "/proc/self/status Seccomp:\t2");
    assert!(!text.contains("firebrick"), "the name of the group shows: {text}");
}

#[test]
fn the_host_knows_the_run_as_a_user_that_nobody_is() {
    let Some(sandbox) = sandbox() else { return };
    let mut users = std::collections::BTreeSet::new();
    std::thread::scope(|scope| {
        for name in ["user-one", "user-two"] {
            let mut command = attack(name, &["sleep"]);
            command.limits.wall = std::time::Duration::from_secs(2);
            let sandbox = &sandbox;
            scope.spawn(move || assert_eq!(sandbox.run(&command).unwrap().end, End::WallTime));
        }
        for name in ["user-one", "user-two"] {
            let program = format!("/attacker-{name}");
            let user = (0..150).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                user_of(&program)
            });
            users.insert(user.expect("the run shows among the processes of the host"));
        }
    });
    if rustix::process::geteuid().is_root() {
        assert_eq!(users.len(), 2, "two runs at a time are two users");
        assert!(users.iter().all(|user| *user >= 61_184), "{users:?}");
    } else {
        assert_eq!(users.into_iter().collect::<Vec<_>>(), [rustix::process::geteuid().as_raw()]);
    }
}

/// The user id, as the host sees it, of the process whose command line begins with `program`.
fn user_of(program: &str) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        line.starts_with(program).then(|| entry.metadata().ok().map(|data| data.uid()))?
    })
}

#[test]
fn s10_what_is_shown_cannot_be_written() {
    let Some(sandbox) = sandbox() else { return };
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "before").unwrap();
    for (path, refused) in [
        ("/source/file", true),
        ("/source/new", true),
        ("/usr/bin/new", true),
        ("/new", true),
        ("/dev/new", true),
        ("/attacker-write", true),
        ("/proc/self/oom_score_adj", true),
        ("/dev/null", false),
        ("/scratch/new", false),
    ] {
        let mut command = attack("write", &["write", path]);
        command.mounts.push(Mount { host: source.clone(), inside: "/source".into(), writable: false });
        let got = text(&run(&sandbox, &command));
        assert_eq!(got != "0", refused, "{path}: error {got}");
    }
    assert_eq!(std::fs::read_to_string(source.join("file")).unwrap(), "before");
}

#[test]
fn a_writable_mount_is_written_and_a_link_in_it_leads_nowhere() {
    let Some(sandbox) = sandbox() else { return };
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    std::fs::write(&target, "before").unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::os::unix::fs::symlink(&target, out.join("link")).unwrap();
    for (file, works) in [("new", true), ("link", false)] {
        let mut command = attack("writable", &["write", &format!("/out/{file}")]);
        command.mounts.push(Mount { host: out.clone(), inside: "/out".into(), writable: true });
        assert_eq!(text(&run(&sandbox, &command)) == "0", works, "{file}");
    }
    assert_eq!(std::fs::read_to_string(out.join("new")).unwrap(), "x");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "before");
}

#[test]
fn s13_killing_everything_kills_nothing_outside() {
    let Some(sandbox) = sandbox() else { return };
    let outcome = run(&sandbox, &attack("kill-all", &["kill-all"]));
    // Nobody else to kill, and the first process takes no orders: the program ends by itself.
    assert_eq!(outcome.end, End::Exit(0), "{}", text(&outcome));
}

#[test]
fn s13_no_new_namespace_and_no_terminal_tricks() {
    let Some(sandbox) = sandbox() else { return };
    for (name, number, first, second, want) in [
        ("clone with a user namespace", libc::SYS_clone, i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, EPERM),
        ("clone with a mount namespace", libc::SYS_clone, i64::from(libc::CLONE_NEWNS | libc::SIGCHLD), 0, EPERM),
        ("clone3, whose flags no filter sees", libc::SYS_clone3, 0, 0, ENOSYS),
        ("unshare", libc::SYS_unshare, i64::from(libc::CLONE_NEWUSER), 0, EPERM),
        ("TIOCSTI", libc::SYS_ioctl, 0, i64::from(0x5412), EPERM),
        ("TIOCSCTTY", libc::SYS_ioctl, 0, i64::from(0x540e), EPERM),
        ("io_uring", libc::SYS_io_uring_setup, 1, 0, EPERM),
        ("memfd_create", libc::SYS_memfd_create, 0, 0, EPERM),
        ("a socket", libc::SYS_socket, i64::from(libc::AF_VSOCK), 1, EPERM),
        ("dumpable", libc::SYS_prctl, i64::from(libc::PR_SET_DUMPABLE), 0, EPERM),
        ("a call that is permitted", libc::SYS_getpid, 0, 0, "0"),
        ("a call of the future", 5000, 0, 0, EPERM),
    ] {
        let args = [number, first, second].map(|number| number.to_string());
        let outcome = run(&sandbox, &attack("call", &["call", &args[0], &args[1], &args[2]]));
        assert_eq!(text(&outcome), want, "{name}");
    }
}

#[test]
fn s15_each_run_has_a_scratch_folder_of_its_own() {
    let Some(sandbox) = sandbox() else { return };
    assert_eq!(text(&run(&sandbox, &attack("poison", &["write", &format!("{SCRATCH}/poison")]))), "0");
    let outcome = run(&sandbox, &attack("poisoned", &["look"]));
    assert!(text(&outcome).contains("/scratch []"), "{}", text(&outcome));
}

#[test]
fn s16_two_runs_look_the_same_from_inside() {
    let Some(sandbox) = sandbox() else { return };
    let [one, two] = [0, 1].map(|_| text(&run(&sandbox, &attack("same", &["look"]))));
    assert!(one.lines().count() > 30, "{one}");
    assert_eq!(one, two);
}

#[test]
fn commands_that_cannot_be_meant_are_refused() {
    let Some(sandbox) = sandbox() else { return };
    let refused = |change: &dyn Fn(&mut eval_rust::sandbox::Command), want: &str| {
        let mut command = attack("refused", &["exit", "0"]);
        change(&mut command);
        match sandbox.run(&command) {
            Err(SandboxError::Command(what)) => assert!(what.contains(want), "{what}"),
            other => panic!("{want}: {other:?}"),
        }
    };
    refused(&|c| c.cwd = "relative".into(), "relative");
    refused(&|c| c.program = "/a/../b".into(), "/a/../b");
    refused(&|c| c.scratch[0].inside = "/".into(), "nothing is placed at /");
    refused(&|c| c.scratch[0].inside = "/proc/x".into(), "nothing is placed at /proc/x");
    refused(&|c| c.scratch.push(c.scratch[0].clone()), "two things");
    refused(&|c| c.scratch[0].inodes = 0, "size zero");
    refused(&|c| c.limits.memory = 0, "a limit is zero");
    refused(&|c| c.mounts[0].host = "/absent".into(), "/absent");
    let mut command = attack("start", &[]);
    command.program = "/absent".into();
    assert!(matches!(sandbox.run(&command), Err(SandboxError::Start { .. })));
}
