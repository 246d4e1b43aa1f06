//! What a run is asked to do, what it may use, and what came of it: the seam between the sandbox and the judge.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{Layer, SandboxError};

/// Runs one command and reports what it did.
pub trait Run {
    /// Runs `command` to its end or to its first limit, and leaves nothing of it behind.
    ///
    /// # Errors
    /// Any [`SandboxError`]: the command did not run, or its result cannot be trusted. Such a run earns nothing.
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError>;
}

/// A program with everything that it will see.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// The program, as an absolute path inside.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub args: Vec<OsString>,
    /// Its whole environment; nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// The folder that it starts in, inside.
    pub cwd: PathBuf,
    /// What it reads from standard input, to the end of file.
    #[serde(skip)]
    pub stdin: Vec<u8>,
    /// Files and folders of the host that it sees.
    pub mounts: Vec<Mount>,
    /// Empty folders in memory that it may write, gone after the run.
    pub scratch: Vec<Scratch>,
    /// What it may use.
    pub limits: Limits,
}

/// A file or folder of the host, shown inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is. Everyone must be able to read it, because a run as root gets a user id of its own.
    pub host: PathBuf,
    /// Where it appears, as an absolute path.
    pub inside: PathBuf,
    /// Whether the command may write it. Where root runs the sandbox, the folder is given to the user id of the run.
    pub writable: bool,
}

/// An empty folder in memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scratch {
    /// Where it appears, as an absolute path.
    pub inside: PathBuf,
    /// Bytes that fit; they count towards the memory limit too.
    pub bytes: u64,
    /// Files and folders that fit.
    pub inodes: u64,
}

/// What a run may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Time on the clock, launch included.
    pub wall: Duration,
    /// Time on processors, over all processes of the run.
    pub cpu: Duration,
    /// Bytes of memory, over all processes and scratch folders.
    pub memory: u64,
    /// Processes and threads at one time.
    pub pids: u32,
    /// Bytes kept of each output stream; one byte more ends the run.
    pub output: u64,
    /// Bytes of the largest file.
    pub file_size: u64,
    /// Open files of each process.
    pub open_files: u32,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The program ended by itself with this code.
    Exit(i32),
    /// A signal ended the program.
    Signal(i32),
    /// The wall limit.
    WallTime,
    /// The limit on processor time.
    CpuTime,
    /// The kernel killed a process of the run for memory.
    Memory,
    /// One stream wrote more than is kept.
    Output,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// First bytes of standard output, at most `Limits::output`.
    pub stdout: Vec<u8>,
    /// First bytes of standard error, at most `Limits::output`.
    pub stderr: Vec<u8>,
    /// Whether a stream wrote more than was kept.
    pub truncated: bool,
    /// Time on the clock from the start of the launch to the end of the program.
    pub wall: Duration,
    /// Time on processors.
    pub cpu: Duration,
    /// Largest memory in bytes, file pages included; 0 where nothing measured it.
    pub peak_memory: u64,
    /// Layers that were missing and that the caller had allowed to be; empty for a run at full strength.
    pub weaker: Vec<Layer>,
}
