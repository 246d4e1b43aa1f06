//! Questions to the driver before cubecl starts.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys as lt_sys;
use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;

use super::CudaDevice;
use crate::DeviceMemory;

/// Oldest architecture whose matrix units have FP8.
const FP8_CAPABILITY: i32 = 89;

/// The capability that devices are treated as having; 0 for their own.
static TREATED_AS: AtomicI32 = AtomicI32::new(0);

/// Treats every device as one of this compute capability, 10·major + minor, or as what it is where that is less: kernels of later
/// architectures are not chosen, and own CUDA C++ is compiled as PTX for it, which the driver translates.
///
/// For checks of what older cards run. It counts from the first use of a device on; matrix products are chosen by cuBLASLt, which
/// knows the card, and cubecl compiles for what the driver's library says.
pub fn treat_as(capability: i32) {
    TREATED_AS.store(capability, Ordering::Relaxed);
}

/// The capability that is chosen by, and the architecture that NVRTC compiles for, of a device of this capability.
pub(super) fn target(own: i32) -> (i32, String) {
    match TREATED_AS.load(Ordering::Relaxed) {
        0 => (own, format!("sm_{own}")),
        other => (own.min(other), format!("compute_{}", own.min(other))),
    }
}

/// What the driver says about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Facts {
    /// Version of CUDA that the driver supports, as 1000·major + 10·minor.
    pub(in super::super) driver: i32,
    /// Number of devices.
    pub(in super::super) n_devices: usize,
    /// Compute capability as 10·major + minor, where the device exists; see [`treat_as`].
    pub(in super::super) capability: Option<i32>,
    /// Name of the device, where it exists.
    pub(in super::super) name: String,
}

/// Which of the libraries that are loaded at run time can be loaded: driver, NVRTC, cuBLASLt.
pub(in super::super) fn libraries() -> [bool; 3] {
    // SAFETY: loading a library runs its initialisers; these three are NVIDIA's own.
    unsafe { [driver::is_culib_present(), nvrtc::is_culib_present(), lt_sys::is_culib_present()] }
}

/// Compute capability of a device as 10·major + minor, where the driver says it.
pub(crate) fn capability(device: &CudaDevice) -> Option<i32> {
    static KNOWN: Mutex<BTreeMap<usize, Option<i32>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let ask = || facts(device.index).ok().and_then(|facts| facts.capability);
    *known.entry(device.index).or_insert_with(ask)
}

/// True where the device's matrix units have FP8.
pub(crate) fn has_fp8(device: &CudaDevice) -> bool {
    capability(device).is_some_and(|capability| capability >= FP8_CAPABILITY)
}

/// Asks the driver about device `index`; the driver's library must be there.
pub(in super::super) fn facts(index: usize) -> Result<Facts, String> {
    let fail = |call: &str, result: driver::CUresult| match result {
        driver::CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(format!("{call}: {result:?}")),
    };
    let (mut version, mut n_devices): (c_int, c_int) = (0, 0);
    // SAFETY: every pointer is to a live local variable.
    unsafe {
        fail("cuInit", driver::cuInit(0))?;
        fail("cuDriverGetVersion", driver::cuDriverGetVersion(&mut version))?;
        fail("cuDeviceGetCount", driver::cuDeviceGetCount(&mut n_devices))?;
    }
    let mut facts = Facts { driver: version, n_devices: n_devices as usize, capability: None, name: String::new() };
    if index < facts.n_devices {
        use driver::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        };
        let (mut device, mut major, mut minor, mut name) = (0, 0, 0, [0; 128]);
        // SAFETY: every pointer is to a live local variable; the name is written with its terminating zero into the array.
        unsafe {
            fail("cuDeviceGet", driver::cuDeviceGet(&mut device, index as c_int))?;
            let attribute = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
            fail("cuDeviceGetAttribute", driver::cuDeviceGetAttribute(&mut major, attribute, device))?;
            let attribute = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
            fail("cuDeviceGetAttribute", driver::cuDeviceGetAttribute(&mut minor, attribute, device))?;
            fail("cuDeviceGetName", driver::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
            facts.name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        }
        facts.capability = Some(target(10 * major + minor).0);
    }
    Ok(facts)
}

/// Asks the driver for the memory of device `index`; `None` where it does not answer.
pub fn device_memory(index: usize) -> Option<DeviceMemory> {
    let ok = |result| result == driver::CUresult::CUDA_SUCCESS;
    let (mut device, mut context, mut free, mut total) = (0, std::ptr::null_mut(), 0, 0);
    // SAFETY: every pointer is to a live local variable; the primary context is the one that cubecl uses, it is retained and
    // released in pairs, and the calling thread's current context is put back.
    unsafe {
        if !ok(driver::cuInit(0)) || !ok(driver::cuDeviceGet(&mut device, c_int::try_from(index).ok()?)) {
            return None;
        }
        if !ok(driver::cuDevicePrimaryCtxRetain(&mut context, device)) {
            return None;
        }
        let asked = ok(driver::cuCtxPushCurrent_v2(context)) && {
            let asked = ok(driver::cuMemGetInfo_v2(&mut free, &mut total));
            let mut popped = std::ptr::null_mut();
            ok(driver::cuCtxPopCurrent_v2(&mut popped)) && asked
        };
        let _ = driver::cuDevicePrimaryCtxRelease_v2(device);
        asked.then_some(DeviceMemory { free: free as u64, total: total as u64 })
    }
}
