//! Root mean square normalisation, alone or fused with the residual addition before it.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{LmBackend, add_rms_norm, rms_norm};

/// Scales each row to unit root mean square, then by a learned factor per column.
#[derive(Clone, Debug)]
pub struct RmsNorm<B: Backend> {
    /// Learned factor, `[d_model]`.
    pub gamma: Tensor<B, 1>,
    /// Added to the mean square before its root.
    pub eps: f32,
}

impl<B: LmBackend> RmsNorm<B> {
    /// Normalises the rows of `x`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        rms_norm(x, self.gamma.clone(), self.eps)
    }

    /// Adds `x` to the residual stream; returns the new stream and its normalised rows.
    pub fn forward_add(&self, x: Tensor<B, 3>, residual: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        add_rms_norm(x, residual, self.gamma.clone(), self.eps)
    }
}
