//! The list of permitted system calls: what rustc, cargo, a linker and ordinary programs use, and nothing else.
//!
//! Everything else fails with EPERM. `clone3` alone fails with ENOSYS, because its flags lie in memory where a filter
//! cannot look; the C library then takes `clone`, whose flags are looked at.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Bits of `clone` that ask for new namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Requests of `ioctl` on descriptors: close-on-exec, non-blocking, bytes waiting, and whether something is a terminal.
const IOCTLS: [u64; 6] = [libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO, libc::FIONREAD, libc::TCGETS, libc::TIOCGWINSZ];

/// Options of `prctl` that name threads and memory, or read.
const PRCTLS: [libc::c_int; 6] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_PDEATHSIG,
    libc::PR_SET_VMA,
    libc::PR_CAPBSET_READ,
];

/// Calls that every architecture has.
#[rustfmt::skip]
const EVERYWHERE: &[c_long] = &[
    // Files.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_openat, libc::SYS_openat2,
    libc::SYS_close, libc::SYS_close_range, libc::SYS_lseek, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat,
    libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_mknodat,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat,
    libc::SYS_ftruncate, libc::SYS_truncate, libc::SYS_fallocate, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_sync_file_range, libc::SYS_fadvise64, libc::SYS_readahead, libc::SYS_sendfile,
    libc::SYS_copy_file_range, libc::SYS_splice, libc::SYS_tee, libc::SYS_flock, libc::SYS_fcntl, libc::SYS_umask,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr,
    libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_flistxattr,
    // Waiting for descriptors.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_signalfd4, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Ends of a socket pair; no other socket exists.
    libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_shutdown,
    libc::SYS_getsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk,
    libc::SYS_mincore, libc::SYS_msync, libc::SYS_mlock, libc::SYS_munlock, libc::SYS_membarrier,
    // Processes and threads.
    libc::SYS_clone3, libc::SYS_execve, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal,
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getpgid, libc::SYS_setpgid, libc::SYS_getsid,
    libc::SYS_setsid, libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq,
    libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_getpriority, libc::SYS_setpriority,
    libc::SYS_getcpu,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    // Time.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_gettimeofday, libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_times,
    // Who and where.
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
];

/// Calls whose place is taken by newer ones elsewhere.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_getdents, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_link,
    libc::SYS_symlink, libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime, libc::SYS_utimes,
    libc::SYS_futimesat, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create,
    libc::SYS_epoll_wait, libc::SYS_eventfd, libc::SYS_signalfd, libc::SYS_inotify_init, libc::SYS_vfork,
    libc::SYS_fork, libc::SYS_getpgrp, libc::SYS_time, libc::SYS_alarm, libc::SYS_pause, libc::SYS_arch_prctl,
    libc::SYS_mknod,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Further calls that every architecture has and that only read.
const READING: &[c_long] = &[
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_capget,
];

/// The two programs, in the order in which they are installed.
///
/// # Errors
/// On an architecture that the compiler of filters does not know.
pub(crate) fn programs() -> io::Result<[BpfProgram; 2]> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let build = |rules, mismatch, matched| {
        let filter = SeccompFilter::new(rules, mismatch, matched, arch).map_err(io::Error::other)?;
        BpfProgram::try_from(filter).map_err(io::Error::other)
    };
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([
        build(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        build(permitted()?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?,
    ])
}

/// Permits the calls of the list from here on, for this process and all its descendants.
///
/// # Errors
/// The system's.
pub(crate) fn install(programs: &[BpfProgram]) -> io::Result<()> {
    programs.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
}

fn permitted() -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        EVERYWHERE.iter().chain(OLDER).chain(READING).map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?]);
    rules.insert(libc::SYS_socketpair, vec![rule(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?]);
    rules.insert(libc::SYS_ioctl, equal_to_one_of(1, IOCTLS.into_iter())?);
    rules.insert(libc::SYS_prctl, equal_to_one_of(0, PRCTLS.into_iter().map(|option| option as u64))?);
    // Its own limits: those of the first process, which has the same user, would end the run without a report.
    rules.insert(libc::SYS_prlimit64, vec![rule(0, SeccompCmpOp::Eq, 0)?]);
    Ok(rules)
}

fn equal_to_one_of(argument: u8, values: impl Iterator<Item = u64>) -> io::Result<Vec<SeccompRule>> {
    values.map(|value| rule(argument, SeccompCmpOp::Eq, value)).collect()
}

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).map_err(io::Error::other)?;
    SeccompRule::new(vec![condition]).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_dangerous_call_is_on_the_list() {
        let rules = permitted().unwrap();
        for call in [
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_userfaultfd,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_perf_event_open,
            libc::SYS_socket,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_memfd_secret,
            libc::SYS_memfd_create,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_setgroups,
            libc::SYS_capset,
            libc::SYS_seccomp,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_quotactl,
            libc::SYS_syslog,
            libc::SYS_shmget,
            libc::SYS_msgget,
            libc::SYS_semget,
            libc::SYS_mq_open,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_personality,
            libc::SYS_execveat,
            libc::SYS_vmsplice,
        ] {
            assert!(!rules.contains_key(&call), "system call {call}");
        }
        // These are on it with some arguments only.
        for call in [libc::SYS_prlimit64, libc::SYS_clone, libc::SYS_socketpair, libc::SYS_ioctl, libc::SYS_prctl] {
            assert!(!rules[&call].is_empty(), "system call {call}");
        }
        assert_eq!(programs().unwrap().len(), 2);
    }
}
