//! Portable output head: chunks of rows, so that the full logits never exist.

use std::ops::Range;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorMetadata, backend::Backend};

use super::{down, ints, meta, up};
use crate::backend::StatsParts;
use crate::{CrossEntropyParts, Tracked};

/// Most logits that exist at a time.
const CHUNK_ELEMENTS: usize = 1 << 22;

/// Ranges of rows whose logits stay below [`CHUNK_ELEMENTS`].
fn chunks(m: usize, v: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (CHUNK_ELEMENTS / v.max(1)).max(1);
    (0..m).step_by(step).map(move |at| at..(at + step).min(m))
}

/// Operands of the head on f32 tensors.
struct Head<B: Backend> {
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
}

/// One chunk: logits `[c, v]`, log-sum-exp `[c, 1]`, one-hot targets `[c, v]`, and which rows are ignored `[c, 1]`.
struct Chunk<B: Backend> {
    logits: Tensor<B, 2>,
    lse: Tensor<B, 2>,
    hot: Tensor<B, 2>,
    ignored: Tensor<B, 2, Bool>,
}

impl<B: Backend> Head<B> {
    fn new(x: FloatTensor<B>, weight: FloatTensor<B>, targets: IntTensor<B>) -> Self {
        let (x_shape, w_shape) = (x.shape(), weight.shape());
        Self {
            x: up(x, [x_shape[0], x_shape[1]]),
            weight: up(weight, [w_shape[0], w_shape[1]]),
            targets: ints(targets, [x_shape[0]]),
        }
    }

    fn dims(&self) -> (usize, usize) {
        (self.x.dims()[0], self.weight.dims()[0])
    }

    fn rows(&self, range: &Range<usize>) -> Tensor<B, 2> {
        self.x.clone().narrow(0, range.start, range.len())
    }

    fn chunk(&self, range: &Range<usize>) -> Chunk<B> {
        let (c, v) = (range.len(), self.weight.dims()[0]);
        let logits = self.rows(range).matmul(self.weight.clone().transpose());
        let max = logits.clone().max_dim(1);
        let lse = (logits.clone() - max.clone()).exp().sum_dim(1).log() + max;
        let targets = self.targets.clone().narrow(0, range.start, c).reshape([c, 1]);
        let ids = Tensor::<B, 1, Int>::arange(0..v as i64, &targets.device()).reshape([1, v]).expand([c, v]);
        let hot = ids.equal(targets.clone().expand([c, v])).float();
        Chunk { logits, lse, hot, ignored: targets.lower_elem(0) }
    }
}

impl<B: Backend> Chunk<B> {
    /// `[c, 1]`: log-probability of the target, 0 where it is ignored.
    fn logprob(&self) -> Tensor<B, 2> {
        let picked = (self.logits.clone() * self.hot.clone()).sum_dim(1);
        (picked - self.lse.clone()).mask_fill(self.ignored.clone(), 0.0)
    }

    fn probabilities(&self) -> Tensor<B, 2> {
        (self.logits.clone() - self.lse.clone()).exp()
    }
}

/// Collects the gradients of the head over chunks.
struct Gradient<B: Backend> {
    want: Tracked,
    dx: Vec<Tensor<B, 2>>,
    dw: Option<Tensor<B, 2>>,
}

impl<B: Backend> Gradient<B> {
    fn new(want: Tracked) -> Self {
        Self { want, dx: Vec::new(), dw: None }
    }

    fn push(&mut self, head: &Head<B>, range: &Range<usize>, dlogits: Tensor<B, 2>) {
        if self.want.weight {
            let dw = dlogits.clone().transpose().matmul(head.rows(range));
            self.dw = Some(match self.dw.take() {
                Some(sum) => sum + dw,
                None => dw,
            });
        }
        if self.want.x {
            self.dx.push(dlogits.matmul(head.weight.clone()));
        }
    }

    /// `(dx, dw)` with the element types of `x` and `weight`.
    fn finish(self, head: &Head<B>, dtypes: [DType; 2]) -> (Option<FloatTensor<B>>, Option<FloatTensor<B>>) {
        let dx = self.want.x.then(|| match self.dx.is_empty() {
            true => head.x.zeros_like(),
            false => Tensor::cat(self.dx, 0),
        });
        let dw = self.want.weight.then(|| self.dw.unwrap_or_else(|| head.weight.zeros_like()));
        (dx.map(|dx| down(dx, dtypes[0], head.x.shape())), dw.map(|dw| down(dw, dtypes[1], head.weight.shape())))
    }
}

