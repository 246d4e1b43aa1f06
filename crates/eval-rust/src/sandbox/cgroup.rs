//! Control groups of a run, in version 1 and version 2, below the group that this process is in.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::error::Layer;
use super::types::Limits;

/// Begins the name of every group made here: then the launcher's process namespace, its process id, its start time and a
/// number.
const PREFIX: &str = "firebrick";

/// How often an emptied group is asked to go before it counts as left behind, one millisecond apart.
const TRIES: u32 = 1000;

/// A controller that a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    fn layer(self) -> Layer {
        match self {
            Self::Memory => Layer::MemoryGroup,
            Self::Pids => Layer::PidsGroup,
            Self::Cpu => Layer::CpuGroup,
        }
    }

    /// Its name in version 1. Version 2 always counts processor time.
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpuacct",
        }
    }

    /// A file that a group with this controller has.
    fn file(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, Version::One) => "memory.limit_in_bytes",
            (Self::Memory, Version::Two) => "memory.max",
            (Self::Pids, _) => "pids.max",
            (Self::Cpu, Version::One) => "cpuacct.usage",
            (Self::Cpu, Version::Two) => "cpu.stat",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The groups of one run.
#[derive(Debug)]
pub(crate) struct Groups {
    /// One folder for each hierarchy in use.
    folders: Vec<PathBuf>,
    /// That of version 2 among them.
    unified: Option<PathBuf>,
    memory: Option<(PathBuf, Version)>,
    cpu: Option<(PathBuf, Version)>,
    /// Controllers that could not be had, with the reason.
    pub(crate) missing: Vec<(Layer, String)>,
}

impl Groups {
    /// Makes the groups of a run and sets their limits; what cannot be had is in `missing`.
    pub(crate) fn create(limits: &Limits, number: u64) -> Self {
        Self::create_in(&places(), &format!("{}{number}", own_prefix()), limits)
    }

    fn create_in(places: &[Place], name: &str, limits: &Limits) -> Self {
        let mut groups = Self { folders: Vec::new(), unified: None, memory: None, cpu: None, missing: Vec::new() };
        for controller in Controller::ALL {
            match groups.add(controller, places, name, limits) {
                Ok(()) => {}
                Err(error) => groups.missing.push((controller.layer(), error.to_string())),
            }
        }
        groups
    }

    fn add(&mut self, controller: Controller, places: &[Place], name: &str, limits: &Limits) -> io::Result<()> {
        let mut last = io::Error::other("no hierarchy of control groups has this controller");
        for place in places.iter().filter(|place| place.has(controller)) {
            let folder = place.folder.join(name);
            // A process is in one group of a hierarchy only, so version 2 has one group for every controller.
            if place.version == Version::Two && self.unified.as_ref().is_some_and(|unified| *unified != folder) {
                continue;
            }
            let made =
                make(&folder, place, controller).and_then(|()| limit(&folder, place.version, controller, limits));
            match made {
                Ok(()) => {
                    let entry = (folder.clone(), place.version);
                    match controller {
                        Controller::Memory => self.memory = Some(entry),
                        Controller::Pids => {}
                        Controller::Cpu => self.cpu = Some(entry),
                    }
                    if place.version == Version::Two {
                        self.unified = Some(folder.clone());
                    }
                    if !self.folders.contains(&folder) {
                        self.folders.push(folder);
                    }
                    return Ok(());
                }
                Err(error) => {
                    if !self.folders.contains(&folder) {
                        // A group that cannot be used and cannot be removed is empty; the next start removes it.
                        let _ = fs::remove_dir(&folder);
                    }
                    last = io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
                }
            }
        }
        Err(last)
    }

    /// Puts a process into every group.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn admit(&self, pid: i32) -> io::Result<()> {
        self.folders.iter().try_for_each(|folder| set(&folder.join("cgroup.procs"), pid))
    }

    /// Whether the kernel has killed a process of the run for memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        let Some((folder, version)) = &self.memory else { return false };
        let file = if *version == Version::One { "memory.oom_control" } else { "memory.events" };
        field(&folder.join(file), "oom_kill").is_some_and(|kills| kills > 0)
    }

    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let (folder, version) = self.cpu.as_ref()?;
        match version {
            Version::One => number(&folder.join("cpuacct.usage")).map(Duration::from_nanos),
            Version::Two => field(&folder.join("cpu.stat"), "usage_usec").map(Duration::from_micros),
        }
    }

    /// Largest memory so far, in bytes.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let (folder, version) = self.memory.as_ref()?;
        let file = if *version == Version::One { "memory.max_usage_in_bytes" } else { "memory.peak" };
        number(&folder.join(file))
    }

    /// Removes the groups, killing whatever is still in them.
    ///
    /// # Errors
    /// A group that does not go, named with its path and what is in it.
    pub(crate) fn remove(self) -> io::Result<()> {
        self.folders.iter().try_for_each(|folder| remove(folder))
    }
}

