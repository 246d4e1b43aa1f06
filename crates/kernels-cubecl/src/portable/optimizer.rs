//! Portable optimizer step and gradient norm: the optimizer's bits are set on the host, whatever the backend.

use burn::tensor::{DType, Element, FloatDType, Int, Shape, Tensor, TensorData, backend::Backend, ops::FloatTensor};

use super::{down, meta, up};
use crate::ops::adamw::{cpu, master};
use crate::{AdamW, Leaf, Master, Moments, PackedMoments};

/// The elements of a tensor on the host.
fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    values(tensor.cast(FloatDType::F32).into_data())
}

/// The whole numbers of a tensor on the host.
fn host_ints<B: Backend>(tensor: Tensor<B, 1, Int>) -> Vec<i32> {
    values(tensor.into_data().convert::<i32>())
}

fn values<T: Element>(data: TensorData) -> Vec<T> {
    data.into_vec().expect("the element type was just converted")
}

/// A primitive of these elements.
fn device_values<B: Backend>(values: Vec<f32>, dtype: DType, shape: Shape, device: &B::Device) -> FloatTensor<B> {
    let n = values.len();
    down(Tensor::<B, 1>::from_data(TensorData::new(values, [n]), (device, DType::F32)), dtype, shape)
}

fn device_scales<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), (device, DType::F32))
}

fn device_ints<B: Backend>(values: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), (device, DType::I32))
}

/// Portable optimizer step.
pub(crate) fn adamw_step<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    master: Master<B>,
    moments: Moments<B>,
    scale: FloatTensor<B>,
    hyper: &AdamW,
) -> (FloatTensor<B>, Master<B>, Moments<B>) {
    let scale = host(up::<B, 1>(scale, [1]))[0];
    let (dtype, shape) = meta(&param);
    let n = shape.num_elements();
    if n == 0 || !crate::ops::adamw::takes_effect(scale) {
        return (param, master, moments);
    }
    let (param, grad) = (up::<B, 1>(param, [n]), host(up::<B, 1>(grad, [n])));
    let device = param.device();
    let mut values = host(param);
    if let Master::Remainder(remainder) = &master {
        // The working values came from bf16, so that going back loses nothing.
        let working: Vec<half::bf16> = values.iter().map(|&x| half::bf16::from_f32(x)).collect();
        values = master::join_all(&working, &host_ints(remainder.clone()));
    }
    let moments = step_moments(&mut values, &grad, moments, scale, hyper, &device);
    let master = match master {
        Master::Nearest => Master::Nearest,
        Master::Stochastic => {
            let key = hyper.key();
            for (i, x) in values.iter_mut().enumerate() {
                let random = master::dither(crate::ops::adamw::packed::random(key, i));
                *x = master::round_stochastically(*x, random).to_f32();
            }
            Master::Stochastic
        }
        Master::Remainder(_) => {
            let (working, remainder) = master::split_all(&values);
            values = working.into_iter().map(half::bf16::to_f32).collect();
            Master::Remainder(device_ints(remainder, &device))
        }
    };
    (device_values::<B>(values, dtype, shape, &device), master, moments)
}

/// Updates `param` and gives the new moments.
fn step_moments<B: Backend>(
    param: &mut [f32],
    grad: &[f32],
    moments: Moments<B>,
    scale: f32,
    hyper: &AdamW,
    device: &B::Device,
) -> Moments<B> {
    match moments {
        Moments::Full { m, v } => {
            let n = param.len();
            let [(mut m_host, m_meta), (mut v_host, v_meta)] = [m, v].map(|moment| {
                let moment = moment.into_primitive();
                let meta = meta(&moment);
                (host(up::<B, 1>(moment, [n])), meta)
            });
            cpu::step(param, grad, &mut m_host, &mut v_host, scale, hyper);
            let leaf = |values, (dtype, shape)| Leaf::from_primitive(device_values::<B>(values, dtype, shape, device));
            Moments::Full { m: leaf(m_host, m_meta), v: leaf(v_host, v_meta) }
        }
        Moments::Packed(PackedMoments { m, m_scale, v, v_scale }) => {
            let mut packed =
                cpu::Packed { m: host_ints(m), m_scale: host(m_scale), v: host_ints(v), v_scale: host(v_scale) };
            cpu::step_packed(param, grad, &mut packed, scale, hyper);
            Moments::Packed(PackedMoments {
                m: device_ints(packed.m, device),
                m_scale: device_scales(packed.m_scale, device),
                v: device_ints(packed.v, device),
                v_scale: device_scales(packed.v_scale, device),
            })
        }
    }
}

/// Portable sum of all elements, in f64.
pub(crate) fn sum_parts<B: Backend>(parts: FloatTensor<B>) -> FloatTensor<B> {
    let n = meta(&parts).1.num_elements();
    let parts = up::<B, 1>(parts, [n]);
    let device = parts.device();
    let sum: f64 = host(parts).into_iter().map(f64::from).sum();
    device_values::<B>(vec![sum as f32], DType::F32, Shape::new([1]), &device)
}

/// Portable write of a sum of squares into row `index` of the partial sums.
pub(crate) fn sum_squares_into<B: Backend>(parts: FloatTensor<B>, index: usize, sum: FloatTensor<B>) -> FloatTensor<B> {
    let (dtype, shape) = meta(&parts);
    let parts = up::<B, 2>(parts, [shape[0], shape[1]]);
    down(parts.slice_assign([index..index + 1, 0..1], up::<B, 2>(sum, [1, 1])), dtype, shape)
}

/// Portable factor of the gradient.
pub(crate) fn clip_scale<B: Backend>(squares: FloatTensor<B>, units: f64, max_norm: f64) -> FloatTensor<B> {
    let squares = up::<B, 1>(squares, [1]);
    let device = squares.device();
    let scale = crate::ops::sum_squares::clip_scale(host(squares)[0], units as f32, max_norm as f32);
    device_values::<B>(vec![scale], DType::F32, Shape::new([1]), &device)
}
