//! Routing on CUDA: a thread per token forward, a thread per logit backward.

use burn::tensor::{DType, Shape, TensorMetadata};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, check_lengths, cubes, dense, dense_as, empty, one_thread_each};
use crate::cuda::{Buffer, Runtime};

/// Threads of a cube; few, so that the tokens of a small batch are spread.
const THREADS: usize = 64;
/// Bits of +∞.
const INFINITY: u32 = 0x7F80_0000;

/// What a logit counts as in the order.
#[cube]
fn key(logit: f32) -> f32 {
    f32::reinterpret(select(logit.is_nan(), INFINITY, u32::reinterpret(logit)))
}

/// Each choice is the first logit in the order that comes after the one before it.
#[cube(launch)]
fn forward_kernel<F: Float>(
    logits: &Array<F>,
    weights: &mut Array<f32>,
    experts: &mut Array<i32>,
    tokens: u32,
    n_experts: u32,
    top_k: u32,
    #[define(F)] _dtype: StorageType,
) {
    let token = ABSOLUTE_POS as u32;
    if token < tokens {
        let (row, out) = (token * n_experts, token * top_k);
        let mut last = 0.0f32;
        let mut last_at = 0u32;
        let mut largest = 0.0f32;
        let mut sum = 0.0f32;
        let mut j = 0u32;
        while j < top_k {
            let mut best = 0.0f32;
            let mut best_at = n_experts;
            let mut i = 0u32;
            while i < n_experts {
                let k = key(f32::cast_from(logits[(row + i) as usize]));
                let left = j == 0u32 || k < last || (k == last && i > last_at);
                if left && (k > best || best_at == n_experts) {
                    best = k;
                    best_at = i;
                }
                i += 1u32;
            }
            let logit = f32::cast_from(logits[(row + best_at) as usize]);
            if j == 0u32 {
                largest = logit;
            }
            let weight = (logit - largest).exp();
            sum += weight;
            weights[(out + j) as usize] = weight;
            experts[(out + j) as usize] = i32::cast_from(best_at);
            last = best;
            last_at = best_at;
            j += 1u32;
        }
        let mut j = 0u32;
        while j < top_k {
            weights[(out + j) as usize] = weights[(out + j) as usize] / sum;
            j += 1u32;
        }
    }
}

#[cube(launch)]
fn backward_kernel<F: Float>(
    dweights: &Array<f32>,
    weights: &Array<f32>,
    experts: &Array<i32>,
    dlogits: &mut Array<F>,
    n_experts: u32,
    top_k: u32,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if ABSOLUTE_POS < dlogits.len() {
        let (first, expert) = (i / n_experts * top_k, i32::cast_from(i % n_experts));
        let mut mean = 0.0f32;
        let mut weight = 0.0f32;
        let mut upstream = 0.0f32;
        let mut chosen = false;
        let mut j = 0u32;
        while j < top_k {
            let at = (first + j) as usize;
            mean += weights[at] * dweights[at];
            if experts[at] == expert {
                weight = weights[at];
                upstream = dweights[at];
                chosen = true;
            }
            j += 1u32;
        }
        dlogits[ABSOLUTE_POS] = F::cast_from(select(chosen, weight * (upstream - mean), 0.0f32));
    }
}

/// `(weights, experts)`, both `[n, k]`.
pub(crate) fn forward(logits: Buffer, top_k: usize) -> (Buffer, Buffer) {
    let logits = dense(logits);
    let (n, e) = (logits.shape()[0], logits.shape()[1]);
    let weights = empty(&logits, Shape::new([n, top_k]), DType::F32);
    let experts = empty(&logits, Shape::new([n, top_k]), DType::I32);
    if n > 0 {
        check_indices("route", &[&logits]);
        let (client, dtype) = (logits.client.clone(), logits.dtype);
        forward_kernel::launch::<Runtime>(
            &client,
            cubes(n.div_ceil(THREADS)),
            CubeDim::new_1d(THREADS as u32),
            logits.into_array_arg(),
            weights.clone().into_array_arg(),
            experts.clone().into_array_arg(),
            n as u32,
            e as u32,
            top_k as u32,
            dtype.into(),
        );
    }
    (weights, experts)
}

/// Gradient of the logits `[n, n_experts]` in `dtype`.
pub(crate) fn backward(dweights: Buffer, weights: Buffer, experts: Buffer, n_experts: usize, dtype: DType) -> Buffer {
    let (dweights, weights, experts) = (dense_as(dweights, DType::F32), dense_as(weights, DType::F32), dense(experts));
    let (n, k) = (weights.shape()[0], weights.shape()[1]);
    let dlogits = empty(&weights, Shape::new([n, n_experts]), dtype);
    if n > 0 {
        check_indices("route backward", &[&dlogits]);
        check_lengths("route backward", &[(&dweights, n * k), (&experts, n * k)]);
        let (count, dim) = one_thread_each(n * n_experts);
        let client = weights.client.clone();
        backward_kernel::launch::<Runtime>(
            &client,
            count,
            dim,
            dweights.into_array_arg(),
            weights.into_array_arg(),
            experts.into_array_arg(),
            dlogits.clone().into_array_arg(),
            n_experts as u32,
            k as u32,
            dtype.into(),
        );
    }
    dlogits
}
