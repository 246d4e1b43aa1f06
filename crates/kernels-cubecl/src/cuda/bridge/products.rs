//! Matrix products of cuBLASLt.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ptr::from_ref;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys as lt_sys;
use cudarc::driver::sys as driver;

use super::search::{self, Known};
use super::{Buffer, check, enqueue_long};
use crate::cuda::gemm::{Element, Gemm, Types};

/// Scratch memory of the matrix products; one is enough, because they run one after the other. 32 and 256 MiB are as fast.
pub(super) const WORKSPACE_BYTES: usize = 64 << 20;
/// Best alignment that cuBLASLt asks about.
const MAX_ALIGNMENT: u32 = 256;

/// The matrix library of a device thread, with the plans made so far.
pub(super) struct Products {
    library: Library,
    plans: HashMap<Key, Plan>,
    known: Option<Known>,
}

/// The handle of cuBLASLt and its workspace.
pub(super) struct Library {
    pub(super) lt: lt_sys::cublasLtHandle_t,
    workspace: u64,
}

/// What a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) problem: Gemm,
    pub(super) types: Types,
    /// A vector in the type of `c` is added to its rows.
    pub(super) bias: bool,
    /// Alignment of `a`, `b` and `c` in bytes.
    pub(super) alignment: [u32; 3],
}

impl fmt::Display for Key {
    /// The name under which the algorithm of this product is remembered.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gemm { m, n, k, a_transposed, b_transposed, accumulate } = self.problem;
        let Types { a, b, c, fast_sums } = self.types;
        let flag = |on: bool, text: &'static str| if on { text } else { "" };
        let (ta, tb) = (flag(a_transposed, "'"), flag(b_transposed, "'"));
        write!(f, "{m}x{k}x{n} {a:?}{ta} {b:?}{tb} {c:?}{}{}", flag(accumulate, " +="), flag(fast_sums, " fast"))?;
        write!(f, "{} aligned {:?}", flag(self.bias, " +bias"), self.alignment)
    }
}

/// Device addresses of the operands.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) c: u64,
    /// Factors of `a` and `b`, where they are FP8.
    pub(super) scales: Option<[u64; 2]>,
    /// What is added to the rows of `c`.
    pub(super) bias: Option<u64>,
}

/// Descriptors and algorithm of a product; they live as long as the process.
pub(super) struct Plan {
    pub(super) description: lt_sys::cublasLtMatmulDesc_t,
    pub(super) first: lt_sys::cublasLtMatrixLayout_t,
    pub(super) second: lt_sys::cublasLtMatrixLayout_t,
    pub(super) result: lt_sys::cublasLtMatrixLayout_t,
    beta: f32,
    algorithm: lt_sys::cublasLtMatmulAlgo_t,
}

impl Products {
    pub(super) fn new() -> Self {
        let mut workspace = 0;
        // SAFETY: the pointer is to a live local variable; cubecl has made its context current on this thread.
        unsafe { check("cuMemAlloc", driver::cuMemAlloc_v2(&mut workspace, WORKSPACE_BYTES)) };
        let lt = lt::create_handle().unwrap_or_else(|error| panic!("cublasLtCreate: {error:?}"));
        Self { library: Library { lt, workspace }, plans: HashMap::new(), known: Known::open() }
    }

    fn multiply(&mut self, stream: driver::CUstream, key: Key, at: Addresses) {
        let Self { library, plans, known } = self;
        let plan = plans.entry(key).or_insert_with(|| {
            let mut plan = Plan::new(key, at);
            plan.algorithm = search::choose(library, &plan, known.as_mut(), stream, key, at);
            plan
        });
        let result = plan.run(library, &plan.algorithm, stream, at);
        result.unwrap_or_else(|error| panic!("cublasLtMatmul of {key:?}: {error:?}"));
    }
}

impl Plan {
    /// A plan without its algorithm.
    ///
    /// A row-major `c = op(a)·op(b)` is a column-major `cᵀ = op(b)ᵀ·op(a)ᵀ`, so cuBLASLt's first operand is our `b`.
    fn new(key: Key, at: Addresses) -> Self {
        use lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        use lt_sys::cudaDataType_t::{CUDA_R_8F_E4M3, CUDA_R_8F_E5M2, CUDA_R_16BF, CUDA_R_32F};
        let Key { problem: Gemm { m, n, k, a_transposed, b_transposed, accumulate }, types, .. } = key;
        let fail = |what: &str, error| -> ! { panic!("{what} of {key:?}: {error:?}") };
        let layout = |element: Element, rows: usize, columns: usize| {
            let element = match element {
                Element::F32 => CUDA_R_32F,
                Element::Bf16 => CUDA_R_16BF,
                Element::E4m3 => CUDA_R_8F_E4M3,
                Element::E5m2 => CUDA_R_8F_E5M2,
            };
            lt::create_matrix_layout(element, rows as u64, columns as u64, rows as i64)
                .unwrap_or_else(|error| fail("cuBLASLt layout", error))
        };
        let first = if b_transposed { layout(types.b, k, n) } else { layout(types.b, n, k) };
        let second = if a_transposed { layout(types.a, m, k) } else { layout(types.a, k, m) };
        let result = layout(types.c, n, m);
        let description = lt::create_matmul_desc(CUBLAS_COMPUTE_32F, CUDA_R_32F)
            .unwrap_or_else(|error| fail("cuBLASLt description", error));
        describe(description, key).unwrap_or_else(|error| fail("cuBLASLt operands", error));
        set_pointers(description, at).unwrap_or_else(|error| fail("cuBLASLt scales and bias", error));
        let (beta, algorithm) = (if accumulate { 1.0 } else { 0.0 }, lt_sys::cublasLtMatmulAlgo_t { data: [0; 8] });
        Self { description, first, second, result, beta, algorithm }
    }

