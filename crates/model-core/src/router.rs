//! What is made of the routers' logits: the losses that keep experts in use, and how the tokens spread.
//!
//! With logits `r` of layer `l` and token `n`, `m_n` 1 for a token that is no padding, `L` layers and `M = Σ m_n`:
//! ```text
//! f_e  = 1/(L·M) Σ m_n [e chosen]      P_e = 1/(L·M) Σ m_n softmax(r)_e      balance = E Σ_e f_e·P_e
//! z    = 1/(L·M) Σ m_n logsumexp(r)²
//! ```
//! `balance` is `top_k` when all experts are used alike; its gradient flows through `P` only.
//!
//! # Source
//! Switch Transformer (Fedus et al. 2021), section 2.2, over all layers at once as transformers does it; ST-MoE (Zoph et
//! al. 2022), equation 5, for `z`.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use kernels_cubecl::LmBackend;

use crate::layers::Routing;

/// Losses and spread of all routers of a model over one batch.
#[derive(Clone, Debug)]
pub struct RouterLosses<B: Backend> {
    /// The load balancing loss, `[1]`; differentiable.
    pub balance: Tensor<B, 1>,
    /// The router z-loss, `[1]`; differentiable.
    pub z: Tensor<B, 1>,
    /// Share of each block's choices that fell on each expert, `[n_layers, n]`; every row sums to 1. No gradient.
    pub load: Tensor<B, 2>,
}

impl<B: LmBackend> RouterLosses<B> {
    /// Losses of what [`crate::Decoder::hidden_routed`] returned; `real` is [`crate::Rows::real_tokens`].
    ///
    /// `None` for a model without experts. Without a real token everything is 0.
    ///
    /// # Numerics
    /// f32 whatever the backend's float type.
    pub fn new(routed: &[Routing<B>], real: Tensor<B, 1>) -> Option<Self> {
        let [n_tokens, n] = routed.first()?.logits.dims();
        let n_layers = routed.len();
        let logits = Tensor::cat(routed.iter().map(|routing| routing.logits.clone()).collect(), 0);
        let experts = Tensor::cat(routed.iter().map(|routing| routing.experts.clone()).collect(), 0);
        let real_n1 = Tensor::cat(vec![real.reshape([n_tokens, 1]); n_layers], 0);
        let units = real_n1.clone().sum().clamp_min(1.0);
        let probability = (softmax(logits.clone(), 1) * real_n1.clone()).sum_dim(0).reshape([n]) / units.clone();
        let squares = log_sum_exp(logits).powi_scalar(2) * real_n1.clone();
        let chosen = (choices(experts, n) * real_n1).reshape([n_layers, n_tokens, n]).sum_dim(1);
        let load = chosen.reshape([n_layers, n]);
        let share = load.clone().sum_dim(0).reshape([n]) / units.clone();
        let per_layer = load.clone().sum_dim(1).clamp_min(1.0);
        Some(Self { balance: (share * probability).sum() * n as f32, z: squares.sum() / units, load: load / per_layer })
    }
}

/// One where a token goes through an expert, else zero: `[m, n]` of `[m, top_k]`.
fn choices<B: LmBackend>(experts: Tensor<B, 2, Int>, n: usize) -> Tensor<B, 2> {
    let [m, top_k] = experts.dims();
    let ids: Vec<i32> = (0..n as i32).collect();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n]), &experts.device());
    let ids = ids.reshape([1, 1, n]).expand([m, top_k, n]);
    let experts = experts.reshape([m, top_k, 1]).expand([m, top_k, n]);
    experts.equal(ids).float().cast(FloatDType::F32).sum_dim(1).reshape([m, n])
}

/// `ln Σ exp` of every row, `[n, 1]`.
fn log_sum_exp<B: Backend>(logits: Tensor<B, 2>) -> Tensor<B, 2> {
    let peak = logits.clone().max_dim(1).detach();
    (logits - peak.clone()).exp().sum_dim(1).log() + peak
}
