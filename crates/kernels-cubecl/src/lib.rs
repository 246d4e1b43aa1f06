//! Every numeric op of the language models: definition, f64 reference, CPU path and hand-written backward.
//!
//! Use the functions at the crate root on `burn` tensors. They are generic over [`LmBackend`], the backend-extension trait
//! whose methods have portable bodies made of plain burn ops; [`Cpu`] overrides them with threaded slice kernels, and
//! `Autodiff<B>` carries the backward of each op. A further backend only overrides methods.
//!
//! Each op has a folder under [`ops`] with its maths, an f64 reference in plain loops and its share of the case table.

mod autodiff;
mod backend;
pub mod cases;
#[cfg(any(feature = "cuda", test))]
mod choices;
pub mod compare;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod error;
mod expert_lora;
mod experts;
#[cfg(test)]
mod finite_difference;
mod fp8;
mod functions;
mod layout;
mod leaf;
mod matrix;
mod mxfp4;
pub mod ops;
mod packed;
mod parking;
mod portable;
mod reading;
mod simd_math;
mod snapshot;
#[cfg(test)]
mod tests;
pub mod tolerance;

pub use autodiff::{Block, Gradients, Shelf, Traffic, backward_into, recompute};
pub use backend::{CrossEntropyParts, LmBackend, Rotation, StatsParts, Tracked};
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaBf16};
pub use device::{Cpu, Device, DeviceChoice, DeviceMemory, Precision, keep_exact_sizes, leave};
pub use error::KernelError;
pub use expert_lora::{ExpertLora, ExpertWeight, LoraParts, experts_decoded, grouped_lora};
pub use experts::{
    Dispatch, Routed, combine, dispatch, gather_tokens, grouped_linear, grouped_linear_mxfp4, grouped_linear_packed,
    route, swiglu_clamped,
};
pub use fp8::{Fp8, Fp8Gradients, Fp8Known, Fp8Saved, Gathered};
pub use functions::{
    CrossEntropy, TokenStats, adamw_step, adamw_step_gathered, add_assign, add_rms_norm, add_rms_norm_gathered,
    attention, attention_cached, attention_gathered, clip_scale, embedding, embedding_backward_acc, linear,
    linear_bias, linear_bias_f32, linear_cross_entropy, linear_f32, linear_fp8, linear_fp8_gathered, rms_norm,
    rms_norm_gathered, rope_qkv, rope_qkv_gathered, sum_parts, sum_squares, sum_squares_into, sum_squares_parts,
    swiglu, swiglu_gathered, token_logprobs, token_stats,
};
pub use layout::{HeadLayout, Spans};
pub use leaf::Leaf;
pub use mxfp4::{MXFP4_BLOCK, MXFP4_BYTES, Mxfp4, quantise_mxfp4, quantise_mxfp4_closest};
pub use ops::adamw::{AdamW, Master, Moments, PackedMoments, Stepped};
pub use packed::{Fp8Rows, Packed};
pub use parking::Parked;
pub use reading::Reading;
pub use snapshot::{HostCopy, HostReserve, Piece};
