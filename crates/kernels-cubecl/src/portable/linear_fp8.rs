//! Portable FP8 linear layer: operands rounded on the host, products of what the backend has.

use burn::tensor::{
    DType, Shape, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor,
};

use super::{down, meta, rows, up};
use crate::fp8::{Format, Fp8Gradients, Fp8Saved, fits};
use crate::ops::linear_fp8::cpu::round;
use crate::{LmBackend, Tracked};

/// Rows of a history.
const X: usize = 0;
const WEIGHT: usize = 1;
const DY: usize = 2;

/// Portable `q(x) · q(w)ᵀ`.
pub(crate) fn linear_fp8_fwd<B: LmBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    history: Option<FloatTensor<B>>,
    want: Tracked,
) -> (FloatTensor<B>, Fp8Saved<B>) {
    let dims = dims::<B>(&x, &weight);
    let saved = |x, peaks| Fp8Saved { x: want.weight.then_some(x), inverse: None, peaks, history: history.clone() };
    if !fits(dims) {
        return (B::lm_linear(x.clone(), weight), saved(x, None));
    }
    let known = history.as_ref().map(values::<B>);
    let (x, x_peak) = quantised::<B>(x, Format::E4m3, known.as_deref(), X);
    let (weight, w_peak) = quantised::<B>(weight, Format::E4m3, known.as_deref(), WEIGHT);
    let device = B::float_device(&x);
    let peaks = history.as_ref().map(|_| [x_peak, w_peak].map(|peak| vector::<B>(vec![peak], &device)));
    (B::lm_linear(x.clone(), weight), saved(x, peaks))
}

/// Portable gradients of [`linear_fp8_fwd`].
pub(crate) fn linear_fp8_bwd<B: LmBackend>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    saved: Fp8Saved<B>,
    want: Tracked,
    acc: Option<FloatTensor<B>>,
) -> Fp8Gradients<B> {
    let Fp8Saved { x, inverse, peaks, history } = saved;
    assert!(inverse.is_none(), "linear_fp8 backward: x in FP8 is for the device that made it");
    let [m, i, o] = [rows(&dy.shape()).0, weight.shape()[1], weight.shape()[0]];
    let (dy, weight, history) = match fits([m, i, o]) {
        // Nothing was rounded, and a device that is only asked for a plain layer is not read.
        false => (dy, weight, history),
        true => {
            let known = history.as_ref().map(values::<B>);
            let (dy, dy_peak) = quantised::<B>(dy, Format::E5m2, known.as_deref(), DY);
            let weight = match want.x {
                true => quantised::<B>(weight, Format::E4m3, known.as_deref(), WEIGHT).0,
                false => weight,
            };
            let [x_peak, w_peak] = peaks.map_or([0.0; 2], |peaks| peaks.map(|peak| values::<B>(&peak)[0]));
            let next = known.map(|known| next_history::<B>(&known, [x_peak, w_peak, dy_peak], &dy));
            (dy, weight, next)
        }
    };
    let dw = x.filter(|_| want.weight).map(|x| match acc {
        Some(acc) => B::lm_linear_dw_acc(dy.clone(), x, acc),
        None => B::lm_linear_dw(dy.clone(), x),
    });
    Fp8Gradients { dx: want.x.then(|| B::lm_linear_dx(dy, weight)), dw, history }
}

/// Rows, inputs and outputs.
fn dims<B: Backend>(x: &FloatTensor<B>, weight: &FloatTensor<B>) -> [usize; 3] {
    let weight = weight.shape();
    [rows(&x.shape()).0, weight[1], weight[0]]
}

/// The tensor's numbers on the host.
fn values<B: Backend>(tensor: &FloatTensor<B>) -> Vec<f32> {
    let n = tensor.shape().num_elements();
    match n {
        0 => Vec::new(),
        n => up::<B, 1>(tensor.clone(), [n]).into_data().iter::<f32>().collect(),
    }
}

fn vector<B: Backend>(values: Vec<f32>, device: &B::Device) -> FloatTensor<B> {
    let n = values.len();
    let tensor = Tensor::<B, 1>::from_data(TensorData::new(values, [n]), (device, DType::F32));
    tensor.into_primitive().tensor()
}

/// The tensor as FP8 has it, in its own type, and its peak.
fn quantised<B: Backend>(
    tensor: FloatTensor<B>,
    format: Format,
    history: Option<&[f32]>,
    row: usize,
) -> (FloatTensor<B>, f32) {
    let ((dtype, shape), device) = (meta(&tensor), B::float_device(&tensor));
    let mut values = values::<B>(&tensor);
    let history = history.map_or(&[][..], |history| &history[row * history.len() / 3..(row + 1) * history.len() / 3]);
    let own = round(&mut values, format, history);
    let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(vector::<B>(values, &device)));
    (down(flat, dtype, shape), own)
}

/// The history with the new peaks in front.
fn next_history<B: Backend>(history: &[f32], peaks: [f32; 3], like: &FloatTensor<B>) -> FloatTensor<B> {
    let n = history.len() / 3;
    let shifted = |(row, peak): (&[f32], f32)| std::iter::once(peak).chain(row[..n - 1].to_vec()).collect::<Vec<_>>();
    let next = history.chunks(n.max(1)).zip(peaks).flat_map(shifted).collect();
    B::float_reshape(vector::<B>(next, &B::float_device(like)), Shape::new([3, n]))
}
