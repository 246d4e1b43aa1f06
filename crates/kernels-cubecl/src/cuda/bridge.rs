//! The one place with unsafe code: cuBLASLt on cubecl's memory, and questions to the driver before cubecl starts.
//!
//! Foreign work runs on a stream of its own. It waits for everything that the context has enqueued so far, and everything
//! that comes later waits for it; so the order of the calls is the order on the device, whatever streams cubecl uses.
#![expect(unsafe_code, reason = "calls to the CUDA driver and to cuBLASLt, whose bindings are unsafe")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{from_ref, null_mut};

use cubecl::server::{Binding, ComputeServer};
use cubecl_common::{device::Device, device_handle::DeviceHandle, stream_id::StreamId};
use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;

use super::gemm::{Gemm, Types};
use super::{Buffer, CudaDevice, Runtime, faults};

/// cubecl's server, which lives on the device thread.
type Server = <Runtime as cubecl::prelude::Runtime>::Server;

/// Scratch memory of the matrix products; one is enough, because they run one after the other.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Best alignment that cuBLASLt asks about.
const MAX_ALIGNMENT: u32 = 256;

thread_local! {
    /// Handles to the devices that this thread uses.
    static DEVICES: RefCell<HashMap<usize, DeviceHandle<Server>>> = RefCell::default();
    /// State of the device thread.
    static FOREIGN: RefCell<Option<Foreign>> = const { RefCell::new(None) };
}

/// Runs `task` on cubecl's device thread, after what is enqueued already.
fn submit(device: &CudaDevice, task: impl FnOnce(&mut Server) + Send + 'static) {
    DEVICES.with_borrow_mut(|devices| {
        devices.entry(device.index).or_insert_with(|| DeviceHandle::new(device.to_id())).submit(task);
    });
}

/// Panics on the device thread, as a broken kernel does; [`faults::guarded`] must report it.
pub(super) fn submit_panic(device: &CudaDevice) {
    submit(device, |_| faults::on_device_thread("provoked fault", || panic!("provoked on the device thread")));
}

fn check(call: &str, result: driver::CUresult) {
    assert!(result == driver::CUresult::CUDA_SUCCESS, "{call}: {result:?}");
}

/// What foreign work needs on a device thread.
struct Foreign {
    context: driver::CUcontext,
    stream: driver::CUstream,
    before: driver::CUevent,
    after: driver::CUevent,
    lt: lt_sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

/// What a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    problem: Gemm,
    types: Types,
    /// Alignment of `a`, `b` and `c` in bytes.
    alignment: [u32; 3],
}

/// Descriptors and algorithm of a product; they live as long as the process.
struct Plan {
    description: lt_sys::cublasLtMatmulDesc_t,
    first: lt_sys::cublasLtMatrixLayout_t,
    second: lt_sys::cublasLtMatrixLayout_t,
    result: lt_sys::cublasLtMatrixLayout_t,
    algorithm: lt_sys::cublasLtMatmulAlgo_t,
}

impl Foreign {
    fn new() -> Self {
        let (mut context, mut stream, mut before, mut after) = (null_mut(), null_mut(), null_mut(), null_mut());
        let mut workspace = 0;
        // SAFETY: every pointer is to a live local variable; cubecl has made its context current on this thread.
        unsafe {
            check("cuCtxGetCurrent", driver::cuCtxGetCurrent(&mut context));
            check("cuStreamCreate", driver::cuStreamCreate(&mut stream, NON_BLOCKING));
            check("cuEventCreate", driver::cuEventCreate(&mut before, WITHOUT_TIMING));
            check("cuEventCreate", driver::cuEventCreate(&mut after, WITHOUT_TIMING));
            check("cuMemAlloc", driver::cuMemAlloc_v2(&mut workspace, WORKSPACE_BYTES));
        }
        let lt = lt::create_handle().unwrap_or_else(|error| panic!("cublasLtCreate: {error:?}"));
        Self { context, stream, before, after, lt, workspace, plans: HashMap::new() }
    }

    /// Runs `work` so that it comes after all earlier and before all later work of the context.
    fn in_order(&self, work: impl FnOnce()) {
        // SAFETY: context, stream and events are those made in `new`, on this thread, and are never destroyed.
        unsafe {
            check("cuCtxRecordEvent", driver::cuCtxRecordEvent(self.context, self.before));
            check("cuStreamWaitEvent", driver::cuStreamWaitEvent(self.stream, self.before, 0));
        }
        work();
        // SAFETY: as above.
        unsafe {
            check("cuEventRecord", driver::cuEventRecord(self.after, self.stream));
            check("cuCtxWaitEvent", driver::cuCtxWaitEvent(self.context, self.after));
        }
    }

    fn multiply(&mut self, key: Key, [a, b, c]: [u64; 3]) {
        let lt = self.lt;
        self.plans.entry(key).or_insert_with(|| Plan::new(lt, key));
        let plan = &self.plans[&key];
        let (one, beta) = (1.0f32, if key.problem.accumulate { 1.0f32 } else { 0.0 });
        self.in_order(|| {
            // SAFETY: the descriptors belong to this product; `gemm` checked that the buffers are as long as it needs, and
            // their memory is kept by the order of the streams; both factors outlive the call, which reads them at once.
            let result = unsafe {
                lt::matmul(
                    lt,
                    plan.description,
                    from_ref(&one).cast(),
                    from_ref(&beta).cast(),
                    b as *const c_void,
                    plan.first,
                    a as *const c_void,
                    plan.second,
                    c as *const c_void,
                    plan.result,
                    c as *mut c_void,
                    plan.result,
                    &plan.algorithm,
                    self.workspace as *mut c_void,
                    WORKSPACE_BYTES,
                    self.stream.cast(),
                )
            };
            result.unwrap_or_else(|error| panic!("cublasLtMatmul of {key:?}: {error:?}"));
        });
    }
}

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIMING: u32 = 2;

