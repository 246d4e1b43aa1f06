//! Matrix products of cuBLASLt.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::from_ref;

use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::sys as driver;

use super::{Buffer, check, enqueue};
use crate::cuda::gemm::{Gemm, Types};

/// Scratch memory of the matrix products; one is enough, because they run one after the other.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Best alignment that cuBLASLt asks about.
const MAX_ALIGNMENT: u32 = 256;

/// The matrix library of a device thread, with the plans made so far.
pub(super) struct Products {
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

impl Products {
    pub(super) fn new() -> Self {
        let mut workspace = 0;
        // SAFETY: the pointer is to a live local variable; cubecl has made its context current on this thread.
        unsafe { check("cuMemAlloc", driver::cuMemAlloc_v2(&mut workspace, WORKSPACE_BYTES)) };
        let lt = lt::create_handle().unwrap_or_else(|error| panic!("cublasLtCreate: {error:?}"));
        Self { lt, workspace, plans: HashMap::new() }
    }

    fn multiply(&mut self, stream: driver::CUstream, key: Key, [a, b, c]: [u64; 3]) {
        let lt = self.lt;
        self.plans.entry(key).or_insert_with(|| Plan::new(lt, key));
        let plan = &self.plans[&key];
        let (one, beta) = (1.0f32, if key.problem.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: the descriptors belong to this product; `gemm` checked that the buffers are as long as it needs, and their
        // memory is kept by the order of the streams; both factors outlive the call, which reads them at once.
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
                stream.cast(),
            )
        };
        result.unwrap_or_else(|error| panic!("cublasLtMatmul of {key:?}: {error:?}"));
    }
}

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
pub(in super::super) fn enqueue_gemm(op: &'static str, buffers: [&Buffer; 3], problem: Gemm, types: Types) {
    enqueue(op, &buffers, move |foreign, addresses| {
        let addresses = [addresses[0], addresses[1], addresses[2]];
        let alignment = addresses.map(|at| (1 << at.trailing_zeros().min(MAX_ALIGNMENT.ilog2())) as u32);
        foreign.products.multiply(foreign.stream, Key { problem, types, alignment }, addresses);
    });
}
