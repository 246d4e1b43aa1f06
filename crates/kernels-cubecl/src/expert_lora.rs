//! A linear layer per expert with a low-rank update of each expert.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, backend::Backend};

use crate::experts::check_grouped;
use crate::functions::{unwrap, wrap};
use crate::{Dispatch, LmBackend, Packed};

/// Where the weights of experts are, `[e·o, i]`.
#[derive(Clone, Debug)]
pub enum ExpertWeight<B: Backend> {
    /// In the backend's float type; a parameter like any other.
    Dense(Tensor<B, 2>),
    /// In fewer bits, for good: they are no parameters, gradients pass them on to `x`.
    Packed(Packed<B>),
}

impl<B: Backend> ExpertWeight<B> {
    /// Rows of all experts and the width of a row.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Packed(weight) => weight.dims(),
        }
    }

    /// The same on another backend, tensor by tensor.
    pub(crate) fn map<C: Backend>(
        self,
        float: impl Fn(Tensor<B, 2>) -> Tensor<C, 2>,
        int: impl Fn(Tensor<B, 2, burn::tensor::Int>) -> Tensor<C, 2, burn::tensor::Int>,
    ) -> ExpertWeight<C> {
        match self {
            Self::Dense(weight) => ExpertWeight::Dense(float(weight)),
            Self::Packed(Packed::Mxfp4(weight)) => ExpertWeight::Packed(Packed::Mxfp4(weight.map(int))),
            Self::Packed(Packed::Fp8(weight)) => ExpertWeight::Packed(Packed::Fp8(weight.map(int))),
        }
    }
}

/// Most bytes of packed weights that CUDA decodes at a time. Both of a layer's projections of the 20B model come to parts of the same
/// size, so that one buffer serves both.
const DECODED_BYTES: usize = 512 << 20;

/// How many experts of `n`, of so many bytes each, CUDA decodes at a time.
pub fn experts_decoded(n: usize, bytes: usize) -> usize {
    n.div_ceil((n * bytes).div_ceil(DECODED_BYTES).max(1))
}

/// A low-rank update of every expert: `scale · (x · Aₑᵀ) · Bₑᵀ`.
///
/// # Source
/// LoRA (Hu et al. 2021), section 4.1, applied to each expert.
#[derive(Clone, Debug)]
pub struct ExpertLora<B: Backend> {
    /// `[e·r, i]`, experts one after the other.
    pub a: Tensor<B, 2>,
    /// `[e·o, r]`, experts one after the other.
    pub b: Tensor<B, 2>,
    /// Factor on the update.
    pub scale: f32,
}

/// An [`ExpertLora`] on primitives.
#[derive(Clone, Debug)]
pub struct LoraParts<B: Backend> {
    /// `[e·r, i]`.
    pub a: FloatTensor<B>,
    /// `[e·o, r]`.
    pub b: FloatTensor<B>,
    /// Factor on the update.
    pub scale: f32,
}

/// [`crate::grouped_linear`] with a low-rank update, whose product `B·A` is never made; see [`crate::ops::grouped_linear::lora`].
///
/// # Shapes
/// `x [m, i]` in the order of the dispatch, `weight [e·o, i]`, `bias [e·o]`, result `[m, o]`; rows behind the last expert are
/// zero.
pub fn grouped_lora<B: LmBackend>(
    x: Tensor<B, 2>,
    weight: &ExpertWeight<B>,
    bias: Option<Tensor<B, 1>>,
    lora: &ExpertLora<B>,
    dispatch: &Dispatch<B>,
) -> Tensor<B, 2> {
    check_grouped("grouped_lora", &x, weight.dims(), bias.as_ref(), dispatch);
    let ([rows, i], [a_rows, a_i], [b_rows, r]) = (weight.dims(), lora.a.dims(), lora.b.dims());
    let e = dispatch.n_experts();
    assert!(
        a_i == i && b_rows == rows && a_rows == e * r,
        "grouped_lora: {e} experts of [{rows}, {i}] need A [{}, {i}] and B [{rows}, r], got [{a_rows}, {a_i}] and [{b_rows}, {r}]",
        e * r
    );
    let parts = LoraParts { a: unwrap(lora.a.clone()), b: unwrap(lora.b.clone()), scale: lora.scale };
    let offsets = dispatch.offsets.clone().into_primitive();
    wrap(B::lm_grouped_lora(unwrap(x), weight, bias.map(unwrap), parts, offsets))
}
