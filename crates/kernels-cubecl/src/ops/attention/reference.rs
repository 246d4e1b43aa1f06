//! Attention by its definition: plain loops in f64, no tiles.

use super::{Operands, Problem};

/// Output of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `[b, t, n·h]`.
    pub out: Vec<f64>,
    /// `[b, n, t]`: log-sum-exp.
    pub lse: Vec<f64>,
}

/// Gradients of the operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Backward {
    /// `[b, t, n·h]`.
    pub dq: Vec<f64>,
    /// `[b, s, k·h]`.
    pub dk: Vec<f64>,
    /// `[b, s, k·h]`.
    pub dv: Vec<f64>,
    /// `[n]`; zeros without sinks.
    pub dsinks: Vec<f64>,
}

impl Backward {
    /// The three gradients in fused rows, `[b, t, (n + 2k)·h]`.
    pub fn dqkv(&self, problem: &Problem) -> Vec<f64> {
        let heads = problem.heads;
        let row = |x: &[f64], row: usize, width: usize| x[row * width..][..width].to_vec();
        let rows = 0..problem.b * problem.t;
        let fused = rows.flat_map(|i| {
            let (k, v) = (row(&self.dk, i, heads.kv_width()), row(&self.dv, i, heads.kv_width()));
            [row(&self.dq, i, heads.q_width()), k, v].concat()
        });
        fused.collect()
    }
}

fn dot(a: &[f64], b: &[f64], len: usize) -> f64 {
    (0..len).map(|i| a[i] * b[i]).sum()
}

/// Visible keys with their probabilities, and the log-sum-exp, of one query of one head.
fn softmax(x: &Operands<f64>, problem: &Problem, sinks: &[f64], at: [usize; 3]) -> (Vec<(usize, f64)>, f64) {
    let ([b, t, n], h) = (at, problem.heads.d_head);
    let kv = n / problem.heads.group() * h;
    let q = x.q.at(b, t, n * h);
    let scores: Vec<(usize, f64)> =
        problem.span(b, t).map(|s| (s, f64::from(problem.scale) * dot(q, x.k.at(b, s, kv), h))).collect();
    let sink = sinks.get(n).copied().unwrap_or(f64::NEG_INFINITY);
    let max = scores.iter().fold(sink, |max, &(_, score)| if score > max { score } else { max });
    if max == f64::NEG_INFINITY && scores.iter().all(|(_, score)| *score == max) {
        return (scores.into_iter().map(|(s, _)| (s, 0.0)).collect(), max);
    }
    let total: f64 = scores.iter().map(|(_, score)| (score - max).exp()).sum::<f64>() + (sink - max).exp();
    let lse = max + total.ln();
    (scores.into_iter().map(|(s, score)| (s, (score - lse).exp())).collect(), lse)
}

/// Output and log-sum-exp; `sinks` is `[n]`, or empty where there are none.
pub fn forward(x: &Operands<f64>, problem: &Problem, sinks: &[f64]) -> Forward {
    let (heads, h) = (problem.heads, problem.heads.d_head);
    let mut out = vec![0.0; problem.b * problem.t * heads.q_width()];
    let mut lse = vec![0.0; problem.b * heads.n_heads * problem.t];
    for b in 0..problem.b {
        for t in 0..problem.t {
            for n in 0..heads.n_heads {
                let (p, l) = softmax(x, problem, sinks, [b, t, n]);
                lse[(b * heads.n_heads + n) * problem.t + t] = l;
                let o = &mut out[(b * problem.t + t) * heads.q_width() + n * h..][..h];
                for (s, p) in p {
                    let v = x.v.at(b, s, n / heads.group() * h);
                    (0..h).for_each(|i| o[i] += p * v[i]);
                }
            }
        }
    }
    Forward { out, lse }
}

/// Gradients for the upstream gradient `dout [b, t, n·h]`.
pub fn backward(dout: &[f64], x: &Operands<f64>, problem: &Problem, sinks: &[f64]) -> Backward {
    let (heads, h, scale) = (problem.heads, problem.heads.d_head, f64::from(problem.scale));
    let kv_len = problem.b * problem.s * heads.kv_width();
    let mut grad = Backward {
        dq: vec![0.0; problem.b * problem.t * heads.q_width()],
        dk: vec![0.0; kv_len],
        dv: vec![0.0; kv_len],
        dsinks: vec![0.0; heads.n_heads],
    };
    for b in 0..problem.b {
        for t in 0..problem.t {
            for n in 0..heads.n_heads {
                let (p, lse) = softmax(x, problem, sinks, [b, t, n]);
                let q_at = (b * problem.t + t) * heads.q_width() + n * h;
                let (dout, q) = (&dout[q_at..], x.q.at(b, t, n * h));
                let kv_offset = n / heads.group() * h;
                let dp = |s: usize| dot(dout, x.v.at(b, s, kv_offset), h);
                let delta: f64 = p.iter().map(|&(s, p)| p * dp(s)).sum();
                if let Some(sink) = sinks.get(n) {
                    grad.dsinks[n] -= (sink - lse).exp() * delta;
                }
                for &(s, p) in &p {
                    let ds = p * (dp(s) - delta);
                    let (k, kv_at) = (x.k.at(b, s, kv_offset), (b * problem.s + s) * heads.kv_width() + kv_offset);
                    for i in 0..h {
                        grad.dq[q_at + i] += scale * ds * k[i];
                        grad.dk[kv_at + i] += scale * ds * q[i];
                        grad.dv[kv_at + i] += p * dout[i];
                    }
                }
            }
        }
    }
    grad
}