    /// Enqueues the product by one algorithm.
    pub(super) fn run(
        &self,
        library: &Library,
        algorithm: &lt_sys::cublasLtMatmulAlgo_t,
        stream: driver::CUstream,
        at: Addresses,
    ) -> Result<(), CublasError> {
        let one = 1.0f32;
        set_pointers(self.description, at)?;
        // SAFETY: the descriptors belong to this product; `gemm` checked that the buffers are as long as it needs, and their
        // memory is kept by the order of the streams; both factors outlive the call, which reads them at once.
        unsafe {
            lt::matmul(
                library.lt,
                self.description,
                from_ref(&one).cast(),
                from_ref(&self.beta).cast(),
                at.b as *const c_void,
                self.first,
                at.a as *const c_void,
                self.second,
                at.c as *const c_void,
                self.result,
                at.c as *mut c_void,
                self.result,
                algorithm,
                library.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
    }
}

/// Sets an attribute of a description.
fn set<T>(
    description: lt_sys::cublasLtMatmulDesc_t,
    attribute: lt_sys::cublasLtMatmulDescAttributes_t,
    value: T,
) -> Result<(), CublasError> {
    // SAFETY: the description is alive and the value, whose size the library checks, is copied.
    unsafe { lt::set_matmul_desc_attribute(description, attribute, from_ref(&value).cast(), size_of::<T>()) }
}

/// Says which operands of cuBLASLt are transposed, how FP8 products are summed, and whether a bias follows.
fn describe(description: lt_sys::cublasLtMatmulDesc_t, key: Key) -> Result<(), CublasError> {
    use lt_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
    use lt_sys::cublasLtMatmulDescAttributes_t::{
        CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_FAST_ACCUM, CUBLASLT_MATMUL_DESC_TRANSA,
        CUBLASLT_MATMUL_DESC_TRANSB,
    };
    set(description, CUBLASLT_MATMUL_DESC_TRANSA, i32::from(key.problem.b_transposed))?;
    set(description, CUBLASLT_MATMUL_DESC_TRANSB, i32::from(key.problem.a_transposed))?;
    if key.types.fast_sums {
        set(description, CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8)?;
    }
    if key.bias {
        // Of the length of a column-major result's columns, which are our rows; its type is that of the result.
        set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS as u32)?;
    }
    Ok(())
}

/// Says where the factors of FP8 operands and the bias are.
fn set_pointers(description: lt_sys::cublasLtMatmulDesc_t, at: Addresses) -> Result<(), CublasError> {
    use lt_sys::cublasLtMatmulDescAttributes_t::{
        CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    };
    if let Some([a, b]) = at.scales {
        set(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, b)?;
        set(description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, a)?;
    }
    if let Some(bias) = at.bias {
        set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
    }
    Ok(())
}

/// Bytes that can be copied to the host during a floating point operation of a bf16 product, and of an FP8 one: what PCI
/// Express 5 carries over what a Hopper card computes, on the cautious side, because the next work waits for the copy.
const ROOM: f64 = 45e9 / 700e12;
const ROOM_FP8: f64 = 45e9 / 1200e12;

/// Bytes that can be copied to the host during a product.
fn room(Gemm { m, n, k, .. }: Gemm, per_operation: f64) -> usize {
    (2.0 * m as f64 * n as f64 * k as f64 * per_operation) as usize
}

/// Enqueues a product; `gemm` has checked the buffers.
pub(in super::super) fn enqueue_gemm(
    op: &'static str,
    buffers: [&Buffer; 3],
    bias: Option<&Buffer>,
    problem: Gemm,
    types: Types,
) {
    let buffers: Vec<&Buffer> = buffers.into_iter().chain(bias).collect();
    enqueue_long(op, &buffers, room(problem, ROOM), move |foreign, addresses| {
        let bias = addresses.get(3).copied();
        let at = Addresses { a: addresses[0], b: addresses[1], c: addresses[2], scales: None, bias };
        foreign.products.multiply(foreign.stream, key(problem, types, at), at);
    });
}

/// Enqueues a product of FP8 operands with their factors; `gemm_fp8` has checked the buffers.
pub(in super::super) fn enqueue_gemm_fp8(
    op: &'static str,
    [a, b, c]: [&Buffer; 3],
    [a_scale, b_scale]: [&Buffer; 2],
    problem: Gemm,
    types: Types,
) {
    enqueue_long(op, &[a, b, c, a_scale, b_scale], room(problem, ROOM_FP8), move |foreign, addresses| {
        let scales = Some([addresses[3], addresses[4]]);
        let at = Addresses { a: addresses[0], b: addresses[1], c: addresses[2], scales, bias: None };
        foreign.products.multiply(foreign.stream, key(problem, types, at), at);
    });
}

fn key(problem: Gemm, types: Types, at: Addresses) -> Key {
    let alignment = [at.a, at.b, at.c].map(|at| (1 << at.trailing_zeros().min(MAX_ALIGNMENT.ilog2())) as u32);
    Key { problem, types, bias: at.bias.is_some(), alignment }
}
