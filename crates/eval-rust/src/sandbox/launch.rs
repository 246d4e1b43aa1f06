//! The launcher: checks a command, starts the helper, gives it ids and groups, and turns what it reports into an outcome.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pipe::PipeFlags;

use super::cgroup::{self, Groups};
use super::error::{Layer, SandboxError, host};
use super::inside::INSIDE_ID;
use super::message::{self, Note, Plan, STREAMS};
use super::types::{Command, End, Mount, Outcome, Run};
use super::watch::{Streams, Watched, poll, watch};

/// User ids of runs under root begin here, one for each process id, so that no two runs at a time share one. No system
/// gives such ids to people.
const FIRST_USER: u32 = 0x6000_0000;
/// Process ids are below this.
const MAX_PID: u32 = 1 << 22;

/// How long the helper may take to leave the namespaces, on a machine under any load.
const LAUNCH: Duration = Duration::from_secs(20);

/// Numbers the groups of one process.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Runs commands, each in a sandbox of its own. Any number of threads may share one.
#[derive(Debug, Clone)]
pub struct Sandbox {
    helper: PathBuf,
    allowed: Vec<Layer>,
}

impl Sandbox {
    /// A sandbox whose helper is `helper`: the program `eval-rust`, or any whose `main` calls [`super::helper_main`] when
    /// its first argument is [`super::HELPER`]. Layers in `allow_weaker` may be missing; every outcome names those that were.
    ///
    /// Also removes control groups that a launcher left which no longer lives.
    ///
    /// # Errors
    /// `Indispensable` when `allow_weaker` names a layer that nothing stands in for.
    pub fn new(helper: &Path, allow_weaker: &[Layer]) -> Result<Self, SandboxError> {
        if let Some(layer) = allow_weaker.iter().find(|layer| layer.stand_in().is_none()) {
            return Err(SandboxError::Indispensable { layer: *layer });
        }
        cgroup::clean_leftovers();
        Ok(Self { helper: helper.into(), allowed: allow_weaker.to_vec() })
    }
}

/// Read-only mounts of what programs of this machine need to run and to link: `/usr`, the libraries, and the links
/// between compilers. Folders that this machine lacks are left out.
#[must_use]
pub fn system_mounts() -> Vec<Mount> {
    let paths = ["/usr", "/bin", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache"].map(Path::new);
    let there = paths.into_iter().filter(|path| path.exists());
    there.map(|path| Mount { host: path.into(), inside: path.into(), writable: false }).collect()
}

impl Run for Sandbox {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        let start = Instant::now();
        check(command)?;
        let groups = Groups::create(&command.limits, RUNS.fetch_add(1, Ordering::Relaxed));
        let outcome = match self.refuse(&groups) {
            Some(error) => Err(error),
            None => self.run_in(command, &groups, start),
        };
        let removed = groups.remove().map_err(|error| SandboxError::Left(error.to_string()));
        // The outcome first: why a run failed says more than what it left.
        let outcome = outcome?;
        removed.map(|()| outcome)
    }
}

impl Sandbox {
    fn refuse(&self, groups: &Groups) -> Option<SandboxError> {
        let (layer, detail) = groups.missing.iter().find(|(layer, _)| !self.allowed.contains(layer))?;
        Some(SandboxError::Missing { layer: *layer, detail: detail.clone() })
    }

    fn run_in(&self, command: &Command, groups: &Groups, start: Instant) -> Result<Outcome, SandboxError> {
        let missing: Vec<Layer> = groups.missing.iter().map(|(layer, _)| *layer).collect();
        let (streams, theirs) = pipes().map_err(host("making pipes"))?;
        let mut helper = Helper::start(&self.helper)?;
        let root = rustix::process::geteuid().is_root();
        let plan = Plan {
            launcher: rustix::process::getpid().as_raw_pid(),
            command: command.clone(),
            drop_groups: root,
            allowed: self.allowed.clone(),
            missing: missing.clone(),
        };
        let frame = message::encode(&plan).map_err(|error| SandboxError::Command(error.to_string()))?;
        helper.send(&frame, theirs).map_err(host("handing the plan to the helper"))?;
        let first = helper.first()?;
        let handle = Handle::new(first).map_err(host("taking hold of the first process"))?;
        let user = if root { own_user(helper.child.id())? } else { rustix::process::geteuid().as_raw() };
        give_folders(command, root.then_some(user))?;
        admit(groups, first, user, root)?;
        helper.socket.write_all(&[1]).map_err(host("letting the helper go on"))?;
        let watched = watch(&mut helper.socket, &handle, streams, command, groups, start);
        // Whatever happened, nothing of the run lives on after this: the first process takes the rest along.
        helper.end(&handle);
        outcome(watched?, command, groups, missing)
    }
}