impl Plan {
    /// A row-major `c = op(a)·op(b)` is a column-major `cᵀ = op(b)ᵀ·op(a)ᵀ`, so cuBLASLt's first operand is our `b`.
    fn new(handle: lt_sys::cublasLtHandle_t, key: Key) -> Self {
        use lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        use lt_sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let Key { problem: Gemm { m, n, k, a_transposed, b_transposed, .. }, types, .. } = key;
        let element = |bf16: bool| if bf16 { CUDA_R_16BF } else { CUDA_R_32F };
        let fail = |what: &str, error| -> ! { panic!("{what} of {key:?}: {error:?}") };
        let layout = |bf16: bool, rows: usize, columns: usize| {
            lt::create_matrix_layout(element(bf16), rows as u64, columns as u64, rows as i64)
                .unwrap_or_else(|error| fail("cuBLASLt layout", error))
        };
        let first = if b_transposed { layout(types.bf16_in, k, n) } else { layout(types.bf16_in, n, k) };
        let second = if a_transposed { layout(types.bf16_in, m, k) } else { layout(types.bf16_in, k, m) };
        let result = layout(types.bf16_out, n, m);
        let description = lt::create_matmul_desc(CUBLAS_COMPUTE_32F, CUDA_R_32F)
            .unwrap_or_else(|error| fail("cuBLASLt description", error));
        transpose(description, [b_transposed, a_transposed]).unwrap_or_else(|error| fail("cuBLASLt operands", error));
        let preference = preference(key.alignment).unwrap_or_else(|error| fail("cuBLASLt preference", error));
        // SAFETY: all descriptors were made above and are alive; the preference is destroyed once, after its last use.
        let algorithm = unsafe {
            let found = lt::get_matmul_algo_heuristic(handle, description, first, second, result, result, preference);
            let _ = lt::destroy_matmul_pref(preference);
            found.unwrap_or_else(|error| fail("cuBLASLt has no algorithm; choice", error)).algo
        };
        Self { description, first, second, result, algorithm }
    }
}

/// Says which operands of cuBLASLt are transposed.
fn transpose(
    description: lt_sys::cublasLtMatmulDesc_t,
    transposed: [bool; 2],
) -> Result<(), cudarc::cublaslt::result::CublasError> {
    use lt_sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
    for (attribute, transposed) in
        [CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB].into_iter().zip(transposed)
    {
        let value = i32::from(transposed);
        // SAFETY: the description is alive and the attribute is an `int` that is copied.
        unsafe { lt::set_matmul_desc_attribute(description, attribute, from_ref(&value).cast(), size_of::<i32>())? };
    }
    Ok(())
}

/// How much workspace there is, and how the buffers are aligned.
fn preference(
    alignment: [u32; 3],
) -> Result<lt_sys::cublasLtMatmulPreference_t, cudarc::cublaslt::result::CublasError> {
    use lt_sys::cublasLtMatmulPreferenceAttributes_t::{
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    let preference = lt::create_matmul_pref()?;
    let [a, b, c] = alignment;
    let alignments = [
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
    ];
    // SAFETY: the preference is alive; the workspace attribute is a `size_t`, the others are `uint32_t`, and all are copied.
    unsafe {
        let workspace = WORKSPACE_BYTES;
        let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        lt::set_matmul_pref_attribute(preference, attribute, from_ref(&workspace).cast(), size_of::<usize>())?;
        for (attribute, bytes) in alignments {
            lt::set_matmul_pref_attribute(preference, attribute, from_ref(&bytes).cast(), size_of::<u32>())?;
        }
    }
    Ok(preference)
}

/// Enqueues a product; `gemm` has checked the buffers.
pub(super) fn enqueue_gemm(op: &'static str, buffers: [&Buffer; 3], problem: Gemm, types: Types) {
    let stream = StreamId::current();
    let bindings: [Binding; 3] = buffers.map(|buffer| buffer.handle.clone().binding());
    submit(&buffers[0].device, move |server| {
        faults::on_device_thread(op, || {
            let pointers = bindings.map(|binding| match server.get_resource(binding, stream) {
                Ok(resource) => resource.resource().ptr,
                Err(error) => panic!("memory of a product: {error:?}"),
            });
            let alignment = pointers.map(|at| (1 << at.trailing_zeros().min(MAX_ALIGNMENT.ilog2())) as u32);
            FOREIGN.with_borrow_mut(|foreign| {
                foreign.get_or_insert_with(Foreign::new).multiply(Key { problem, types, alignment }, pointers);
            });
        });
    });
}

/// What the driver says about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Version of CUDA that the driver supports, as 1000·major + 10·minor.
    pub(super) driver: i32,
    /// Number of devices.
    pub(super) n_devices: usize,
    /// Compute capability as 10·major + minor, where the device exists.
    pub(super) capability: Option<i32>,
    /// Name of the device, where it exists.
    pub(super) name: String,
}

/// Which of the libraries that are loaded at run time can be loaded: driver, NVRTC, cuBLASLt.
pub(super) fn libraries() -> [bool; 3] {
    // SAFETY: loading a library runs its initialisers; these three are NVIDIA's own.
    unsafe { [driver::is_culib_present(), nvrtc::is_culib_present(), lt_sys::is_culib_present()] }
}

/// Asks the driver about device `index`; the driver's library must be there.
pub(super) fn facts(index: usize) -> Result<Facts, String> {
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
        facts.capability = Some(10 * major + minor);
    }
    Ok(facts)
}
