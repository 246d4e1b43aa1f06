//! Opening a CUDA device: everything that the kernels will need is looked for before the first of them runs.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Element, backend::Backend, get_device_settings};
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use super::bridge::{self, Facts};
use super::{CudaDevice, faults, sources};
use crate::KernelError;

/// Oldest driver, by the CUDA version it supports: the first with events of a whole context.
const MIN_DRIVER: i32 = 12_050;
/// Oldest architecture: the first with bf16 matrix units and asynchronous copies.
const MIN_CAPABILITY: i32 = 80;
/// Headers that the generated kernels include.
const HEADERS: [&str; 3] = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h"];

/// Finds CUDA device `index` and what its kernels need, and starts to watch for faults.
///
/// # Errors
/// [`KernelError::CudaMissing`] with what is missing and what to do.
pub fn open(index: usize) -> Result<CudaDevice, KernelError> {
    let missing = |what: String, action: &'static str| KernelError::CudaMissing { index, what, action };
    check_libraries(bridge::libraries(), index)?;
    let facts = bridge::facts(index).map_err(|error| {
        missing(format!("a working driver ({error})"), "run nvidia-smi; the driver must match the kernel")
    })?;
    check_facts(&facts, index)?;
    let include = cubecl::cuda::install::cuda_path().map(|path| path.join("include"));
    if let Some(header) = missing_header(include.as_deref()) {
        let action = "install the CUDA toolkit's headers and set CUDA_PATH to the folder that has include/";
        return Err(missing(format!("the CUDA header {}", header.display()), action));
    }
    separate_cache();
    faults::watch();
    Ok(CudaDevice::new(index))
}

/// What is missing without driver, NVRTC and cuBLASLt, and what to do about it.
const LIBRARIES: [(&str, &str); 3] = [
    ("the NVIDIA driver (libcuda)", "install the NVIDIA driver, or put the folder of libcuda into LD_LIBRARY_PATH"),
    (
        "the run-time compiler (libnvrtc)",
        "install the CUDA toolkit's NVRTC (package cuda-nvrtc), or put its folder into LD_LIBRARY_PATH",
    ),
    (
        "the matrix library (libcublasLt)",
        "install the CUDA toolkit's cuBLAS (package libcublas), or put its folder into LD_LIBRARY_PATH",
    ),
];

/// Checks that each of [`LIBRARIES`] can be loaded; they are loaded at run time, and a first use without them would panic.
fn check_libraries(present: [bool; 3], index: usize) -> Result<(), KernelError> {
    match LIBRARIES.iter().zip(present).find(|(_, present)| !present) {
        Some(((what, action), _)) => Err(KernelError::CudaMissing { index, what: (*what).to_owned(), action }),
        None => Ok(()),
    }
}

/// Checks that the matrix units of the device have FP8.
///
/// # Errors
/// [`KernelError::NoFp8`] with the device and its compute capability.
pub fn check_fp8(device: &CudaDevice) -> Result<(), KernelError> {
    if bridge::has_fp8(device) {
        return Ok(());
    }
    let capability = bridge::capability(device).map_or_else(String::new, |capability| {
        format!(", compute capability {}.{},", capability / 10, capability % 10)
    });
    Err(KernelError::NoFp8 { device: format!("cuda:{}{capability}", device.index) })
}

/// Checks driver, device and architecture.
fn check_facts(facts: &Facts, index: usize) -> Result<(), KernelError> {
    let missing = |what: String, action: &'static str| Err(KernelError::CudaMissing { index, what, action });
    if facts.driver < MIN_DRIVER {
        let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        let what = format!("a driver for CUDA {}, this one is for {}", version(MIN_DRIVER), version(facts.driver));
        return missing(what, "install a newer NVIDIA driver");
    }
    match facts.capability {
        None => missing(
            format!("the device; there are {}", facts.n_devices),
            "choose a lower index or check CUDA_VISIBLE_DEVICES",
        ),
        Some(capability) if capability < MIN_CAPABILITY => {
            let what = format!("compute capability 8.0, {} has {}.{}", facts.name, capability / 10, capability % 10);
            missing(what, "use a GPU of the Ampere generation or later, or --device cpu")
        }
        Some(_) => Ok(()),
    }
}

