//! The helper process: puts the layers up around itself one after the other, then becomes the command.
//!
//! Three processes take part. The outer one leaves the namespaces and waits. The first process of the new process
//! namespace builds the root folder and reaps; when it ends, the kernel ends everything in the namespace. Its child
//! closes the last layers behind it and becomes the command. All of them are this program with one thread.

use std::fs::DirBuilder;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::error::Layer;
use super::message::{self, Note, Plan, STREAMS};
use super::sys::{self, Fork};
use super::types::{Command, Scratch};
use super::{filter, landlock_rules};

/// The user and group id that a command sees as its own.
pub(crate) const INSIDE_ID: u32 = 1000;

/// What the root folder itself may hold: empty folders and files to mount on.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=1m,nr_inodes=4096,mode=755";

/// Where the new root folder is put up; what the host has there was opened before if it is needed.
const STAGING: &str = "/tmp";

/// Devices that a command sees.
const DEVICES: [&str; 4] = ["null", "zero", "random", "urandom"];

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NO_TRICKS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// A step that failed, as the launcher hears of it.
type Step<T> = Result<T, Note>;

fn missing<E: std::fmt::Display>(layer: Layer, what: &str) -> impl FnOnce(E) -> Note {
    move |error| Note::Missing { layer, detail: format!("{what}: {error}") }
}

/// Runs the helper: reads its plan from the socket that is its standard input.
///
/// For `main` of the program that the sandbox starts as its helper, under the name [`super::HELPER`]; nothing may run
/// before it in that process.
#[must_use]
pub fn helper_main() -> ExitCode {
    match outer() {
        Ok(code) => code,
        // The launcher sees the closed socket, and reports the run as lost.
        Err(_) => ExitCode::FAILURE,
    }
}

struct Helper {
    socket: UnixStream,
    plan: Plan,
    streams: [OwnedFd; STREAMS],
}

fn outer() -> io::Result<ExitCode> {
    sys::close_inherited(3)?;
    let helper = receive()?;
    let told = match isolate(&helper) {
        Ok(Fork::Child) => {
            let Err(note) = first(helper) else { return Ok(ExitCode::SUCCESS) };
            return Err(io::Error::other(format!("{note:?}")));
        }
        Ok(Fork::Parent(pid)) => message::send(&helper.socket, &Note::First { pid }).map(|()| Some(pid)),
        Err(note) => message::send(&helper.socket, &note).map(|()| None),
    };
    drop(helper);
    let first = rustix::process::Pid::from_raw(told?.unwrap_or(0));
    if let Some(first) = first {
        rustix::process::waitpid(Some(first), WaitOptions::empty())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Receives the plan with the descriptors that came along.
fn receive() -> io::Result<Helper> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut length = [0; 4];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut length)];
    let got = rustix::net::recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL)?;
    let mut streams = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            streams.extend(rights);
        }
    }
    let streams = <[OwnedFd; STREAMS]>::try_from(streams);
    let (4, Ok(streams)) = (got.bytes, streams) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no plan with three descriptors"));
    };
    let plan = message::body(&socket, length)?;
    Ok(Helper { socket, plan, streams })
}

/// Leaves every namespace but that of control groups, and makes the first process of the new one.
fn isolate(helper: &Helper) -> Step<Fork> {
    for (flag, layer) in [
        (UnshareFlags::NEWUSER, Layer::UserNamespace),
        (UnshareFlags::NEWNS, Layer::MountNamespace),
        (UnshareFlags::NEWPID, Layer::PidNamespace),
        (UnshareFlags::NEWNET, Layer::NetNamespace),
        (UnshareFlags::NEWIPC, Layer::IpcNamespace),
        (UnshareFlags::NEWUTS, Layer::UtsNamespace),
    ] {
        sys::unshare(flag).map_err(missing(layer, "unshare"))?;
    }
    // Asked for after the change of rights, which clears it; the launcher may have died before.
    die_with_parent().map_err(missing(Layer::PidNamespace, "asking to die with the launcher"))?;
    let parent = rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid);
    if parent != helper.plan.launcher {
        return Err(Note::Missing { layer: Layer::PidNamespace, detail: "the launcher is gone".into() });
    }
    sys::fork().map_err(missing(Layer::PidNamespace, "fork"))
}

fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The first process: builds the room, starts the command, reaps, and reports the end of the command.
fn first(helper: Helper) -> Step<()> {
    let socket = helper.socket.try_clone().map_err(|error| Note::Start(error.to_string()))?;
    let told = prepare(&helper).and_then(|ready| supervise(helper, ready));
    if let Err(note) = &told {
        // The launcher may be gone, and then nobody needs to know.
        let _ = message::send(&socket, note);
    }
    told
}

/// What is left to do for the child that becomes the command.
struct Ready {
    programs: [seccompiler::BpfProgram; 2],
}

fn prepare(helper: &Helper) -> Step<Ready> {
    let plan = &helper.plan;
    let weaker = |layer: Layer, note: Note| {
        if plan.allowed.contains(&layer) {
            message::send(&helper.socket, &Note::Weaker(layer)).map_err(|error| Note::Start(error.to_string()))
        } else {
            Err(note)
        }
    };
    let dying = missing(Layer::PidNamespace, "asking to die with the launcher");
    die_with_parent().map_err(dying)?;
    let mut go = [0];
    (&helper.socket).read_exact(&mut go).map_err(missing(Layer::OwnUser, "waiting for the launcher"))?;
    sys::unshare(UnshareFlags::NEWCGROUP).map_err(missing(Layer::CgroupNamespace, "unshare"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(missing(Layer::MountNamespace, "cutting the mounts off"))?;
    let trees = open_mounts(&plan.command)?;
    let devices = open_devices()?;
    become_user(plan.drop_groups).map_err(missing(Layer::OwnUser, "taking the user id of the run"))?;
    die_with_parent().map_err(missing(Layer::PidNamespace, "asking to die with the launcher"))?;
    base(devices)?;
    if let Err(note) = proc() {
        weaker(Layer::Proc, note)?;
    }
    pivot().map_err(missing(Layer::Root, "changing the root folder"))?;
    furnish(&plan.command, trees)?;
    close_root().map_err(missing(Layer::Root, "closing the root folder"))?;
    rustix::system::sethostname(b"sandbox").map_err(missing(Layer::UtsNamespace, "naming the host"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(missing(Layer::NoPrivileges, "hiding the first process"))?;
    drop_privileges().map_err(missing(Layer::NoPrivileges, "dropping capabilities"))?;
    if let Err(error) = landlock_rules::supported() {
        weaker(Layer::Landlock, missing(Layer::Landlock, "asking for Landlock")(error))?;
    }
    Ok(Ready { programs: filter::programs().map_err(missing(Layer::SystemCalls, "compiling the list"))? })
}

/// Takes hold of what the command is to see, while the host's folders are still there.
fn open_mounts(command: &Command) -> Step<Vec<OwnedFd>> {
    command
        .mounts
        .iter()
        .map(|mount| {
            let tree =
                open_tree(&mount.host).map_err(|error| Note::Wrong(format!("{}: {error}", mount.host.display())))?;
            let set = NO_TRICKS | if mount.writable { 0 } else { RDONLY };
            let what = format!("closing {}", mount.host.display());
            sys::restrict_mount(tree.as_fd(), set).map_err(missing(Layer::Root, &what))?;
            Ok(tree)
        })
        .collect()
}

fn open_devices() -> Step<Vec<OwnedFd>> {
    let open = |name: &&str| open_tree(&Path::new("/dev").join(name));
    DEVICES.iter().map(open).collect::<io::Result<_>>().map_err(missing(Layer::Root, "opening the devices"))
}

fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Takes the one id that the namespace knows. Capabilities stay, because the namespace has no root to leave.
fn become_user(drop_groups: bool) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    if drop_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    let (user, group) = (Uid::from_raw(INSIDE_ID), Gid::from_raw(INSIDE_ID));
    rustix::thread::set_thread_res_gid(group, group, group)?;
    Ok(rustix::thread::set_thread_res_uid(user, user, user)?)
}

/// The new root folder with its devices.
fn base(devices: Vec<OwnedFd>) -> Step<()> {
    let build = || -> io::Result<()> {
        rustix::mount::mount("tmpfs", STAGING, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, ROOT_OPTIONS)?;
        rustix::process::chdir(STAGING)?;
        for folder in ["dev", "proc"] {
            DirBuilder::new().mode(0o755).create(folder)?;
        }
        for (name, device) in DEVICES.iter().zip(devices) {
            let place = Path::new("dev").join(name);
            drop(std::fs::File::create_new(&place)?);
            attach(&device, &place)?;
        }
        Ok(())
    };
    build().map_err(missing(Layer::Root, "building the root folder"))
}

/// A `/proc` of the new process namespace, mounted while the host's is still in sight, as the kernel wants it.
fn proc() -> Step<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    rustix::mount::mount("proc", "proc", "proc", flags, c"subset=pid,hidepid=invisible")
        .map_err(missing(Layer::Proc, "mounting it"))
}

/// Makes the current folder the root and lets go of the old one.
fn pivot() -> io::Result<()> {
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Puts mounts and scratch folders in their places, outer ones first. The host is gone already, so a link in a mount can
/// lead nowhere but inside.
fn furnish(command: &Command, trees: Vec<OwnedFd>) -> Step<()> {
    enum Item<'a> {
        Tree(OwnedFd),
        Scratch(&'a Scratch),
    }
    let trees = command.mounts.iter().zip(trees).map(|(mount, tree)| (mount.inside.as_path(), Item::Tree(tree)));
    let scratch = command.scratch.iter().map(|scratch| (scratch.inside.as_path(), Item::Scratch(scratch)));
    let mut items: Vec<_> = trees.chain(scratch).collect();
    items.sort_by_key(|(inside, _)| inside.components().count());
    for (inside, item) in items {
        let place = || -> io::Result<()> {
            match item {
                Item::Tree(tree) => {
                    let stat = rustix::fs::fstat(&tree)?;
                    let folder = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
                    make_place(inside, folder)?;
                    attach(&tree, inside)
                }
                Item::Scratch(scratch) => {
                    make_place(inside, true)?;
                    let options =
                        format!("size={},nr_inodes={},mode=755", scratch.bytes, scratch.inodes.saturating_add(1));
                    let options = std::ffi::CString::new(options)?;
                    let flags = MountFlags::NOSUID | MountFlags::NODEV;
                    Ok(rustix::mount::mount("tmpfs", inside, "tmpfs", flags, options.as_c_str())?)
                }
            }
        };
        place().map_err(|error| Note::Wrong(format!("placing {}: {error}", inside.display())))?;
    }
    Ok(())
}

/// Makes a folder or file to mount on, unless an outer mount has it.
fn make_place(inside: &Path, folder: bool) -> io::Result<()> {
    let parent = inside.parent().unwrap_or(Path::new("/"));
    let path = if folder { inside } else { parent };
    if !path.is_dir() {
        DirBuilder::new().mode(0o755).recursive(true).create(path)?;
    }
    if !folder && !inside.exists() {
        drop(std::fs::File::create_new(inside)?);
    }
    Ok(())
}

/// Makes the root folder itself read-only; what is mounted on it stays as it is.
fn close_root() -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount_remount("/", flags, c"")?)
}

fn drop_privileges() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // The first number that the kernel does not know ends the list.
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Err(rustix::io::Errno::INVAL) => break,
            other => other?,
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Starts the command, reaps everything, and reports how the command ended.
fn supervise(helper: Helper, ready: Ready) -> Step<()> {
    let start = |error: io::Error| Note::Start(error.to_string());
    let command = match sys::fork().map_err(start)? {
        Fork::Child => return Err(become_command(&helper, &ready)),
        Fork::Parent(pid) => pid,
    };
    let Helper { socket, streams, .. } = helper;
    drop(streams);
    loop {
        let Some((pid, status)) = rustix::process::wait(WaitOptions::empty()).map_err(|e| start(e.into()))? else {
            continue;
        };
        let (code, signal) = (status.exit_status(), status.terminating_signal());
        if pid.as_raw_pid() == command && (code.is_some() || signal.is_some()) {
            let cpu = sys::children_cpu().map_err(start)?;
            let cpu_us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
            let ended = Note::Ended { code, signal, cpu_us };
            return message::send(&socket, &ended).map_err(start);
        }
    }
}

/// Closes the last layers and becomes the command; returns only when something failed.
fn become_command(helper: &Helper, ready: &Ready) -> Note {
    let Err(note) = last_layers(helper, ready);
    note
}

fn last_layers(helper: &Helper, ready: &Ready) -> Step<std::convert::Infallible> {
    let (plan, command) = (&helper.plan, &helper.plan.command);
    let start = |error: io::Error| Note::Start(error.to_string());
    rustix::process::setsid().map_err(|error| start(error.into()))?;
    let streams = || -> io::Result<()> {
        let [input, output, error] = &helper.streams;
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        Ok(rustix::stdio::dup2_stderr(error)?)
    };
    streams().map_err(start)?;
    sys::default_signals();
    process_limits(plan).map_err(missing(Layer::ProcessLimits, "setrlimit"))?;
    let writable = command.mounts.iter().filter(|m| m.writable).map(|m| m.inside.as_path());
    let writable = writable.chain(command.scratch.iter().map(|s| s.inside.as_path()));
    if landlock_rules::supported().is_ok() {
        landlock_rules::restrict(writable).map_err(missing(Layer::Landlock, "putting the rules up"))?;
    }
    let mut program = std::process::Command::new(&command.program);
    program.args(&command.args).env_clear().envs(command.env.iter().cloned()).current_dir(&command.cwd);
    filter::install(&ready.programs).map_err(missing(Layer::SystemCalls, "installing the list"))?;
    Err(Note::Start(program.exec().to_string()))
}

fn process_limits(plan: &Plan) -> io::Result<()> {
    let limits = &plan.command.limits;
    // Whole seconds of one process, a second late where a group counts all processes to the millisecond.
    let late = u64::from(limits.cpu.subsec_nanos() > 0 || !plan.missing.contains(&Layer::CpuGroup));
    let cpu = limits.cpu.as_secs() + late;
    // For each, what a process gets and how far it may raise that.
    let mut set = vec![
        // One byte, because the kernel hands a dump to the host's handler even at a limit of zero, but not at one.
        (Resource::Core, 1, 1),
        (Resource::Fsize, limits.file_size, limits.file_size),
        (Resource::Nofile, limits.open_files.into(), limits.open_files.into()),
        (Resource::Nproc, u64::from(limits.pids) + 1, u64::from(limits.pids) + 1),
        (Resource::Memlock, 64 << 10, 64 << 10),
        (Resource::Msgqueue, 0, 0),
        // A signal that tells the limit from others, then one that cannot be ignored.
        (Resource::Cpu, cpu, cpu + 1),
    ];
    if plan.missing.contains(&Layer::MemoryGroup) {
        set.push((Resource::As, limits.memory, limits.memory));
    }
    for (resource, current, maximum) in set {
        let highest = rustix::process::getrlimit(resource).maximum;
        let within = |wanted: u64| Some(highest.map_or(wanted, |highest| wanted.min(highest)));
        rustix::process::setrlimit(resource, Rlimit { current: within(current), maximum: within(maximum) })?;
    }
    Ok(())
}
