//! The gated MLP: gate and up as one projection, their gated product, and the projection back.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Gathered, LmBackend, swiglu_gathered};

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
    /// Applies the MLP; the slots are for what is seen of `x` and of the gradient of the result.
    ///
    /// # Shapes
    /// `x` and the result are `[b, t, d_model]`.
    pub fn forward(&self, x: Tensor<B, 3>, peaks: Gathered<B::Peaks>) -> Tensor<B, 3> {
        let (gated, of_gate_up) = (self.down.slot(), self.gate_up.slot());
        let into = Gathered { forward: peaks.forward, backward: of_gate_up.clone() };
        let gate_up = self.gate_up.forward_gathered(x, into);
        let y = swiglu_gathered(gate_up, Gathered { forward: gated.clone(), backward: of_gate_up });
        self.down.forward_gathered(y, Gathered { forward: gated, backward: peaks.backward })
    }
}
