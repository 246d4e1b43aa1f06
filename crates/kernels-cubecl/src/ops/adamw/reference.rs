//! AdamW by its definition: plain loops in f64.

use super::AdamW;

/// `(param, m, v)` after one step.
pub fn step(param: &[f64], grad: &[f64], m: &[f64], v: &[f64], hyper: &AdamW) -> [Vec<f64>; 3] {
    let (lr, eps, decay) = (f64::from(hyper.lr), f64::from(hyper.eps), f64::from(hyper.weight_decay));
    let (beta1, beta2) = (f64::from(hyper.beta1), f64::from(hyper.beta2));
    let t = hyper.step as f64;
    let (mut new_param, mut new_m, mut new_v) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..param.len() {
        let g = grad[i] * f64::from(hyper.grad_scale);
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
