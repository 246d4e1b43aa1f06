//! `perf gpu`: speed of every op on a CUDA device at the shapes of a 7B model.
#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "without CUDA there is nothing to measure"))]

#[cfg(feature = "cuda")]
mod experts;
#[cfg(feature = "cuda")]
mod measure;
#[cfg(feature = "cuda")]
mod workloads;

use std::collections::HashMap;
use std::path::PathBuf;
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
    /// What benches/rival/torch_ops.py printed on this card, to print how the speeds compare
    #[arg(long)]
    rival: Option<PathBuf>,
}

/// Microseconds by name, of lines "NAME MICROSECONDS us ...".
fn rival_times(text: &str) -> HashMap<String, f64> {
    let line = |line: &str| {
        let (name, time) = line.split_once(" us ")?.0.rsplit_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), time.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Runs the subcommand.
#[cfg(feature = "cuda")]
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    use anyhow::Context as _;
    use kernels_cubecl::Device;
    let rival = match &arguments.rival {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let times = rival_times(&text);
            anyhow::ensure!(!times.is_empty(), "{}: expected the lines of torch_ops.py, found none", path.display());
            times
        }
        None => HashMap::new(),
    };
    match arguments.device.resolve()? {
        Device::Cuda(device) | Device::CudaBf16(device) => workloads::run(&device, &arguments.only, &rival),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rivals_lines_are_read_by_name() {
        let text = "PyTorch 2.11, H100\nlinear y 4096x4096 to 6144                   301.5 us    683.10 TFLOP/s\nnot a line us\n";
        let times = rival_times(text);
        assert_eq!(times, HashMap::from([("linear y 4096x4096 to 6144".to_owned(), 301.5)]));
    }
}
