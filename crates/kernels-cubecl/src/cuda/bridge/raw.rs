//! Own kernels in CUDA C++, for what cubecl cannot express; compiled by NVRTC when they are first launched.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys;
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use half::bf16;

use super::{Buffer, check, enqueue, target};

/// A kernel in CUDA C++.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawKernel {
    /// Its `extern "C"` name.
    pub(crate) name: &'static str,
    /// The text that has it.
    pub(crate) source: &'static str,
    /// Preprocessor definitions, for instance `D=128`; each set of them is compiled once.
    pub(crate) defines: &'static [&'static str],
    /// Dynamic shared memory in bytes.
    pub(crate) shared_bytes: u32,
    /// Whether it uses instructions of one architecture alone, as `sm_90a`.
    pub(crate) one_architecture: bool,
}

/// How many blocks, of how many threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks by x, y and z.
    pub(crate) blocks: [usize; 3],
    /// Threads of a block.
    pub(crate) threads: usize,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument<'a> {
    /// The address of a tensor's first element.
    Buffer(&'a Buffer),
    /// `int`.
    I32(i32),
    /// `float`.
    F32(f32),
    /// A `CUtensorMap` by value, through which a dense bf16 tensor `[matrices, rows, columns]` is copied in boxes of
    /// [`BOX`] rows and columns with the 128-byte swizzle. What a box has beyond a matrix reads as zeros and is not written.
    Map(&'a Buffer, [usize; 3]),
}

/// Rows and columns of a box.
const BOX: u32 = 64;

/// The argument as it travels to the device thread.
enum Value {
    Address(usize),
    Plain([u8; 4]),
    Map(usize, [usize; 3]),
}

/// An argument in memory, aligned as the strictest of them asks for.
#[repr(align(128))]
struct Slot(sys::CUtensorMap);

impl Slot {
    /// A number of at most eight bytes; little-endian, so that a shorter one is its beginning.
    fn plain(word: u64) -> Self {
        let mut opaque = [0; 16];
        opaque[0] = word;
        Self(sys::CUtensorMap { opaque })
    }

    /// The map of a tensor at `address`.
    fn map(address: u64, [matrices, rows, columns]: [usize; 3]) -> Self {
        use sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        use sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        use sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        use sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        use sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let sizes = [columns, rows, matrices].map(|size| size as u64);
        let row_bytes = (columns * size_of::<bf16>()) as u64;
        let strides = [row_bytes, row_bytes * rows as u64];
        let (extent, steps) = ([BOX, BOX, 1], [1; 3]);
        // SAFETY: every pointer is to a live local array of the rank's length; strides are one shorter.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                sizes.len() as u32,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                extent.as_ptr(),
                steps.as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", result);
        Self(map)
    }
}

impl RawKernel {
    /// Enqueues the kernel; an empty grid runs nothing.
    ///
    /// # Panics
    /// On the device thread, when the kernel does not compile or launch; the next op reports it.
    pub(crate) fn launch(self, op: &'static str, grid: Grid, arguments: &[Argument<'_>]) {
        if grid.blocks.contains(&0) {
            return;
        }
        let mut buffers = Vec::new();
        let value = |argument: &Argument<'_>| match *argument {
            Argument::Buffer(_) => Value::Address(0),
            Argument::Map(_, shape) => Value::Map(0, shape),
            Argument::I32(value) => Value::Plain(value.to_le_bytes()),
            Argument::F32(value) => Value::Plain(value.to_le_bytes()),
        };
        let mut values: Vec<Value> = arguments.iter().map(value).collect();
        for (argument, value) in arguments.iter().zip(&mut values) {
            if let (Value::Address(index) | Value::Map(index, _), Argument::Buffer(buffer) | Argument::Map(buffer, _)) =
                (value, *argument)
            {
                *index = buffers.len();
                buffers.push(buffer);
            }
        }
        enqueue(op, &buffers, move |foreign, addresses| {
            let function = foreign.modules.function(self);
            let slot = |value: &Value| match *value {
                Value::Address(index) => Slot::plain(addresses[index]),
                Value::Plain([a, b, c, d]) => Slot::plain(u32::from_le_bytes([a, b, c, d]).into()),
                Value::Map(index, shape) => Slot::map(addresses[index], shape),
            };
            let mut slots: Vec<Slot> = values.iter().map(slot).collect();
            let mut pointers: Vec<*mut c_void> =
                slots.iter_mut().map(|slot| std::ptr::from_mut(&mut slot.0).cast()).collect();
            let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
            // SAFETY: the function is loaded and lives as long as the process; the slots outlive the call, which copies the
            // arguments at their beginnings. That number and types of the arguments are the kernel's, and the buffers as long
            // as it needs, is for the op that owns the kernel.
            let result = unsafe {
                let (threads, shared) = (grid.threads as u32, self.shared_bytes);
                let arguments = pointers.as_mut_ptr();
                sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, foreign.stream, arguments, null_mut())
            };
            check(self.name, result);
        });
    }
}

