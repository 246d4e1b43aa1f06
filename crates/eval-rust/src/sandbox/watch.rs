//! The watch over a run: feeds its input, keeps the first bytes of its output, and stops it at its limits.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::cgroup::Groups;
use super::error::{SandboxError, host};
use super::launch::Handle;
use super::message::{self, Note};
use super::types::{Command, End, Limits};

/// How often the limits that nothing reports are looked at.
const TICK: Duration = Duration::from_millis(25);

/// How long a pipe may stay open after the last process has been killed.
const DRAIN: Duration = Duration::from_secs(1);

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Our ends of the command's streams.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) input: OwnedFd,
    /// Standard output and standard error.
    pub(crate) output: [OwnedFd; 2],
}

/// What was seen of a run.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) notes: Vec<Note>,
    /// The limit that stopped it.
    pub(crate) stopped: Option<End>,
    pub(crate) output: [Vec<u8>; 2],
    pub(crate) truncated: bool,
    pub(crate) wall: Duration,
}

/// Watches a run until it has ended and its pipes are empty. `first` is its first process.
///
/// # Errors
/// `Host` when waiting or reading fails.
pub(crate) fn watch(
    socket: &mut UnixStream,
    first: &Handle,
    streams: Streams,
    command: &Command,
    groups: &Groups,
    start: Instant,
) -> Result<Watched, SandboxError> {
    nonblocking(&streams).map_err(host("setting up the pipes"))?;
    let mut watch = Watch {
        input: (!command.stdin.is_empty()).then_some(streams.input),
        rest: &command.stdin,
        output: streams.output.map(Some),
        kept: [Vec::new(), Vec::new()],
        truncated: false,
        limits: &command.limits,
    };
    let (mut notes, mut stopped) = (Vec::new(), None);
    loop {
        let talks = watch.wait(socket, TICK).map_err(host("waiting for a run"))?;
        if talks && !take_note(socket, &mut notes).map_err(host("listening to the helper"))? {
            break;
        }
        stopped = watch.limit(groups, start);
        if stopped.is_some() {
            break;
        }
    }
    let wall = start.elapsed();
    if stopped.is_some() {
        first.kill();
    }
    watch.drain(Instant::now() + DRAIN).map_err(host("emptying the pipes of a run"))?;
    if watch.output.iter().any(Option::is_some) {
        return Err(SandboxError::Left("a process that holds an output pipe".into()));
    }
    let stopped = stopped.or(watch.truncated.then_some(End::Output));
    Ok(Watched { notes, stopped, output: watch.kept, truncated: watch.truncated, wall })
}

/// Takes one note; `false` at the end of the conversation.
fn take_note(socket: &mut UnixStream, notes: &mut Vec<Note>) -> io::Result<bool> {
    let note: Option<Note> = message::receive(&mut *socket as &mut dyn Read)?;
    let goes_on = matches!(note, Some(Note::Weaker(_)));
    notes.extend(note);
    Ok(goes_on)
}

fn nonblocking(streams: &Streams) -> io::Result<()> {
    for fd in [&streams.input, &streams.output[0], &streams.output[1]] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    Ok(())
}

struct Watch<'a> {
    input: Option<OwnedFd>,
    rest: &'a [u8],
    output: [Option<OwnedFd>; 2],
    kept: [Vec<u8>; 2],
    truncated: bool,
    limits: &'a Limits,
}

impl Watch<'_> {
    /// The limit that has been reached, if one has.
    fn limit(&self, groups: &Groups, start: Instant) -> Option<End> {
        if self.truncated {
            Some(End::Output)
        } else if start.elapsed() >= self.limits.wall {
            Some(End::WallTime)
        } else if groups.out_of_memory() {
            Some(End::Memory)
        } else if groups.cpu().is_some_and(|cpu| cpu >= self.limits.cpu) {
            Some(End::CpuTime)
        } else {
            None
        }
    }

    /// Moves bytes for at most `time`; says whether the socket has something.
    fn wait(&mut self, socket: &UnixStream, time: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
        fds.extend(self.output.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(self.input.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        poll(&mut fds, time)?;
        let talks = !fds[0].revents().is_empty();
        self.feed();
        self.read()?;
        Ok(talks)
    }

    /// Writes what the pipe takes. A command that closes its input does not want the rest.
    fn feed(&mut self) {
        let Some(fd) = &self.input else { return };
        match rustix::io::write(fd, self.rest) {
            Ok(n) => self.rest = &self.rest[n..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_) => self.rest = &[],
        }
        if self.rest.is_empty() {
            self.input = None;
        }
    }

    /// Reads once from each stream; what is over the limit is thrown away and marked.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        for (output, kept) in self.output.iter_mut().zip(&mut self.kept) {
            let Some(fd) = output else { continue };
            match rustix::io::read(&*fd, &mut chunk) {
                Ok(0) => *output = None,
                Ok(n) => {
                    let room = usize::try_from(self.limits.output).unwrap_or(usize::MAX) - kept.len();
                    kept.extend_from_slice(&chunk[..n.min(room)]);
                    self.truncated |= n > room;
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads until the streams are closed or the time has come.
    fn drain(&mut self, until: Instant) -> io::Result<()> {
        self.input = None;
        while self.output.iter().any(Option::is_some) && Instant::now() < until {
            let mut fds: Vec<PollFd<'_>> =
                self.output.iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
            poll(&mut fds, TICK)?;
            drop(fds);
            self.read()?;
        }
        Ok(())
    }
}

/// Waits until a descriptor is ready or the time has come.
pub(crate) fn poll(fds: &mut [PollFd<'_>], time: Duration) -> io::Result<()> {
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match rustix::event::poll(fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
