//! Starting a program, waiting for it, ending it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::programs::program;

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(1);
/// A program that runs longer than this hangs; generous, because the machine may be slow and shared.
const PATIENCE: Duration = Duration::from_secs(300);

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code; none after a signal.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Ended {
    /// The standard output of a program that must have succeeded.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out
    }

    /// The standard error of a program that must have ended with `code`, saying all of `words`, and not by a panic.
    pub(crate) fn says(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "expected {word:?} in: {}", self.err);
        }
        self.err
    }
}

/// Runs a command to its end. Nobody answers questions: the standard input is empty.
pub(crate) fn run(command: &mut Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A program of the workspace with arguments, in a folder.
pub(crate) fn command<S: AsRef<str>>(folder: &Path, name: &str, args: &[S]) -> Command {
    let mut command = Command::new(program(name));
    command.current_dir(folder).args(args.iter().map(AsRef::as_ref));
    command
}

/// A program that runs; it is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    said: PathBuf,
}

impl Running {
    /// Starts a command whose output goes to the file `said`.
    pub(crate) fn start(command: &mut Command, said: &Path) -> Self {
        let out = File::create(said).unwrap();
        let err = out.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
        Self { child, said: said.to_path_buf() }
    }

    /// Everything that it has said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    /// Waits until `done` or the program's end, and tells its status in the second case.
    pub(crate) fn wait_until(&mut self, mut done: impl FnMut() -> bool) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if done() {
                return None;
            }
            assert!(start.elapsed() < PATIENCE, "it hangs; so far: {}", self.said());
            std::thread::sleep(POLL);
        }
    }

    /// Waits for `time` or the program's end.
    pub(crate) fn wait_for(&mut self, time: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        self.wait_until(|| start.elapsed() >= time)
    }

    /// Waits for the end and returns the exit code, 128 + number after a signal.
    pub(crate) fn wait(&mut self) -> i32 {
        let status = self.wait_until(|| false).unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }

    /// Ends it as a power cut would; false if it had ended before.
    pub(crate) fn kill(&mut self) -> bool {
        self.child.kill().unwrap();
        self.child.wait().unwrap().signal() == Some(Signal::KILL.as_raw())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends a signal to the program's own child of this name as soon as `ready`; false if the program ended before.
    pub(crate) fn signal_child_when(&mut self, name: &str, signal: Signal, mut ready: impl FnMut() -> bool) -> bool {
        let parent = self.child.id();
        let sent = || child_of(parent, name).is_some_and(|pid| kill_process(pid, signal).is_ok());
        self.wait_until(|| ready() && sent()).is_none()
    }

    /// Waits for the end and returns code and output, both streams as one.
    pub(crate) fn end(mut self) -> Ended {
        let code = Some(self.wait());
        Ended { code, out: String::new(), err: self.said() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that `parent` started under this name, as the system tells it.
fn child_of(parent: u32, name: &str) -> Option<Pid> {
    // The system keeps fifteen characters of a name.
    let name = &name[..name.len().min(15)];
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let found: u32 = tail.split_whitespace().nth(1)?.parse().ok()?;
        (found == parent && head.split_once('(')?.1 == name).then(|| Pid::from_raw(pid))?
    })
}
