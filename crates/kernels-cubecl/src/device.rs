//! Where the numbers are computed: parsing and resolving `--device`.

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
}

impl DeviceChoice {
    /// Finds the device.
    ///
    /// # Errors
    /// [`KernelError::NoCuda`] when CUDA is asked for and this build has none.
    pub fn resolve(self) -> Result<Device, KernelError> {
        match self {
            Self::Auto | Self::Cpu => Ok(Device::Cpu(Default::default())),
            Self::Cuda(index) => Err(KernelError::NoCuda(index)),
        }
    }
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
    fn cuda_without_cuda_is_exit_code_4() {
        assert_eq!(DeviceChoice::Cuda(1).resolve().unwrap_err().exit_code(), 4);
        assert_eq!(DeviceChoice::Auto.resolve(), DeviceChoice::Cpu.resolve());
    }
}