/// Portable fused head and cross-entropy.
pub(crate) fn linear_cross_entropy_fwd<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    weights: FloatTensor<B>,
    z_loss: f32,
    want: Tracked,
) -> CrossEntropyParts<B> {
    let (dtypes, m) = ([x.dtype(), weight.dtype()], x.shape()[0]);
    let weights = up::<B, 2>(weights, [m, 1]);
    let head = Head::<B>::new(x, weight, targets);
    let (m, v) = head.dims();
    let mut loss = Tensor::<B, 1>::zeros([1], &head.x.device());
    let (mut nll, mut gradient) = (loss.clone(), Gradient::new(want));
    for range in chunks(m, v) {
        let chunk = head.chunk(&range);
        let w = weights.clone().narrow(0, range.start, range.len());
        let each = chunk.logprob().neg();
        let z = chunk.lse.clone().mul_scalar(z_loss) * chunk.lse.clone();
        let regular = z.mask_fill(chunk.ignored.clone(), 0.0);
        nll = nll + (each.clone() * w.clone()).sum();
        loss = loss + ((each + regular) * w.clone()).sum();
        if want.x || want.weight {
            let slope = chunk.lse.clone().mul_scalar(2.0 * z_loss).add_scalar(1.0);
            let dlogits = (chunk.probabilities() * slope - chunk.hot.clone()) * w;
            let dlogits = dlogits.mask_fill(chunk.ignored.clone().expand([range.len(), v]), 0.0);
            gradient.push(&head, &range, dlogits);
        }
    }
    let (dx, dw) = gradient.finish(&head, dtypes);
    let one = Shape::new([1]);
    CrossEntropyParts { loss: down(loss, DType::F32, one.clone()), nll: down(nll, DType::F32, one), dx, dw }
}

/// Portable gradient of the token log-probabilities.
pub(crate) fn token_logprobs_bwd<B: Backend>(
    dlogprob: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    _lse: FloatTensor<B>,
    want: Tracked,
) -> (Option<FloatTensor<B>>, Option<FloatTensor<B>>) {
    let (dtypes, m) = ([x.dtype(), weight.dtype()], x.shape()[0]);
    let dlogprob = up::<B, 2>(dlogprob, [m, 1]);
    let head = Head::<B>::new(x, weight, targets);
    let (m, v) = head.dims();
    let mut gradient = Gradient::new(want);
    for range in chunks(m, v) {
        let chunk = head.chunk(&range);
        let upstream = dlogprob.clone().narrow(0, range.start, range.len());
        let dlogits = (chunk.hot.clone() - chunk.probabilities()) * upstream;
        let dlogits = dlogits.mask_fill(chunk.ignored.clone().expand([range.len(), v]), 0.0);
        gradient.push(&head, &range, dlogits);
    }
    gradient.finish(&head, dtypes)
}

/// Portable log-probability, log-sum-exp and arg-max of each row.
pub(crate) fn token_stats<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
) -> StatsParts<B> {
    let (_, shape) = meta(&x);
    let (m, device) = (shape[0], B::float_device(&x));
    let head = Head::<B>::new(x, weight, targets);
    let v = head.dims().1;
    let (mut logprob, mut lse, mut argmax) = (Vec::new(), Vec::new(), Vec::new());
    for range in chunks(m, v) {
        let chunk = head.chunk(&range);
        logprob.push(chunk.logprob());
        lse.push(chunk.lse.clone());
        argmax.push(chunk.logits.argmax(1));
    }
    if m == 0 {
        let empty = || down(Tensor::<B, 1>::zeros([0], &device), DType::F32, Shape::new([0]));
        return (empty(), empty(), Tensor::<B, 1, Int>::zeros([0], &device).into_primitive());
    }
    let flat = |parts| down(Tensor::<B, 2>::cat(parts, 0), DType::F32, Shape::new([m]));
    let argmax = Tensor::<B, 2, Int>::cat(argmax, 0).reshape([m]);
    (flat(logprob), flat(lse), argmax.into_primitive())
}
