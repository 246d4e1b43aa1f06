//! One folder per op: maths and shapes in `mod.rs`, the f64 definition in `reference.rs`, the CPU kernel in `cpu.rs`, the CUDA
//! kernels in `cuda.rs`, cases in `cases.rs`.

pub mod accumulate;
pub mod adamw;
pub mod attention;
pub mod dispatch;
pub mod embedding;
pub mod grouped_fp8;
pub mod grouped_linear;
pub mod grouped_mxfp4;
pub mod linear;
pub mod linear_bias;
pub mod linear_cross_entropy;
pub mod linear_fp8;
pub mod rms_norm;
pub mod rope_qkv;
pub mod route;
pub mod sum_squares;
pub mod swiglu;
pub mod swiglu_clamped;
pub mod token_logprobs;
