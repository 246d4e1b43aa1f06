//! The gated MLP: gate and up as one projection, their gated product, and the projection back.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{LmBackend, swiglu};

use super::linear::Linear;

/// `down(silu(gate(x)) · up(x))`.
#[derive(Clone, Debug)]
pub struct Mlp<B: Backend> {
    /// Gate rows, then up rows, `[2 · d_ff, d_model]`.
    pub gate_up: Linear<B>,
    /// `[d_model, d_ff]`.
    pub down: Linear<B>,
}

impl<B: LmBackend> Mlp<B> {
    /// Applies the MLP.
    ///
    /// # Shapes
    /// `x` and the result are `[b, t, d_model]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.down.forward(swiglu(self.gate_up.forward(x)))
    }
}
