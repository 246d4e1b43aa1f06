//! `perf gpu`: speed of every op on a CUDA device at the shapes of a 7B model.
#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "without CUDA there is nothing to measure"))]

#[cfg(feature = "cuda")]
mod measure;
#[cfg(feature = "cuda")]
mod workloads;

use std::process::ExitCode;

use kernels_cubecl::DeviceChoice;
#[cfg(not(feature = "cuda"))]
use kernels_cubecl::KernelError;

/// Arguments of `gpu`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The CUDA device: cuda:N
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// Measures only what has this in its name
    #[arg(long, default_value = "")]
    only: String,
}

/// Runs the subcommand.
#[cfg(feature = "cuda")]
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    use kernels_cubecl::Device;
    match arguments.device.resolve()? {
        Device::Cuda(device) | Device::CudaBf16(device) => workloads::run(&device, &arguments.only),
        Device::Cpu(_) => anyhow::bail!("perf gpu: expected a CUDA device, got {}; use perf cpu", arguments.device),
    }
    Ok(ExitCode::SUCCESS)
}

/// Says that this build cannot measure.
#[cfg(not(feature = "cuda"))]
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    Err(match arguments.device {
        DeviceChoice::Cuda(index) => KernelError::NoCuda(index),
        _ => KernelError::NoCuda(0),
    }
    .into())
}