/// A group in which groups can be made.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
    version: Version,
    /// Names of the controllers of this hierarchy, for version 1.
    controllers: Vec<String>,
}

impl Place {
    fn has(&self, controller: Controller) -> bool {
        match self.version {
            Version::One => self.controllers.iter().any(|name| name == controller.name()),
            Version::Two => {
                let known = fs::read_to_string(self.folder.join("cgroup.controllers")).unwrap_or_default();
                controller == Controller::Cpu || known.split_whitespace().any(|name| name == controller.name())
            }
        }
    }
}

/// Where groups can be made: in the own group of each hierarchy of version 1, then in the own group of version 2 and in
/// those above it, because a group of version 2 that holds processes cannot hand controllers down.
fn places() -> Vec<Place> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut places = Vec::new();
    let mut unified = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let controllers: Vec<String> = controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
        let version = if controllers.is_empty() { Version::Two } else { Version::One };
        let Some((mount, folder)) = mounts.lines().find_map(|line| locate(line, &controllers, path)) else { continue };
        if version == Version::One {
            places.push(Place { folder, version, controllers });
        } else {
            let above = folder.ancestors().take_while(|above| above.starts_with(&mount));
            unified.extend(above.map(|above| Place { folder: above.into(), version, controllers: Vec::new() }));
        }
    }
    places.extend(unified);
    places
}

/// The mount point of a hierarchy and the folder of the group `path` in it, if this line of `mountinfo` is its mount.
fn locate(line: &str, controllers: &[String], path: &str) -> Option<(PathBuf, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, mount) = (left.next()?, PathBuf::from(left.next()?));
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let fits = match controllers {
        [] => kind == "cgroup2",
        all => kind == "cgroup" && all.iter().all(|one| options.split(',').any(|option| option == one)),
    };
    if !fits {
        return None;
    }
    // A container may see its own group as the root of the mount.
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let folder = mount.join(below.strip_prefix("/").unwrap_or(below));
    folder.is_dir().then_some((mount, folder))
}

