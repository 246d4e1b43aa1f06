//! Where the numbers are computed: parsing and resolving `--device`.

#[cfg(feature = "cuda")]
use std::io::Write;
use std::process::ExitCode;
use std::{fmt, str::FromStr};

use burn::tensor::backend::BackendTypes;

use crate::KernelError;

/// The CPU backend: pure Rust, nothing to install.
pub type Cpu = burn::backend::Flex;

/// What the user asked for with `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best device that this build and machine have.
    #[default]
    Auto,
    /// The CPU backend.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU, through [`Cpu`].
    Cpu(<Cpu as BackendTypes>::Device),
    /// A CUDA device, through [`crate::Cuda`].
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::CudaDevice),
    /// The same device in bf16, through [`crate::CudaBf16`].
    #[cfg(feature = "cuda")]
    CudaBf16(crate::cuda::CudaDevice),
}

/// Element type of weights and activations; sums inside the ops are f32 or wider in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponent of f32; CUDA only.
    Bf16,
}

/// Memory of a device in bytes, as the driver counts it: all processes, pools and libraries included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not in use.
    pub free: u64,
    /// There is.
    pub total: u64,
}

/// As `cuda::keep_exact_sizes`: devices that are used from now on keep every buffer for the next one of exactly its size. A
/// build without CUDA has no such devices.
pub fn keep_exact_sizes() {
    #[cfg(feature = "cuda")]
    crate::cuda::keep_exact_sizes();
}

impl Device {
    /// The device's own memory; `None` for the CPU, or where the driver does not answer.
    pub fn memory(&self) -> Option<DeviceMemory> {
        match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) | Self::CudaBf16(device) => crate::cuda::device_memory(device.index),
        }
    }

    /// Checks that the matrix units of the device have FP8; without them a layer in FP8 is computed on the host, for tests alone.
    ///
    /// # Errors
    /// [`KernelError::NoFp8`] with the device.
    pub fn check_fp8(&self) -> Result<(), KernelError> {
        match self {
            Self::Cpu(_) => Err(KernelError::NoFp8 { device: "the CPU".to_owned() }),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) | Self::CudaBf16(device) => crate::cuda::check_fp8(device),
        }
    }

    /// The same device with another element type.
    ///
    /// # Errors
    /// [`KernelError::NoBf16`] on the CPU, whose kernels are f32; [`KernelError::TwoPrecisions`] when this process has used
    /// the device with the other type, because burn keeps one default type per device and process.
    pub fn with(self, precision: Precision) -> Result<Self, KernelError> {
        match (self, precision) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(device) | Self::CudaBf16(device), Precision::F32) => {
                crate::cuda::claim::<crate::Cuda>(&device).map(|()| Self::Cuda(device))
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(device) | Self::CudaBf16(device), Precision::Bf16) => {
                crate::cuda::claim::<crate::CudaBf16>(&device).map(|()| Self::CudaBf16(device))
            }
            (cpu @ Self::Cpu(_), Precision::F32) => Ok(cpu),
            (Self::Cpu(_), Precision::Bf16) => Err(KernelError::NoBf16),
        }
    }
}

impl DeviceChoice {
    /// Finds the device. The best one is CUDA device 0 where this build has CUDA and the device works, the CPU otherwise.
    ///
    /// # Errors
    /// [`KernelError::NoCuda`] when CUDA is asked for and this build has none, [`KernelError::CudaMissing`] when the machine
    /// lacks something for it.
    pub fn resolve(self) -> Result<Device, KernelError> {
        let cpu = Device::Cpu(Default::default());
        match self {
            Self::Auto => Ok(open_cuda(0).unwrap_or(cpu)),
            Self::Cpu => Ok(cpu),
            Self::Cuda(index) => open_cuda(index),
        }
    }
}

/// What `main` returns for an exit code.
///
/// After a fault of a device the process ends here: the driver's own end, on a device whose thread has failed, can crash and take
/// the code with it.
pub fn leave(code: u8) -> ExitCode {
    #[cfg(feature = "cuda")]
    if crate::cuda::broken() {
        let _ = std::io::stdout().flush();
        crate::cuda::end_process(code);
    }
    ExitCode::from(code)
}

/// Runs an expression on the backend of a device: `on_device!(device, B, on => work::<B>(&on))`.
///
/// `B` is the backend's type and `on` its device. The value is a `Result` whose error is a fault of the device, see
/// [`KernelError::DeviceFault`]; the CPU has none. Callers need no feature of their own: this crate knows its backends.
#[cfg(feature = "cuda")]
#[macro_export]
macro_rules! on_device {
    ($device:expr, $backend:ident, $on:ident => $work:expr) => {
        match $device {
            $crate::Device::Cpu($on) => {
                type $backend = $crate::Cpu;
                Ok::<_, $crate::KernelError>($work)
            }
            $crate::Device::Cuda($on) => {
                type $backend = $crate::Cuda;
                $crate::cuda::guarded(|| $work)
            }
            $crate::Device::CudaBf16($on) => {
                type $backend = $crate::CudaBf16;
                $crate::cuda::guarded(|| $work)
            }
        }
    };
}

/// Runs an expression on the backend of a device: `on_device!(device, B, on => work::<B>(&on))`.
///
/// `B` is the backend's type and `on` its device. The value is a `Result` whose error is a fault of the device, see
/// [`KernelError::DeviceFault`]; the CPU has none. Callers need no feature of their own: this crate knows its backends.
#[cfg(not(feature = "cuda"))]
#[macro_export]
macro_rules! on_device {
    ($device:expr, $backend:ident, $on:ident => $work:expr) => {
        match $device {
            $crate::Device::Cpu($on) => {
                type $backend = $crate::Cpu;
                Ok::<_, $crate::KernelError>($work)
            }
        }
    };
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, KernelError> {
    crate::cuda::open(index).map(Device::Cuda)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<Device, KernelError> {
    Err(KernelError::NoCuda(index))
}

impl FromStr for DeviceChoice {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| KernelError::UnknownDevice(text.to_owned())),
        }
    }
}

impl FromStr for Precision {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(KernelError::UnknownPrecision(text.to_owned())),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_text_parses_and_prints() {
        for (text, choice) in
            [("auto", DeviceChoice::Auto), ("cpu", DeviceChoice::Cpu), ("cuda:3", DeviceChoice::Cuda(3))]
        {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CPU"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text:?}: {error}");
        }
    }

    #[test]
    fn precision_text_parses_and_prints() {
        for (text, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
            assert_eq!(text.parse::<Precision>().unwrap(), precision);
            assert_eq!(precision.to_string(), text);
        }
        assert_eq!("fp8".parse::<Precision>().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_cpu_has_no_bf16() {
        let cpu = DeviceChoice::Cpu.resolve().unwrap();
        assert_eq!(cpu.clone().with(Precision::F32), Ok(cpu.clone()));
        assert_eq!(cpu.with(Precision::Bf16).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn the_cpu_has_no_fp8() {
        let error = DeviceChoice::Cpu.resolve().unwrap().check_fp8().unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("bf16"), "{error}");
    }

    #[test]
    fn cuda_without_cuda_is_exit_code_4() {
        // An index that no machine has, so that the test also holds where there are GPUs.
        assert_eq!(DeviceChoice::Cuda(1000).resolve().unwrap_err().exit_code(), 4);
        #[cfg(not(feature = "cuda"))]
        assert_eq!(DeviceChoice::Auto.resolve(), DeviceChoice::Cpu.resolve());
    }
}
