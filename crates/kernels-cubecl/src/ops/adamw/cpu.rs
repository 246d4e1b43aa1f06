//! The optimizer step on the CPU: one pass over all arrays, in place.

use multiversion::multiversion;
use rayon::prelude::*;

use super::packed::{self, BLOCK, CODES};
use super::{AdamW, Factors, takes_effect};
use crate::cpu::parallel::{TASK, tasks3};

/// Updates `param`, `m` and `v`.
pub(crate) fn step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], scale: f32, hyper: &AdamW) {
    if !takes_effect(scale) {
        return;
    }
    let factors = hyper.factors();
    tasks3([(param, TASK), (m, TASK), (v, TASK)], |task, [param, m, v]| {
        let grad = &grad[task * TASK..][..param.len()];
        update(param, grad, m, v, scale, factors);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], scale: f32, factors: Factors) {
    let Factors { beta1, rest1, beta2, rest2, keep, step, inverse_root2, eps, .. } = factors;
    for (((param, &grad), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        let grad = grad * scale;
        *m = beta1 * *m + rest1 * grad;
        *v = beta2 * *v + rest2 * grad * grad;
        *param = *param * keep - step * *m / (v.sqrt() * inverse_root2 + eps);
    }
}

/// Moments in 8 bits, on the host.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) m: Vec<i32>,
    pub(crate) m_scale: Vec<f32>,
    pub(crate) v: Vec<i32>,
    pub(crate) v_scale: Vec<f32>,
}

/// Updates `param` and packed moments, a block at a time.
pub(crate) fn step_packed(param: &mut [f32], grad: &[f32], moments: &mut Packed, scale: f32, hyper: &AdamW) {
    if !takes_effect(scale) {
        return;
    }
    let factors = hyper.factors();
    let codes = moments.m.par_chunks_mut(BLOCK / CODES).zip(moments.v.par_chunks_mut(BLOCK / CODES));
    let scales = moments.m_scale.par_iter_mut().zip(&mut moments.v_scale);
    let params = param.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK));
    params.zip(codes).zip(scales).enumerate().with_min_len(TASK / BLOCK).for_each(
        |(block, (((param, grad), (m_words, v_words)), (m_scale, v_scale)))| {
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            for i in 0..param.len() {
                m[i] = packed::decode_m(packed::code(m_words, i)) * *m_scale;
                let root = packed::decode_v(packed::code(v_words, i)) * *v_scale;
                v[i] = root * root;
            }
            let (m, v) = (&mut m[..param.len()], &mut v[..param.len()]);
            update(param, grad, m, v, scale, factors);
            v.iter_mut().for_each(|v| *v = v.sqrt());
            let (inverses, mut codes) = (scales_of(m, v, m_scale, v_scale), [[0; BLOCK]; 2]);
            for i in 0..m.len() {
                let random = packed::random(factors.key, block * BLOCK + i);
                codes[0][i] = packed::encode_m(m[i], inverses[0], random);
                codes[1][i] = packed::encode_v(v[i], inverses[1], random);
            }
            packed::pack(&codes[0], m_words);
            packed::pack(&codes[1], v_words);
        },
    );
}

/// Sets both scales and gives their reciprocals.
fn scales_of(m: &[f32], roots: &[f32], m_scale: &mut f32, v_scale: &mut f32) -> [f32; 2] {
    let mut inverses = [0.0; 2];
    (*m_scale, inverses[0]) = packed::scale(m);
    (*v_scale, inverses[1]) = packed::scale(roots);
    inverses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Fill;

    const N: usize = 4 * BLOCK + 7;

    fn hyper(step: u64) -> AdamW {
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step, seed: 3 }
    }

    fn empty() -> Packed {
        let (words, blocks) = packed::lengths(N);
        Packed { m: vec![0; words], m_scale: vec![0.0; blocks], v: vec![0; words], v_scale: vec![0.0; blocks] }
    }

    /// Mean of the second moment.
    fn mean_v(moments: &Packed) -> f64 {
        let value = |i: usize| {
            let block = i / BLOCK;
            let words = &moments.v[block * BLOCK / CODES..];
            f64::from(packed::decode_v(packed::code(words, i % BLOCK)) * moments.v_scale[block]).powi(2)
        };
        (0..N).map(value).sum::<f64>() / N as f64
    }

    /// A step changes the root of a moment by 1/2000 here, a thirtieth of what rounding to nearest would notice.
    #[test]
    fn packed_moments_decay() {
        let (mut param, mut moments) = (vec![0.0; N], empty());
        let grad = Fill::Typical.values(1, N);
        for step in 1..=50 {
            step_packed(&mut param, &grad, &mut moments, 1.0, &hyper(step));
        }
        let before = mean_v(&moments);
        for step in 51..=550 {
            step_packed(&mut param, &[0.0; N], &mut moments, 1.0, &hyper(step));
        }
        let (share, want) = (mean_v(&moments) / before, 0.999f64.powi(500));
        assert!((share / want - 1.0).abs() < 0.03, "after 500 steps {share} is left, want {want}");
    }

    /// A noisy quadratic: packed moments find the minimum as closely as full ones.
    #[test]
    fn packed_moments_train_as_full_ones() {
        let target = Fill::Typical.values(7, N);
        let loss = |param: &[f32]| {
            let errors = param.iter().zip(&target).map(|(p, t)| f64::from(p - t).powi(2));
            errors.sum::<f64>() / N as f64
        };
        let (mut full, mut m, mut v) = (vec![0.0; N], vec![0.0; N], vec![0.0; N]);
        let (mut param, mut moments) = (vec![0.0; N], empty());
        for t in 1..=400 {
            let noise = Fill::Typical.values(100 + t, N);
            let grad = |param: &[f32]| -> Vec<f32> { (0..N).map(|i| param[i] - target[i] + 0.3 * noise[i]).collect() };
            let g = grad(&full);
            step(&mut full, &g, &mut m, &mut v, 1.0, &hyper(t));
            let g = grad(&param);
            step_packed(&mut param, &g, &mut moments, 1.0, &hyper(t));
        }
        let (full, packed) = (loss(&full), loss(&param));
        assert!(full < 0.02 && packed < 1.1 * full, "full moments reach {full}, packed ones {packed}");
    }
}
