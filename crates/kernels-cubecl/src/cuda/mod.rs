//! The CUDA backend: cuBLASLt for matrix products, cubecl kernels for everything else, both on cubecl's memory.
//!
//! The kernels of an op stand beside its CPU path, in `ops/<op>/cuda.rs`; here is what they share. The backend is burn's own
//! `CubeBackend` without fusion and without autotuning, so that its tensors are plain buffers and nothing is tuned on live data.
//! Work is enqueued in the order of the calls and no op waits for the device.

mod backend;
mod bridge;
mod faults;
pub(crate) mod flash;
pub(crate) mod gemm;
pub(crate) mod launch;
mod parking;
pub(crate) mod peaks;
mod probe;
pub mod profile;
pub(crate) mod reduce;
mod snapshot;
mod sources;

pub use crate::ops::linear_fp8::cuda::round_fp8;
pub use bridge::{device_memory, treat_as};
pub(crate) use faults::broken;
pub use faults::guarded;
pub use gemm::{Element, Gemm, Types, gemm, gemm_fp8};
pub use peaks::Peaks;
pub use probe::{check_fp8, claim, keep_exact_sizes, open, provoke_fault};

pub(crate) use bridge::{Argument, Grid, RawKernel, capability, end_process, has_fp8};

use half::bf16;

/// The CUDA backend in f32.
pub type Cuda = burn_cuda::Cuda<f32, i32>;
/// The CUDA backend in bf16, with f32 sums inside.
pub type CudaBf16 = burn_cuda::Cuda<bf16, i32>;
/// A CUDA device by its index.
pub use burn_cuda::CudaDevice;

/// A tensor of the CUDA backend.
pub(crate) type Buffer = burn_cubecl::tensor::CubeTensor<Runtime>;
/// cubecl's CUDA runtime.
pub(crate) type Runtime = cubecl::cuda::CudaRuntime;
