//! Root mean square normalisation, alone or fused with the residual addition before it.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Gathered, LmBackend, add_rms_norm_gathered, rms_norm_gathered};

/// Scales each row to unit root mean square, then by a learned factor per column.
#[derive(Clone, Debug)]
pub struct RmsNorm<B: Backend> {
    /// Learned factor, `[d_model]`.
    pub gamma: Tensor<B, 1>,
    /// Added to the mean square before its root.
    pub eps: f32,
}

impl<B: LmBackend> RmsNorm<B> {
    /// Normalises the rows of `x`; what is seen of the result is left in the slot.
    pub fn forward(&self, x: Tensor<B, 3>, peaks: Option<&B::Peaks>) -> Tensor<B, 3> {
        rms_norm_gathered(x, self.gamma.clone(), self.eps, peaks)
    }

    /// Adds `x` to the residual stream; returns the new stream and its normalised rows. What is seen of these rows and of the
    /// gradient of `x` is left in the slots.
    pub fn forward_add(
        &self,
        x: Tensor<B, 3>,
        residual: Tensor<B, 3>,
        peaks: Gathered<B::Peaks>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        add_rms_norm_gathered(x, residual, self.gamma.clone(), self.eps, peaks)
    }
}
