//! A runner without walls: a process of the host, with paths inside replaced by those outside.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::judge::commands::INSIDE;
use crate::sandbox::{Command, End, Outcome, Run, SandboxError};

/// Runs on the host with a limit of wall time and of output.
pub(super) struct Direct;

impl Run for Direct {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        let scratch = tempfile::tempdir().unwrap();
        let mut places: Vec<(String, PathBuf)> = Vec::new();
        for mount in command.mounts.iter().filter(|mount| mount.inside.starts_with(INSIDE)) {
            places.push((mount.inside.to_str().unwrap().into(), mount.host.clone()));
        }
        // Programs of a candidate run as nobody, who cannot reach the judge's folders: from a copy.
        let nobody = command.program.starts_with("/judge/bin") && std::fs::metadata("/proc/self").unwrap().uid() == 0;
        if nobody {
            let open = |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
            crate::judge::cache::copy(&places[0].1, &scratch.path().join("bin")).unwrap();
            places[0].1 = scratch.path().join("bin");
            open(scratch.path());
            open(&places[0].1);
        }
        for (i, folder) in command.scratch.iter().enumerate() {
            let host = scratch.path().join(i.to_string());
            std::fs::create_dir(&host).unwrap();
            places.push((folder.inside.to_str().unwrap().into(), host));
        }
        let outside = |text: &OsStr| {
            let mut text = text.to_str().unwrap().to_owned();
            for (inside, host) in &places {
                text = text.replace(inside, host.to_str().unwrap());
            }
            OsString::from(text)
        };
        let path = |path: &Path| PathBuf::from(outside(path.as_os_str()));
        let io = |what: &'static str| move |source| SandboxError::Host { what, source };
        let mut process = std::process::Command::new(path(&command.program));
        process.args(command.args.iter().map(|arg| outside(arg))).current_dir(path(&command.cwd)).env_clear();
        process.envs(command.env.iter().map(|(name, value)| (name, outside(value)))).process_group(0);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if nobody {
            process.uid(65534).gid(65534);
        }
        let start = Instant::now();
        let mut child = process.spawn().map_err(io("start"))?;
        let mut stdin = child.stdin.take().unwrap();
        let question = command.stdin.clone();
        std::thread::spawn(move || _ = stdin.write_all(&question));
        let flooded = Arc::new(AtomicBool::new(false));
        let reader = |mut from: Box<dyn Read + Send>, limit: u64| {
            let flooded = flooded.clone();
            std::thread::spawn(move || {
                let (mut kept, mut rest) = (Vec::new(), Vec::new());
                from.by_ref().take(limit).read_to_end(&mut kept).unwrap();
                let more = from.by_ref().take(1).read_to_end(&mut rest).unwrap() > 0;
                flooded.fetch_or(more, Ordering::Relaxed);
                (kept, more)
            })
        };
        let stdout = reader(Box::new(child.stdout.take().unwrap()), command.limits.output);
        let stderr = reader(Box::new(child.stderr.take().unwrap()), command.limits.output);
        let end = loop {
            if let Some(status) = child.try_wait().map_err(io("wait"))? {
                break status.code().map_or_else(|| End::Signal(status.signal().unwrap()), End::Exit);
            }
            let flooded = flooded.load(Ordering::Relaxed);
            if flooded || start.elapsed() > command.limits.wall {
                // Its children too, which would hold the pipes.
                let group = rustix::process::Pid::from_child(&child);
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                let _ = child.wait();
                break if flooded { End::Output } else { End::WallTime };
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let ((stdout, more_out), (stderr, more_err)) = (stdout.join().unwrap(), stderr.join().unwrap());
        let wall = start.elapsed();
        Ok(Outcome {
            end,
            stdout,
            stderr,
            truncated: more_out || more_err,
            wall,
            cpu: wall,
            peak_memory: 0,
            weaker: Vec::new(),
        })
    }
}