fn make(folder: &Path, place: &Place, controller: Controller) -> io::Result<()> {
    if place.version == Version::Two && controller != Controller::Cpu {
        let control = place.folder.join("cgroup.subtree_control");
        let handed_down = fs::read_to_string(&control)?;
        if !handed_down.split_whitespace().any(|name| name == controller.name()) {
            set(&control, format_args!("+{}", controller.name()))?;
        }
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let file = folder.join(controller.file(place.version));
    fs::metadata(&file)
        .map(|_| ())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

fn limit(folder: &Path, version: Version, controller: Controller, limits: &Limits) -> io::Result<()> {
    match (controller, version) {
        (Controller::Memory, Version::One) => {
            set(&folder.join("memory.limit_in_bytes"), limits.memory)?;
            set_if_there(&folder.join("memory.memsw.limit_in_bytes"), limits.memory)
        }
        (Controller::Memory, Version::Two) => {
            set(&folder.join("memory.max"), limits.memory)?;
            set_if_there(&folder.join("memory.swap.max"), 0)?;
            set_if_there(&folder.join("memory.oom.group"), 1)
        }
        // The first process of the run, which is ours, is one more.
        (Controller::Pids, _) => set(&folder.join("pids.max"), u64::from(limits.pids) + 1),
        (Controller::Cpu, _) => Ok(()),
    }
}

/// Writes a file of the kernel, which exists already.
fn set(path: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    let write = || fs::File::options().write(true).open(path)?.write_all(value.to_string().as_bytes());
    write().map_err(|error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn set_if_there(path: &Path, value: u64) -> io::Result<()> {
    if path.exists() { set(path, value) } else { Ok(()) }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `name` in a file of lines `name number`.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn processes(folder: &Path) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits for a group to be empty, kills what stays, and removes it.
fn remove(folder: &Path) -> io::Result<()> {
    let mut last = io::Error::other("not tried");
    for attempt in 0..TRIES {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Another user's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(error) => last = error,
        }
        // The dead are still listed for a moment; whoever is there after that is alive.
        if attempt >= TRIES / 10 {
            for pid in processes(folder).into_iter().filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        sleep(Duration::from_millis(1));
    }
    let text = format!("{} with processes {:?}: {last}", folder.display(), processes(folder));
    Err(io::Error::new(last.kind(), text))
}

/// Removes groups whose launcher no longer lives; others are left alone.
pub(crate) fn clean_leftovers() {
    for place in places() {
        for entry in fs::read_dir(&place.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if launcher_is_gone(&name) {
                // What does not go now is tried again by the next start.
                let _ = remove(&entry.path());
            }
        }
    }
}

/// Whether a name is ours and its launcher is dead: no such process, or another one with its id. Ids of another process
/// namespace, such as another container's, say nothing here.
fn launcher_is_gone(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    let [PREFIX, namespace, pid, started, _] = parts[..] else { return false };
    let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else { return false };
    namespace == process_namespace() && start_time(pid) != Some(started)
}

fn own_prefix() -> String {
    let pid = std::process::id();
    format!("{PREFIX}-{}-{pid}-{}-", process_namespace(), start_time(pid).unwrap_or(0))
}

/// The number of the process namespace, or nothing where `/proc` does not say.
fn process_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

/// When a process started, in ticks since the machine did.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, so count from the last bracket.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_dead_launchers_are_leftovers() {
        let own = own_prefix();
        assert!(!launcher_is_gone(&format!("{own}0")), "{own}");
        let (here, pid) = (process_namespace(), std::process::id());
        let started = start_time(pid).unwrap();
        assert!(launcher_is_gone(&format!("{PREFIX}-{here}-{pid}-{}-0", started + 1)));
        assert!(launcher_is_gone(&format!("{PREFIX}-{here}-4194305-1-0")), "no process has this id");
        assert!(!launcher_is_gone(&format!("{PREFIX}-{here}1-4194305-1-0")), "another container");
        for other in ["system.slice", "firebrick", "firebrick-1-x-1-0", "firebrick-1", "docker-1-4194305-1-0"] {
            assert!(!launcher_is_gone(other), "{other}");
        }
    }

    #[test]
    fn groups_are_found_through_the_mounts() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().to_str().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let two = format!("31 23 0:28 / {mount} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate");
        assert_eq!(locate(&two, &[], "/a/b").unwrap(), (mount.into(), folder.path().join("a/b")));
        assert!(locate(&two, &["memory".into()], "/a/b").is_none());
        assert!(locate(&two, &[], "/absent").is_none());
        let one = format!("35 31 0:32 /docker/x {mount} rw - cgroup cgroup rw,cpu,cpuacct");
        let found = locate(&one, &["cpu".into(), "cpuacct".into()], "/docker/x/a").unwrap();
        assert_eq!(found.1, folder.path().join("a"));
    }

    /// Version 2 with files that stand for the kernel's: the own group holds processes and hands nothing down.
    #[test]
    fn version_two_has_one_group_for_all_controllers() {
        let folder = tempfile::tempdir().unwrap();
        let (above, own) = (folder.path().to_owned(), folder.path().join("own"));
        fs::create_dir_all(own.join("run")).unwrap();
        fs::create_dir(above.join("run")).unwrap();
        let write = |path: PathBuf, text: &str| fs::write(path, text).unwrap();
        for place in [&above, &own] {
            write(place.join("cgroup.controllers"), "cpu memory pids");
            write(place.join("run/cpu.stat"), "usage_usec 2500000\nuser_usec 1\n");
        }
        write(above.join("cgroup.subtree_control"), "memory pids");
        for file in ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.procs"] {
            write(above.join("run").join(file), "");
        }
        write(above.join("run/memory.events"), "low 0\noom 1\noom_kill 2\noom_group_kill 0\n");
        write(above.join("run/memory.peak"), "4096\n");
        let place = |folder: &Path| Place { folder: folder.into(), version: Version::Two, controllers: Vec::new() };
        let second = Duration::from_secs(1);
        let limits =
            Limits { wall: second, cpu: second, memory: 1 << 20, pids: 7, output: 1, file_size: 1, open_files: 1 };
        let groups = Groups::create_in(&[place(&own), place(&above)], "run", &limits);
        assert_eq!(groups.missing, Vec::new());
        assert_eq!(groups.folders, [above.join("run")]);
        let read = |file: &str| fs::read_to_string(above.join("run").join(file)).unwrap();
        assert_eq!(["memory.max", "memory.swap.max", "pids.max"].map(read), ["1048576", "0", "8"]);
        assert!(groups.out_of_memory());
        assert_eq!((groups.cpu(), groups.peak_memory()), (Some(Duration::from_micros(2_500_000)), Some(4096)));
        groups.admit(42).unwrap();
        assert_eq!(read("cgroup.procs"), "42");
        // Without a place that hands memory down, it is missing by name.
        let groups = Groups::create_in(&[place(&own)], "run", &limits);
        let layers: Vec<Layer> = groups.missing.iter().map(|(layer, _)| *layer).collect();
        assert_eq!(layers, [Layer::MemoryGroup, Layer::PidsGroup]);
    }
}
