//! A projection made of named row blocks, each with a slot for a low-rank adapter.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels_cubecl::{Fp8, Gathered, LmBackend, linear, linear_bias, linear_fp8, linear_fp8_gathered};

use crate::leaves::{LeafReader, NamedLeaf};
use crate::random::Stream;

/// A block of output rows with its own name: one projection of several that are computed as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Name of the projection, for instance `q_proj`.
    pub name: String,
    /// How many output rows belong to it.
    pub rows: usize,
}

impl Segment {
    /// A segment called `name` with `rows` output rows.
    pub fn new(name: &str, rows: usize) -> Self {
        Segment { name: name.to_owned(), rows }
    }
}

/// `y = x · Wᵀ + bias`, where the rows of `W` are the segments one after the other, plus the adapters' contributions.
#[derive(Clone, Debug)]
pub struct Linear<B: Backend> {
    /// `[rows of all segments, in]`.
    pub weight: Tensor<B, 2>,
    /// Added to every row, one number per output row; `None` adds nothing.
    pub bias: Option<Tensor<B, 1>>,
    /// The row blocks, in order.
    pub segments: Vec<Segment>,
    /// One slot per segment.
    pub adapters: Vec<Option<Lora<B>>>,
    /// How the product with the weight is done in FP8; `None` does it in the type of the weight. Adapters never are in FP8.
    pub fp8: Option<Fp8>,
    /// Peaks of x, weight and gradient in earlier FP8 passes, `[3, n]` in f32, which the scales come from; `None` takes those of
    /// the tensors now. It is no parameter: only copies under automatic differentiation and recomputed blocks carry it along.
    pub history: Option<Tensor<B, 2>>,
    /// Peaks of parts of the weight as it is, `[n]` in f32, which the optimizer left with it; `None` has FP8 products look at the
    /// weight. Other values of the weight go with `None`.
    pub weight_peaks: Option<Tensor<B, 1>>,
}

/// A low-rank update of one segment: `scale · (dropout(x) · Aᵀ) · Bᵀ`.
///
/// # Source
/// LoRA (Hu et al. 2021), section 4.1.
#[derive(Clone, Debug)]
pub struct Lora<B: Backend> {
    /// `[r, in]`.
    pub a: Tensor<B, 2>,
    /// `[rows, r]`.
    pub b: Tensor<B, 2>,
    /// Factor on the update.
    pub scale: f32,
    /// Probability that an input element is dropped while training.
    pub dropout: f32,
    /// The stream that dropout draws from in this step; `None` switches dropout off.
    ///
    /// It is part of the layer, not of the backend's state, so that a block that runs again drops the same elements.
    pub dropout_stream: Option<Stream>,
}