/// The first header that is not in the folder.
fn missing_header(include: Option<&Path>) -> Option<PathBuf> {
    match include {
        None => Some(PathBuf::from(HEADERS[0])),
        Some(include) => HEADERS.iter().map(|header| include.join(header)).find(|path| !path.is_file()),
    }
}

/// Gives this build's kernels a cache of their own, where the user has asked cubecl for one.
///
/// cubecl finds a cached kernel by its name and launch parameters and does not look at its source, so that an edited kernel
/// would run as it was before.
fn separate_cache() {
    use cubecl::config::cache::CacheConfig;
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        configure(|config| {
            if let Some(cache) = config.compilation.cache.take() {
                let folder = cache.root().join(format!("firebrick-{:016x}", sources::HASH));
                config.compilation.cache = Some(CacheConfig::File(folder));
            }
        });
    });
}

/// Changes cubecl's settings, which it reads when a device is used for the first time.
fn configure(change: impl FnOnce(&mut CubeClRuntimeConfig)) {
    let mut state = CubeClRuntimeConfig::storage().lock();
    let mut config = match state.as_ref() {
        Some(config) => config.as_ref().clone(),
        None => CubeClRuntimeConfig::from_current_dir().override_from_env(),
    };
    change(&mut config);
    *state = Some(std::sync::Arc::new(config));
}

/// Makes the backend's element type the default of the device, which burn keeps for the whole process.
///
/// # Errors
/// [`KernelError::TwoPrecisions`] when it has another one: tensors made of host data would have that silently.
pub fn claim<B: Backend<Device = CudaDevice>>(device: &CudaDevice) -> Result<(), KernelError> {
    let default: DType = get_device_settings::<B>(device).float_dtype.into();
    if default == B::FloatElem::dtype() { Ok(()) } else { Err(KernelError::TwoPrecisions(device.index)) }
}

/// Makes the memory pool keep every buffer for the next one of exactly its size, from now on and for all devices.
///
/// A training step asks for the same sizes again and again, so that nothing fragments and the pool ends at the peak. Work whose
/// sizes change from call to call would fill the device instead. It counts only for devices that have not been used yet.
pub fn keep_exact_sizes() {
    use cubecl::config::memory::PersistentMemory;
    configure(|config| config.memory.persistent_memory = PersistentMemory::Enforced);
}

/// Makes the device thread panic, as a broken kernel does, so that a check can see the fault reported.
pub fn provoke_fault(device: &CudaDevice) {
    bridge::submit_panic(device);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(driver: i32, n_devices: usize, capability: Option<i32>) -> Facts {
        Facts { driver, n_devices, capability, name: "test".into() }
    }

    #[test]
    fn what_is_missing_is_said_with_exit_code_4() {
        for (facts, want) in [
            (facts(11_080, 1, Some(90)), "CUDA 12.5"),
            (facts(13_000, 1, None), "there are 1"),
            (facts(13_000, 1, Some(75)), "has 7.5"),
        ] {
            let error = check_facts(&facts, 3).expect_err("must not pass");
            assert_eq!(error.exit_code(), 4);
            let text = error.to_string();
            assert!(text.contains(want) && text.contains("cuda:3"), "{text}");
        }
        assert_eq!(check_facts(&facts(13_000, 1, Some(80)), 0), Ok(()));
    }

    #[test]
    fn every_library_is_missed_by_name() {
        for (missing, name) in [(0, "libcuda"), (1, "libnvrtc"), (2, "libcublasLt")] {
            let mut present = [true; 3];
            present[missing] = false;
            let error = check_libraries(present, 2).expect_err("must not pass");
            assert_eq!(error.exit_code(), 4);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("install") && text.contains("cuda:2"), "{text}");
        }
        assert_eq!(check_libraries([true; 3], 0), Ok(()));
        // Without a driver nothing else can be used.
        assert!(check_libraries([false; 3], 0).expect_err("must not pass").to_string().contains("libcuda"));
    }

    #[test]
    fn a_folder_without_headers_is_named() {
        let path = missing_header(Some(Path::new("nowhere"))).expect("is missing");
        assert!(path.ends_with("cuda_runtime.h"));
        assert!(missing_header(None).is_some());
    }

    /// Without a driver the device does not open; with one it does.
    #[test]
    fn opening_never_panics() {
        if let Err(error) = open(0) {
            assert_eq!(error.exit_code(), 4, "{error}");
        }
    }
}
