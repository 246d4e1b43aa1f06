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
