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
        let real_n1 = real.reshape([n_tokens, 1]);
        let n_real = real_n1.clone().sum().clamp_min(1.0);
        let ids: Vec<i32> = (0..n as i32).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n]), &real_n1.device());
        let (mut probability, mut squares, mut load) = (Vec::new(), Vec::new(), Vec::new());
        for Routing { logits, experts } in routed {
            let weighed = softmax(logits.clone(), 1) * real_n1.clone();
            probability.push(weighed.sum_dim(0));
            squares.push((log_sum_exp(logits.clone()).powi_scalar(2) * real_n1.clone()).sum());
            load.push(counts(experts.clone(), &ids, &real_n1));
        }
        let n_layers = routed.len() as f32;
        let units = n_real.clone() * n_layers;
        let load = Tensor::cat(load, 0);
        let chosen = load.clone().sum_dim(0).reshape([n]) / units.clone();
        let probability = Tensor::cat(probability, 0).sum_dim(0).reshape([n]) / units.clone();
        let per_layer = load.clone().sum_dim(1).clamp_min(1.0);
        Some(Self {
            balance: (chosen * probability).sum() * n as f32,
            z: Tensor::cat(squares, 0).sum() / units,
            load: load / per_layer,
        })
    }
}

/// How often each expert was chosen by real tokens, `[1, n]`.
fn counts<B: LmBackend>(experts: Tensor<B, 2, Int>, ids: &Tensor<B, 1, Int>, real_n1: &Tensor<B, 2>) -> Tensor<B, 2> {
    let ([n_tokens, top_k], [n]) = (experts.dims(), ids.dims());
    let chosen = experts.reshape([n_tokens, top_k, 1]).expand([n_tokens, top_k, n]);
    let ids = ids.clone().reshape([1, 1, n]).expand([n_tokens, top_k, n]);
    let chosen = chosen.equal(ids).float().cast(FloatDType::F32).sum_dim(1).reshape([n_tokens, n]);
    (chosen * real_n1.clone()).sum_dim(0)
}

/// `ln Σ exp` of every row, `[n, 1]`.
fn log_sum_exp<B: Backend>(logits: Tensor<B, 2>) -> Tensor<B, 2> {
    let peak = logits.clone().max_dim(1).detach();
    (logits - peak.clone()).exp().sum_dim(1).log() + peak
}