/// Turns what was seen into an outcome.
fn outcome(seen: Watched, command: &Command, groups: &Groups, mut weaker: Vec<Layer>) -> Result<Outcome, SandboxError> {
    let mut end = None;
    let mut cpu = Duration::ZERO;
    for note in seen.notes {
        match note {
            Note::Weaker(layer) => weaker.push(layer),
            Note::Missing { layer, detail } => return Err(SandboxError::Missing { layer, detail }),
            Note::Wrong(what) => return Err(SandboxError::Command(what)),
            Note::Start(detail) => {
                let program = command.program.display().to_string();
                return Err(SandboxError::Start { program, detail });
            }
            Note::Ended { code, signal, cpu_us } => {
                cpu = Duration::from_micros(cpu_us);
                end = code.map(End::Exit).or(signal.map(End::Signal));
            }
            Note::First { .. } => return Err(SandboxError::Lost("the helper began twice".into())),
        }
    }
    let cpu = groups.cpu().unwrap_or(cpu);
    if groups.out_of_memory() {
        end = Some(End::Memory);
    }
    // Where no group counts, the limit of one process ends it: with this signal, then with one that cannot be ignored.
    let killed = end == Some(End::Signal(libc::SIGKILL)) && cpu >= command.limits.cpu;
    if killed || end == Some(End::Signal(libc::SIGXCPU)) {
        end = Some(End::CpuTime);
    }
    let Some(end) = seen.stopped.or(end) else {
        return Err(SandboxError::Lost("its first process ended without a report".into()));
    };
    let peak_memory = groups.peak_memory().unwrap_or(0);
    let [stdout, stderr] = seen.output;
    Ok(Outcome { end, stdout, stderr, truncated: seen.truncated, wall: seen.wall, cpu, peak_memory, weaker })
}

/// Our ends of the pipes, and the command's.
fn pipes() -> io::Result<(Streams, [OwnedFd; STREAMS])> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (input, output, error) = (pipe()?, pipe()?, pipe()?);
    Ok((Streams { input: input.1, output: [output.0, error.0] }, [input.0, output.1, error.1]))
}

/// The helper process with our end of its socket.
struct Helper {
    child: Child,
    socket: UnixStream,
}

impl Helper {
    fn start(program: &Path) -> Result<Self, SandboxError> {
        let (socket, theirs) = UnixStream::pair().map_err(host("making a socket"))?;
        let child = std::process::Command::new(program)
            .arg(super::HELPER)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(host("starting the helper of the sandbox"))?;
        Ok(Self { child, socket })
    }

    /// Sends the plan, with the descriptors on its first bytes.
    fn send(&mut self, frame: &[u8], streams: [OwnedFd; STREAMS]) -> io::Result<()> {
        let (length, rest) = frame.split_at(4);
        let borrowed = streams.each_ref().map(AsFd::as_fd);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("no room for the descriptors"));
        }
        rustix::net::sendmsg(&self.socket, &[io::IoSlice::new(length)], &mut control, SendFlags::empty())?;
        self.socket.write_all(rest)
    }

    /// Waits for the first process of the run; it stands still until it is told to go on.
    fn first(&mut self) -> Result<i32, SandboxError> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut fds, LAUNCH).map_err(host("waiting for the helper"))?;
        if fds[0].revents().is_empty() {
            return Err(SandboxError::Lost("no word from the helper".into()));
        }
        match message::receive(&self.socket) {
            Ok(Some(Note::First { pid })) => Ok(pid),
            Ok(Some(Note::Missing { layer, detail })) => Err(SandboxError::Missing { layer, detail }),
            Ok(Some(note)) => Err(SandboxError::Lost(format!("the helper began with {note:?}"))),
            Ok(None) => Err(SandboxError::Lost("the helper ended at once".into())),
            Err(error) => Err(SandboxError::Lost(format!("no word from the helper: {error}"))),
        }
    }

    /// Ends the first process of the run, and with it the run; then waits for the helper, which waits for that.
    fn end(&mut self, first: &Handle) {
        first.kill();
        // The helper was started here and not waited for before, so this cannot fail.
        let _ = self.child.wait();
    }
}

/// A hold on the first process of a run that stays right even when its id is used again.
#[derive(Debug)]
pub(crate) struct Handle(OwnedFd);

impl Handle {
    fn new(pid: i32) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process id of 0"))?;
        Ok(Self(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?))
    }

    /// Ends the process, and with it everything in its namespace. One that has ended already is left alone.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL);
    }
}