/// The kernels of a device thread that are compiled already.
#[derive(Default)]
pub(super) struct Modules {
    functions: HashMap<(&'static str, &'static [&'static str]), sys::CUfunction>,
}

impl Modules {
    fn function(&mut self, kernel: RawKernel) -> sys::CUfunction {
        *self.functions.entry((kernel.name, kernel.defines)).or_insert_with(|| load(kernel))
    }
}

/// Compute capability of the current device as 10·major + minor.
fn capability() -> i32 {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let (mut device, mut major, mut minor) = (0, 0, 0);
    // SAFETY: every pointer is to a live local variable; cubecl has made its context current on this thread.
    unsafe {
        check("cuCtxGetDevice", sys::cuCtxGetDevice(&mut device));
        let attribute = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        check("cuDeviceGetAttribute", sys::cuDeviceGetAttribute(&mut major, attribute, device));
        let attribute = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
        check("cuDeviceGetAttribute", sys::cuDeviceGetAttribute(&mut minor, attribute, device));
    }
    10 * major + minor
}

/// Compiles a kernel for the current device and loads it.
fn load(kernel: RawKernel) -> sys::CUfunction {
    let suffix = if kernel.one_architecture { "a" } else { "" };
    let (_, architecture) = target(capability());
    let mut options = vec![format!("--gpu-architecture={architecture}{suffix}"), "--std=c++17".to_owned()];
    options.extend(cubecl::cuda::install::cuda_path().map(|path| format!("-I{}", path.join("include").display())));
    options.extend(kernel.defines.iter().map(|define| format!("-D{define}")));
    let image = compile(kernel, &options, architecture.starts_with("compute_"));
    let name = CString::new(kernel.name).expect("a name without zeros");
    let (mut module, mut function) = (null_mut(), null_mut());
    // SAFETY: the image is a whole program of NVRTC, PTX with the zero at its end; the pointers are to live variables and the
    // name ends with a zero.
    unsafe {
        check("cuModuleLoadData", sys::cuModuleLoadData(&mut module, image.as_ptr().cast()));
        check("cuModuleGetFunction", sys::cuModuleGetFunction(&mut function, module, name.as_ptr()));
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = kernel.shared_bytes as c_int;
        check("cuFuncSetAttribute", sys::cuFuncSetAttribute(function, attribute, bytes));
    }
    function
}

/// The machine code of a kernel, or its PTX.
fn compile(kernel: RawKernel, options: &[String], ptx: bool) -> Vec<c_char> {
    let name = kernel.name;
    let source = CString::new(kernel.source).expect("a source without zeros");
    let program = nvrtc::create_program(&source, None).unwrap_or_else(|error| panic!("NVRTC of {name}: {error:?}"));
    // SAFETY: the program was made above and is destroyed once, at the end; the image is as long as NVRTC says.
    unsafe {
        if let Err(error) = nvrtc::compile_program(program, options) {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log = log.iter().map(|&byte| byte as u8 as char).filter(|c| *c != '\0').collect::<String>();
            panic!("NVRTC of {name} with {options:?}: {error:?}: {log}");
        }
        if ptx {
            let image = nvrtc::get_ptx(program).unwrap_or_else(|error| panic!("PTX of {name}: {error:?}"));
            let _ = nvrtc::destroy_program(program);
            return image;
        }
        let mut size = 0;
        let result = nvrtc_sys::nvrtcGetCUBINSize(program, &mut size);
        assert!(result == nvrtc_sys::nvrtcResult::NVRTC_SUCCESS, "size of {name}: {result:?}");
        let mut image: Vec<c_char> = vec![0; size];
        let result = nvrtc_sys::nvrtcGetCUBIN(program, image.as_mut_ptr());
        assert!(result == nvrtc_sys::nvrtcResult::NVRTC_SUCCESS, "code of {name}: {result:?}");
        let _ = nvrtc::destroy_program(program);
        image
    }
}
