//! The error type of this crate.

use thiserror::Error;

/// What can go wrong when a device is chosen or an op meets bad data. Shape mistakes in op calls are programmer errors and
/// panic with the values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The text after `--device` is not a device.
    #[error("parse device: expected auto, cpu or cuda:N, got {0:?}; for example --device cpu")]
    UnknownDevice(String),
    /// The text after `--precision` is not an element type.
    #[error("parse precision: expected f32 or bf16, got {0:?}; for example --precision f32")]
    UnknownPrecision(String),
    /// A CUDA device was asked for and this program has no CUDA support.
    #[error(
        "open device cuda:{0}: this program was built without CUDA; use --device cpu or build with the feature cuda"
    )]
    NoCuda(usize),
    /// The CPU was asked for bf16.
    #[error("precision bf16: the CPU kernels are f32; use --device cuda:N, or set the precision to f32")]
    NoBf16,
    /// The device has been used with another element type in this process.
    #[error("device cuda:{0}: this process has used it with another precision; use one precision per process")]
    TwoPrecisions(usize),
    /// This program could use CUDA, but the machine lacks something.
    #[error("open device cuda:{index}: missing {what}; {action}")]
    CudaMissing {
        /// Index of the device.
        index: usize,
        /// What is missing, and what there is.
        what: String,
        /// What to do.
        action: &'static str,
    },
    /// A device without matrix units for FP8 was asked for it.
    #[error(
        "precision fp8: {device} has no FP8 matrix units, which compute capability 8.9 and later have; set the precision to bf16"
    )]
    NoFp8 {
        /// The device, with its compute capability where it has one.
        device: String,
    },
    /// An op failed on the device's own thread, after it was called.
    #[error(
        "{op} on CUDA: the kernel did not run: {message}; results since then are garbage, resume from the last checkpoint"
    )]
    DeviceFault {
        /// The op, or the last one that was called.
        op: String,
        /// What went wrong, and where.
        message: String,
    },
    /// The device has no memory left for an op.
    #[error(
        "{op} on CUDA: the device is out of memory{}; results since then are garbage, resume from the last checkpoint with recompute = true, 8-bit moments or a smaller micro-batch",
        asked(*bytes)
    )]
    OutOfMemory {
        /// The op, or the last one that was called.
        op: String,
        /// How much was asked for, where the message says it.
        bytes: Option<u64>,
    },
    /// A target token that the head does not have.
    #[error(
        "{op}: target of row {row} must be below the vocabulary size {vocab_size} or -100, got {target}; check the labels against the tokenizer"
    )]
    Target {
        /// The op.
        op: &'static str,
        /// Row of the target.
        row: usize,
        /// The target.
        target: i32,
        /// Rows of the head.
        vocab_size: usize,
    },
    /// Bytes that are no MXFP4 matrix of these dimensions.
    #[error(
        "MXFP4 matrix {dims:?}: {blocks} bytes of codes and {scales} scales; a row needs i/2 and i/32 with i a multiple of 32, check the checkpoint's shapes"
    )]
    Mxfp4 {
        /// Rows and width in numbers.
        dims: [usize; 2],
        /// Bytes of codes.
        blocks: usize,
        /// Bytes of scales.
        scales: usize,
    },
    /// Numbers that are no FP8 matrix of these dimensions.
    #[error(
        "FP8 matrix {dims:?}: {got} numbers; it needs as many as rows times width, a multiple of 4; keep these weights in another format"
    )]
    Fp8Rows {
        /// Rows and width in numbers.
        dims: [usize; 2],
        /// How many numbers there are.
        got: usize,
    },
    /// Numbers that do not fill whole blocks.
    #[error("quantise to MXFP4: {got} numbers are no whole blocks of 32; pad the rows")]
    Mxfp4Length {
        /// Their number.
        got: usize,
    },
}

impl KernelError {
    /// Exit code of a program that ends with this error: 2 for bad usage, 4 for something that the environment lacks.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownDevice(_)
            | Self::UnknownPrecision(_)
            | Self::Target { .. }
            | Self::Mxfp4 { .. }
            | Self::Mxfp4Length { .. }
            | Self::Fp8Rows { .. } => 2,
            Self::NoCuda(_)
            | Self::NoBf16
            | Self::NoFp8 { .. }
            | Self::TwoPrecisions(_)
            | Self::CudaMissing { .. }
            | Self::DeviceFault { .. }
            | Self::OutOfMemory { .. } => 4,
        }
    }
}

fn asked(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(", {bytes} bytes were asked for"))
}