impl<B: LmBackend> Linear<B> {
    /// A projection without adapters.
    ///
    /// # Panics
    /// When the segments do not add up to the rows of `weight`.
    pub fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, segments: Vec<Segment>) -> Self {
        let rows: usize = segments.iter().map(|s| s.rows).sum();
        assert_eq!(weight.dims()[0], rows, "segments {segments:?} and weight {:?} differ in rows", weight.dims());
        let adapters = segments.iter().map(|_| None).collect();
        Linear { weight, bias, segments, adapters, fp8: None, history: None, weight_peaks: None }
    }

    /// Applies the projection.
    ///
    /// # Shapes
    /// `x` is `[b, t, in]`, the result `[b, t, rows]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.forward_gathered(x, Gathered::default())
    }

    /// As [`Linear::forward`], with the slots in which the layers beside this one leave what they have seen of `x` and of the
    /// gradient of the result.
    ///
    /// # Shapes
    /// `x` is `[b, t, in]`, the result `[b, t, rows]`.
    pub fn forward_gathered(&self, x: Tensor<B, 3>, peaks: Gathered<B::Peaks>) -> Tensor<B, 3> {
        if self.adapters.iter().all(Option::is_none) {
            return self.product(x, peaks);
        }
        self.product(x.clone(), peaks) + self.adapter_update(x)
    }

    /// An empty slot, where this projection scales FP8 operands by their peaks now; one is needed for each operand.
    pub fn slot(&self) -> Option<B::Peaks> {
        self.scales_now().then(B::Peaks::default)
    }

    /// `x · Wᵀ + bias`.
    fn product(&self, x: Tensor<B, 3>, peaks: Gathered<B::Peaks>) -> Tensor<B, 3> {
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        let product = match (self.fp8, self.history.clone()) {
            (None, _) => {
                return match bias {
                    None => linear(x, weight),
                    Some(bias) => linear_bias(x, weight, bias),
                };
            }
            (Some(mode), None) => linear_fp8_gathered(x, weight, self.weight_peaks.clone(), mode, peaks),
            (Some(mode), history) => linear_fp8(x, weight, history, mode),
        };
        match bias {
            None => product,
            Some(bias) => product + bias.unsqueeze(),
        }
    }

    /// Whether any segment carries an adapter.
    pub fn has_adapter(&self) -> bool {
        self.adapters.iter().any(Option::is_some)
    }

    /// What the adapters add, zero on segments without one.
    fn adapter_update(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [b, t, _] = x.dims();
        let parts: Vec<Tensor<B, 3>> = std::iter::zip(&self.segments, &self.adapters)
            .map(|(segment, adapter)| match adapter {
                Some(lora) => lora.forward(x.clone()),
                None => Tensor::zeros([b, t, segment.rows], &x.device()),
            })
            .collect();
        if parts.len() == 1 { parts.into_iter().next().expect("one part") } else { Tensor::cat(parts, 2) }
    }

    /// Whether FP8 operands are scaled by their peaks now.
    fn scales_now(&self) -> bool {
        self.fp8.is_some() && self.history.is_none()
    }

    /// Appends the parameters: the fused weight called `{prefix}.{fused}.weight`, its bias, then each adapter's A and B.
    pub(crate) fn collect(&self, prefix: &str, fused: &str, out: &mut Vec<NamedLeaf<B>>) {
        let weight = NamedLeaf::matrix(format!("{prefix}.{fused}.weight"), &self.weight);
        out.push(NamedLeaf { gathers: self.scales_now(), ..weight });
        out.extend(self.bias.iter().map(|bias| NamedLeaf::vector(format!("{prefix}.{fused}.bias"), bias)));
        for (segment, adapter) in std::iter::zip(&self.segments, &self.adapters) {
            let Some(lora) = adapter else { continue };
            for (letter, value) in [("A", &lora.a), ("B", &lora.b)] {
                out.push(NamedLeaf::matrix(format!("{prefix}.{}.lora_{letter}.weight", segment.name), value));
            }
        }
    }

    /// The same layer with other values, no history and no peaks, possibly on another backend; reads in the order of
    /// [`Linear::collect`].
    pub(crate) fn rebuild<C: LmBackend>(&self, leaves: &mut LeafReader<C>) -> Linear<C> {
        let (weight, bias) = (leaves.matrix(), self.bias.as_ref().map(|_| leaves.vector()));
        let mut layer = Linear { fp8: self.fp8, ..Linear::new(weight, bias, self.segments.clone()) };
        for (slot, lora) in std::iter::zip(&mut layer.adapters, &self.adapters) {
            *slot = lora.as_ref().map(|l| Lora {
                a: leaves.matrix(),
                b: leaves.matrix(),
                scale: l.scale,
                dropout: l.dropout,
                dropout_stream: l.dropout_stream,
            });
        }
        layer
    }
}

impl<B: LmBackend> Lora<B> {
    /// What the adapter adds to its segment.
    ///
    /// # Shapes
    /// `x` is `[b, t, in]`, the result `[b, t, rows]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let low = linear(self.drop_elements(x), self.a.clone());
        linear(low, self.b.clone()) * self.scale
    }

    fn drop_elements(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let Some(stream) = self.dropout_stream.filter(|_| self.dropout > 0.0) else { return x };
        let dims = x.dims();
        let mask = stream.dropout_mask(dims.iter().product(), self.dropout);
        let mask = Tensor::<B, 3>::from_data(TensorData::new(mask, dims), &x.device());
        x * mask
    }
}