impl Drop for Helper {
    /// For the ways out that never came to [`Helper::end`]: the closed socket ends a first process that stands still, and
    /// the helper after it.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        for _ in 0..1000 {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gives the first process its groups and its ids.
fn admit(groups: &Groups, first: i32, user: u32, root: bool) -> Result<(), SandboxError> {
    groups
        .admit(first)
        .map_err(|error| SandboxError::Missing { layer: Layer::MemoryGroup, detail: format!("joining it: {error}") })?;
    let map = |file: &str, text: String| {
        let path = format!("/proc/{first}/{file}");
        let write = || std::fs::File::options().write(true).open(&path)?.write_all(text.as_bytes());
        write().map_err(|error| SandboxError::Missing { layer: Layer::OwnUser, detail: format!("{path}: {error}") })
    };
    let group = if root { user } else { rustix::process::getegid().as_raw() };
    if !root {
        map("setgroups", "deny".into())?;
    }
    map("uid_map", format!("{INSIDE_ID} {user} 1"))?;
    map("gid_map", format!("{INSIDE_ID} {group} 1"))
}

/// A user id that no other run and no person has.
fn own_user(helper: u32) -> Result<u32, SandboxError> {
    let text = std::fs::read_to_string("/proc/self/uid_map").map_err(host("reading /proc/self/uid_map"))?;
    let ranges: Vec<(u64, u64)> = text
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let (first, _, length) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
            Some((first, length))
        })
        .collect();
    choose_user(&ranges, helper).ok_or_else(|| SandboxError::Missing {
        layer: Layer::OwnUser,
        detail: "this container has no user ids to spare: it runs as root of fewer than 65536 ids".into(),
    })
}

/// The id for a helper, out of ranges of `(first, length)`: from the high range where it is whole, otherwise from the
/// range below the id of `nobody`, where two of very many runs at a time may meet.
fn choose_user(ranges: &[(u64, u64)], helper: u32) -> Option<u32> {
    let holds = |first: u64, length: u64| ranges.iter().any(|(f, l)| *f <= first && first + length <= f + l);
    if holds(FIRST_USER.into(), MAX_PID.into()) {
        return Some(FIRST_USER + helper % MAX_PID);
    }
    holds(61_184, 4096).then(|| 61_184 + helper % 4096)
}

/// Gives writable folders to the user of the run. Nothing runs that could swap a file for a link meanwhile.
fn give_folders(command: &Command, user: Option<u32>) -> Result<(), SandboxError> {
    let Some(user) = user else { return Ok(()) };
    for mount in command.mounts.iter().filter(|mount| mount.writable) {
        give(&mount.host, user).map_err(host("giving a writable folder to the user of the run"))?;
    }
    Ok(())
}

fn give(path: &Path, user: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(user), Some(user))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}

/// Refuses a command that could not mean what it says.
fn check(command: &Command) -> Result<(), SandboxError> {
    let wrong = |what: String| Err(SandboxError::Command(what));
    let mounts = command.mounts.iter().map(|mount| &mount.inside);
    let places: Vec<&PathBuf> = mounts.chain(command.scratch.iter().map(|scratch| &scratch.inside)).collect();
    for path in places.iter().copied().chain([&command.program, &command.cwd]) {
        let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if !path.is_absolute() || !plain {
            return wrong(format!("{} is not an absolute path without `..`", path.display()));
        }
    }
    for (i, path) in places.iter().enumerate() {
        if path.parent().is_none() || ["/proc", "/dev"].iter().any(|own| path.starts_with(own)) {
            return wrong(format!("nothing is placed at {}", path.display()));
        }
        if places[..i].contains(path) {
            return wrong(format!("two things are placed at {}", path.display()));
        }
    }
    let limits = &command.limits;
    let numbers = [limits.memory, u64::from(limits.pids), limits.file_size, u64::from(limits.open_files)];
    if limits.wall.is_zero() || limits.cpu.is_zero() || numbers.contains(&0) {
        return wrong("a limit is zero".into());
    }
    if command.scratch.iter().any(|scratch| scratch.bytes == 0 || scratch.inodes == 0) {
        return wrong("a scratch folder of size zero, which would mean one without a limit".into());
    }
    readable(command)
}

/// Refuses a mount that the user of the run could not read, which would look like a failure of the command.
fn readable(command: &Command) -> Result<(), SandboxError> {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for mount in command.mounts.iter().filter(|mount| !mount.writable) {
        let shown = mount.host.display();
        let metadata = mount.host.metadata().map_err(|error| SandboxError::Command(format!("{shown}: {error}")))?;
        let needed = if metadata.is_dir() { 0o5 } else { 0o4 };
        if metadata.permissions().mode() & needed != needed {
            return Err(SandboxError::Command(format!(
                "{shown} may not be read by others, and the run is another user"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_get_users_that_nobody_has() {
        let all = [(0, u64::from(u32::MAX))];
        assert_eq!(choose_user(&all, 7), Some(FIRST_USER + 7));
        assert_ne!(choose_user(&all, 7), choose_user(&all, 8));
        assert_eq!(choose_user(&[(0, 65_536)], 7), Some(61_191));
        assert_eq!(choose_user(&[(0, 1), (100_000, 10)], 7), None);
    }

    #[test]
    fn nothing_stands_in_for_most_layers() {
        let error = Sandbox::new(Path::new("x"), &[Layer::SystemCalls]).unwrap_err();
        assert!(matches!(error, SandboxError::Indispensable { layer: Layer::SystemCalls }));
        assert!(Sandbox::new(Path::new("x"), &[Layer::MemoryGroup, Layer::Landlock]).is_ok());
    }
}
