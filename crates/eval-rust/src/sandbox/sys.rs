//! The few system calls that have no safe interface: the only unsafe code of the sandbox.
#![expect(unsafe_code, reason = "system calls without a safe interface, each with its reason")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::thread::UnshareFlags;

/// Which of the two processes returns from [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the id of the new one.
    Parent(i32),
}

/// Turns the result of a C call into ours.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Splits the process in two.
///
/// # Errors
/// The system's, and `Unsupported` in a process with more than one thread, whose locks a fork would leave in any state.
pub(crate) fn fork() -> io::Result<Fork> {
    if threads()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a process with threads is not split"));
    }
    // SAFETY: the process has one thread, so no lock of the allocator or of std is held by another one.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(i32::try_from(pid).unwrap_or(i32::MAX)) })
}

/// Threads of this process. Where `/proc` is absent there is nothing to count; the callers start none.
fn threads() -> io::Result<usize> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}

/// Leaves the namespaces named by `flags` for new ones.
///
/// # Errors
/// The system's.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "file descriptors stay shared");
    // SAFETY: without FILES the call cannot take a descriptor away from another owner.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Closes every descriptor from `first` on that the caller of this program left open.
///
/// # Errors
/// The system's.
pub(crate) fn close_inherited(first: u32) -> io::Result<()> {
    // SAFETY: called first thing in a helper process, when no value of Rust owns a descriptor from `first` on.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(|_| ())
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds attributes (`MOUNT_ATTR_*`) to a mount and to every mount below it.
///
/// # Errors
/// The system's.
pub(crate) fn restrict_mount(tree: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attributes = MountAttributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is an empty C string, the structure lives through the call and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
    .map(|_| ())
}

/// Processor time of the children that were waited for.
///
/// # Errors
/// The system's.
pub(crate) fn children_cpu() -> io::Result<Duration> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to memory of the right type, which the call fills.
    check(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) }.into())?;
    // SAFETY: zeroed bytes are a valid `rusage`, and the call succeeded.
    let usage = unsafe { usage.assume_init() };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// Gives every signal its default action, so that a program does not inherit what the caller ignores.
pub(crate) fn default_signals() {
    /// The kernel's `struct sigaction` at its largest; all zero is the default action.
    const DEFAULT: [u64; 4] = [0; 4];
    for signal in 1..=64 {
        // SAFETY: the structure lives through the call, and no handler is installed. Two signals refuse a change, and are
        // at their default.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), std::ptr::null::<u64>(), size_of::<u64>());
        }
    }
}

/// Makes a system call with all arguments zero except the first two, to see whether it is permitted.
///
/// # Errors
/// The system's, as a number.
pub(crate) fn probe(number: libc::c_long, first: libc::c_long, second: libc::c_long) -> Result<(), i32> {
    // SAFETY: only calls are probed here that take no pointer in the first two arguments; null pointers and zeros in the
    // rest make the kernel refuse or do nothing.
    match check(unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) }) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.raw_os_error().unwrap_or(0)),
    }
}
