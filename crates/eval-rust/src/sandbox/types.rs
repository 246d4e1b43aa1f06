//! What a run in the sandbox is asked for and what it answers.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Something that runs a command under limits, apart from everything else.
pub trait Run {
    /// Runs the command to its end, whatever the end is.
    ///
    /// # Errors
    /// [`SandboxError`] when the command could not be run as asked; how the command itself ended is in the outcome.
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError>;
}

/// What to run, what it sees and how much it may take.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program, as a path inside.
    pub program: PathBuf,
    /// Arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, as a path inside.
    pub cwd: PathBuf,
    /// Everything that can be read from standard input.
    pub stdin: Vec<u8>,
    /// Host paths that are visible inside.
    pub mounts: Vec<Mount>,
    /// Empty writable folders, gone afterwards.
    pub scratch: Vec<Scratch>,
    /// Limits.
    pub limits: Limits,
}

/// A host path that is visible inside.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The path outside.
    pub host: PathBuf,
    /// The path inside.
    pub inside: PathBuf,
    /// May be changed from inside.
    pub writable: bool,
}

/// An empty writable folder that is gone afterwards.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// The path inside.
    pub inside: PathBuf,
    /// Most bytes in it.
    pub bytes: u64,
    /// Most files and folders in it.
    pub inodes: u64,
}

/// What a run may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall time.
    pub wall: Duration,
    /// CPU time of all processes together.
    pub cpu: Duration,
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes kept of each output stream.
    pub output: u64,
    /// Bytes of one file.
    pub file_size: u64,
    /// Open files of one process.
    pub open_files: u32,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With an exit code.
    Exit(i32),
    /// By a signal.
    Signal(i32),
    /// At the limit of wall time.
    WallTime,
    /// At the limit of CPU time.
    CpuTime,
    /// At the limit of memory.
    Memory,
    /// At the limit of output.
    Output,
}

/// What a run left.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The kept part of standard output.
    pub stdout: Vec<u8>,
    /// The kept part of standard error.
    pub stderr: Vec<u8>,
    /// Some output was not kept.
    pub truncated: bool,
    /// Wall time.
    pub wall: Duration,
    /// CPU time of all processes together.
    pub cpu: Duration,
    /// Most bytes of memory at one time.
    pub peak_memory: u64,
}

/// Why a command was not run as asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Starting or watching it failed.
    #[error("{op}: {source}; the run says nothing about the program that was to run")]
    Io {
        /// What was tried.
        op: String,
        /// The operating system's error.
        source: std::io::Error,
    },
}
