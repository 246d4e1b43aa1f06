//! The one error type of this crate.

use std::path::PathBuf;

/// What can stop a training run, or keep it from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration cannot be read or has a wrong key or value.
    #[error("configuration {origin}: {problem}; correct the file or the --set option")]
    Config {
        /// File or option.
        origin: String,
        /// Key, what was expected, what came.
        problem: String,
    },
    /// A file or folder could not be read or written.
    #[error("could not {action} {path}: {source}; check permissions and free space", path = path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another process trains in the same folder.
    #[error("{path} is locked by another run; wait for it, stop it, or train into another folder", path = path.display())]
    Locked {
        /// The stage folder.
        path: PathBuf,
    },
    /// The volume has too little room for a checkpoint.
    #[error("{path}: a checkpoint needs about {needed} bytes, {free} are free; free space or point the run elsewhere", path = path.display())]
    NoSpace {
        /// The stage folder.
        path: PathBuf,
        /// Bytes wanted, reserve included.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The device has too little memory for the run.
    #[error(
        "the run needs about {needed} bytes of device memory, {free} are free; {advice}\n{plan}",
        needed = plan.total()
    )]
    NoDeviceMemory {
        /// What needs how much.
        plan: Box<crate::memory::MemoryPlan>,
        /// Bytes free.
        free: u64,
        /// What to change, and what the run would need then.
        advice: String,
    },
    /// The host has too little memory for what the run offloads to it.
    #[error(
        "the run needs {needed} bytes of host memory for offloaded inputs, {available} are available; set train.offload = {fit}, use a smaller train.tokens_per_micro_batch, or free memory"
    )]
    NoHostMemory {
        /// Bytes wanted.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// Blocks whose inputs would fit.
        fit: u64,
    },
    /// The folder has checkpoints, but the run was not asked to resume.
    #[error("{path} already holds a run; pass --resume to continue it, or choose another folder", path = path.display())]
    RunExists {
        /// The stage folder.
        path: PathBuf,
    },
    /// Checkpoints exist and none verifies.
    #[error("{path}: none of {found} checkpoints is intact, the last problem was: {problem}; restore one from a backup, or start into a new folder", path = path.display())]
    NoIntactCheckpoint {
        /// The checkpoints folder.
        path: PathBuf,
        /// How many were tried.
        found: usize,
        /// Why the last one failed.
        problem: String,
    },
    /// A checkpoint does not fit the run that wants to resume from it.
    #[error("cannot resume from {path}: {field} was {was}, now it is {now}; resume with the same one or start a new run", path = path.display())]
    ResumeMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// In the checkpoint.
        was: String,
        /// In the run.
        now: String,
    },
    /// A checkpoint was written by another version.
    #[error("{path}: checkpoint format {found}, this build reads {expected}; use the build that wrote it", path = path.display())]
    CheckpointVersion {
        /// The manifest.
        path: PathBuf,
        /// Version in the file.
        found: u64,
        /// Version of this build.
        expected: u32,
    },
    /// Too many steps in a row were not finite.
    #[error(
        "step {step}: loss {loss} or gradient norm {grad_norm} is not finite for the {bad_steps}th step in a row; the weights are those of the last good step: lower the learning rate or look at the data of these steps"
    )]
    NotFinite {
        /// Step number, from 1.
        step: u64,
        /// Loss of the step.
        loss: f64,
        /// Gradient norm of the step.
        grad_norm: f64,
        /// Skipped steps in a row.
        bad_steps: u64,
    },
    /// Saving failed several times in a row.
    #[error(
        "step {step}: saving failed {failures} times in a row, last: {source}; free space or repair the volume, then --resume"
    )]
    SaveFailed {
        /// Step number.
        step: u64,
        /// Failures in a row.
        failures: u64,
        /// The last failure.
        source: Box<TrainError>,
    },
    /// A batch does not have what its objective needs.
    #[error("batch: {problem}")]
    Batch {
        /// What is missing and what to do.
        problem: String,
    },
    /// A record that is no conversation of the model's chat format.
    #[error("{path}:{line}: {source}", path = path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        source: Box<model_core::ModelError>,
    },
    /// Data of another vocabulary or tokenizer.
    #[error(
        "{what} was made with tokenizer {found}, the model has {expected}; tokenize again with the model's tokenizer"
    )]
    TokenizerMismatch {
        /// The data.
        what: String,
        /// Hash in the data.
        found: String,
        /// Hash of the model's tokenizer.
        expected: String,
    },
    /// An adapter that did not train.
    #[error(transparent)]
    Model(#[from] model_core::ModelError),
    /// Data that cannot be read.
    #[error(transparent)]
    Data(#[from] data_pipeline::DataError),
    /// A gate that was not passed.
    #[error("{0}; pass the gate first, or give --override-gate REASON, which is recorded in the lineage")]
    Gate(#[from] gates::GateError),
    /// Hashing or an atomic write failed.
    #[error(transparent)]
    Artifact(#[from] gates::artifact::ArtifactError),
    /// A file of ours that is not what it should be.
    #[error("{path}: {problem}; write it again with this build, or restore it from a backup", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        problem: String,
    },
    /// A bound on what a run may do was passed.
    #[error("step {step}: {problem}; the last checkpoint is intact")]
    Guard {
        /// Step number, from 1.
        step: u64,
        /// The number, its bound, and what to do.
        problem: String,
    },
    /// Something outside training that a stage needs: a sandbox, a judge, a tool.
    #[error("{cause}")]
    Outside {
        /// Exit code of the program.
        exit_code: u8,
        /// What happened.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device is not there.
    #[error(transparent)]
    Kernel(#[from] kernels_cubecl::KernelError),
}

impl TrainError {
    /// Wraps an operating system error with its verb and path.
    pub fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A record that is no conversation.
    pub(crate) fn record(path: &std::path::Path, line: usize, source: model_core::ModelError) -> Self {
        Self::Record { path: path.to_path_buf(), line, source: Box::new(source) }
    }

    /// A file of ours that is not what it should be.
    pub(crate) fn broken(path: &std::path::Path, problem: String) -> Self {
        Self::Broken { path: path.to_path_buf(), problem }
    }

    /// The exit code of the command-line contract: 1 a gate said no, 3 stopped by a safety rule, 4 the environment lacks
    /// something, 2 everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Gate(_) => 1,
            Self::Outside { exit_code, .. } => *exit_code,
            Self::NotFinite { .. }
            | Self::Guard { .. }
            | Self::SaveFailed { .. }
            | Self::Model(model_core::ModelError::AdapterInert { .. }) => 3,
            Self::NoSpace { .. } | Self::NoDeviceMemory { .. } | Self::NoHostMemory { .. } => 4,
            Self::Kernel(error) => error.exit_code(),
            _ => 2,
        }
    }
}
