//! AdamW by its definition: plain loops in f64. The moments' codes are made from f64 values with the op's own random bits.

use super::packed::{self, BLOCK};
use super::{AdamW, takes_effect};

/// `(param, m, v)` after one step.
pub fn step(param: &[f64], grad: &[f64], m: &[f64], v: &[f64], scale: f64, hyper: &AdamW) -> [Vec<f64>; 3] {
    if !takes_effect(scale as f32) {
        return [param.to_vec(), m.to_vec(), v.to_vec()];
    }
    let (lr, eps, decay) = (f64::from(hyper.lr), f64::from(hyper.eps), f64::from(hyper.weight_decay));
    let (beta1, beta2) = (f64::from(hyper.beta1), f64::from(hyper.beta2));
    let t = hyper.step as f64;
    let (mut new_param, mut new_m, mut new_v) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..param.len() {
        let g = grad[i] * scale;
        let m = beta1 * m[i] + (1.0 - beta1) * g;
        let v = beta2 * v[i] + (1.0 - beta2) * g * g;
        let m_hat = m / (1.0 - beta1.powf(t));
        let v_hat = v / (1.0 - beta2.powf(t));
        new_param.push(param[i] * (1.0 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps));
        new_m.push(m);
        new_v.push(v);
    }
    [new_param, new_m, new_v]
}

/// Codes and scales of numbers; the codes of the first moment carry the sign of the number.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// One code for each element, padded to whole blocks.
    pub codes: Vec<f64>,
    /// One scale for each block.
    pub scales: Vec<f64>,
}

/// Codes of the first moment.
pub fn pack_m(m: &[f64], key: u32) -> Codes {
    pack(m, |i, y| {
        let dither = f64::from(packed::m_dither(packed::random(key, i))) / 2f64.powi(20);
        y.signum() * small_float(y.abs(), 8.0, dither)
    })
}

/// Codes of the second moment, of whose roots they are.
pub fn pack_v(v: &[f64], key: u32) -> Codes {
    let roots: Vec<f64> = v.iter().map(|v| v.sqrt()).collect();
    pack(&roots, |i, y| {
        let dither = f64::from(packed::v_dither(packed::random(key, i))) / 2f64.powi(19);
        let code = small_float(y, 16.0, dither);
        if y > 0.0 { code.max(1.0) } else { code }
    })
}

fn pack(values: &[f64], code: impl Fn(usize, f64) -> f64) -> Codes {
    let (_, blocks) = packed::lengths(values.len());
    let mut out = Codes { codes: vec![0.0; blocks * BLOCK], scales: vec![0.0; blocks] };
    for (block, values) in values.chunks(BLOCK).enumerate() {
        // `max` ignores NaN, a sum of both does not.
        let damaged = values.iter().any(|x| x.is_nan());
        let largest = values.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        let scale = if damaged { f64::NAN } else { largest };
        out.scales[block] = if scale < f64::from(f32::MIN_POSITIVE) { 0.0 } else { scale };
        if scale.is_finite() && out.scales[block] > 0.0 {
            for (i, x) in values.iter().enumerate() {
                let at = block * BLOCK + i;
                out.codes[at] = code(at, x / scale);
            }
        }
    }
    out
}

/// The number of the small float below `y` or above it, as `dither` in 0..1 says, in units of the code; the mantissa has
/// `steps` values and exponents start at −15.
fn small_float(y: f64, steps: f64, dither: f64) -> f64 {
    let exponent = y.max(2f64.powi(-14)).log2().floor();
    let mantissa = (y / exponent.exp2() * steps + dither).floor();
    // Below the smallest normal number the exponent's code is 0, and the leading one of the mantissa is missing.
    (exponent + 14.0) * steps + mantissa
}
