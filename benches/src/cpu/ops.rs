//! Every op of a training step at the demo's shapes, in milliseconds of the step: where its time goes.
//!
//! Each figure is the time of one call times the calls of a step. Ops that work in place on a tensor that nobody else
//! holds work on a copy here, so that their sum is a little more than the step.

use anyhow::Result;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Tensor, TensorPrimitive};
use kernels_cubecl::{
    AdamW, Cpu, Gathered, Leaf, LmBackend, Master, Moments, Rotation, Tracked, adamw_step, sum_squares,
};
use model_core::{ModelConfig, Rows};

use super::demo::{self, Demo, values, whole_numbers};
use super::measure::{Plan, Spread, repeat};
use super::peak::Peak;
use super::table::{Row, Table};

/// Adds rows of one shape of batch.
struct Bench<'a> {
    plan: Plan,
    peak: &'a Peak,
    table: &'a mut Table,
    shape: String,
}

impl Bench<'_> {
    /// Measures `calls` calls per step, of `flops` model operations each.
    fn add<T>(&mut self, name: &str, calls: usize, flops: f64, work: impl FnMut() -> T) {
        let seconds = repeat(self.plan, work);
        let value = Spread::of(seconds.iter().map(|s| 1e3 * s * calls as f64).collect());
        let share = (flops > 0.0).then(|| flops * calls as f64 / 1e9 / (value.median / 1e3) / self.peak.gflops);
        let name = format!("{}{name}, {calls} calls", self.shape);
        self.table.add(Row { part: "ops", name, unit: "ms/step", value, share });
    }
}

/// Measures attention at every row length of the demo, the other ops once.
pub(super) fn measure(plan: Plan, demo: &Demo, peak: &Peak, table: &mut Table) -> Result<()> {
    let config = demo::model_config();
    let mut bench = Bench { plan, peak, table, shape: String::new() };
    rows_of_tokens(&mut bench, &config);
    head_and_embedding(&mut bench, &config);
    optimizer(&mut bench, demo);
    for phase in &demo.stage.phase {
        bench.shape = format!("{} x {}: ", demo::TOKENS / phase.seq_len, phase.seq_len);
        attention(&mut bench, &config, phase.seq_len)?;
    }
    Ok(())
}

/// Norms and the gated unit.
fn rows_of_tokens(bench: &mut Bench, config: &ModelConfig) {
    let (m, d, f, n_layers) = (demo::TOKENS, config.d_model, config.d_ff, config.n_layers);
    let (x, residual, gamma) = (values(&[m, d], 1), values(&[m, d], 2), values(&[d], 3));
    let eps = config.rms_norm_eps;
    bench.add("add + rms norm, forward", 2 * n_layers, 0.0, || {
        Cpu::lm_add_rms_norm_fwd(x.clone(), residual.clone(), gamma.clone(), eps, None)
    });
    let (_, rstd) = Cpu::lm_rms_norm_fwd(x.clone(), gamma.clone(), eps, None);
    bench.add("rms norm, backward", 2 * n_layers + 1, 0.0, || {
        let carry = Some(residual.clone());
        Cpu::lm_rms_norm_bwd(residual.clone(), x.clone(), gamma.clone(), rstd.clone(), carry, None)
    });
    let (gate_up, dy) = (values(&[m, 2 * f], 4), values(&[m, f], 5));
    bench.add("swiglu, forward", n_layers, 0.0, || Cpu::lm_swiglu(gate_up.clone(), Gathered::default()));
    bench.add("swiglu, backward", n_layers, 0.0, || Cpu::lm_swiglu_bwd(dy.clone(), gate_up.clone(), None));
}

/// The two ends of the model.
fn head_and_embedding(bench: &mut Bench, config: &ModelConfig) {
    let (m, d, v) = (demo::TOKENS, config.d_model, config.vocab_size);
    let (x, weight, dy) = (values(&[m, d], 1), values(&[v, d], 2), values(&[m, d], 3));
    let ids = |dims: &[usize]| whole_numbers((0..m).map(|i| (i * 7919 % v) as i32).collect(), dims);
    let (rows, flat) = (ids(&[1, m]), ids(&[m]));
    bench.add("embedding, forward", 1, 0.0, || Cpu::lm_embedding(weight.clone(), rows.clone()));
    bench.add("embedding, backward", 1, 0.0, || Cpu::lm_embedding_bwd(dy.clone(), rows.clone(), v));
    let (ones, want) = (values(&[m], 4), Tracked { x: true, weight: true });
    bench.add("head + cross-entropy, forward and backward", 1, (6 * m * d * v) as f64, || {
        Cpu::lm_linear_cross_entropy_fwd(x.clone(), weight.clone(), flat.clone(), ones.clone(), 1e-4, want)
    });
}

/// Global norm and AdamW over all parameters; the tensors stay with the optimizer and change in place.
fn optimizer(bench: &mut Bench, demo: &Demo) {
    let n = demo::model_config().n_params() as usize;
    let leaf = |seed| Leaf::Vector(Tensor::<Cpu, 1>::from_primitive(TensorPrimitive::Float(values(&[n], seed))));
    let (grad, scale) = (leaf(1), Tensor::from_floats([1.0], &Default::default()));
    bench.add("sum of squares of the gradients", 1, 0.0, || sum_squares(grad.clone().vector()));
    let train = &demo.stage.train;
    let hyper = AdamW {
        lr: train.lr as f32,
        beta1: train.beta1 as f32,
        beta2: train.beta2 as f32,
        eps: train.eps as f32,
        weight_decay: train.weight_decay as f32,
        step: 10,
        seed: 0,
    };
    let zeros = || Some(leaf(2));
    let (mut param, mut first, mut second) = (zeros(), zeros(), zeros());
    bench.add("AdamW", 1, 0.0, || {
        let [p, m, v] = [&mut param, &mut first, &mut second].map(|slot| slot.take().expect("put back below"));
        let moments = Moments::Full { m, v };
        let (p, _, moments) = adamw_step(p, grad.clone(), Master::Nearest, moments, scale.clone(), &hyper);
        let Moments::Full { m, v } = moments else { unreachable!("full moments stay full") };
        (param, first, second) = (Some(p), Some(m), Some(v));
    });
}

/// Rotation and attention over whole rows.
fn attention(bench: &mut Bench, config: &ModelConfig, seq_len: usize) -> Result<()> {
    let (b, heads, n_layers) = (demo::TOKENS / seq_len, config.heads(), config.n_layers);
    let qkv = values(&[b, seq_len, heads.width()], 1);
    let half = [b, seq_len, heads.d_head / 2];
    let (cos, sin) = (values(&half, 2), values(&half, 3));
    for (name, rotation) in [("forward", Rotation::Forward), ("backward", Rotation::Backward)] {
        let rotate = || Cpu::lm_rope_qkv(qkv.clone(), cos.clone(), sin.clone(), heads, rotation, None);
        bench.add(&format!("rotary embedding, {name}"), n_layers, 0.0, rotate);
    }
    let (start, end) = spans(b, seq_len)?;
    let (dout, scale) = (values(&[b, seq_len, heads.q_width()], 4), config.attention_scale());
    let forward = || Cpu::lm_attention_fwd(qkv.clone(), start.clone(), end.clone(), None, heads, scale, None);
    let flops = (2 * demo::TOKENS * seq_len * heads.q_width()) as f64;
    bench.add("attention, forward", n_layers, flops, forward);
    let (out, lse): (FloatTensor<Cpu>, FloatTensor<Cpu>) = forward();
    bench.add("attention, backward", n_layers, 2.0 * flops, || {
        let (dout, qkv, out, lse) = (dout.clone(), qkv.clone(), out.clone(), lse.clone());
        Cpu::lm_attention_bwd(dout, qkv, out, lse, start.clone(), end.clone(), None, heads, scale)
    });
    Ok(())
}

/// Every query sees its row up to itself.
fn spans(b: usize, seq_len: usize) -> Result<(IntTensor<Cpu>, IntTensor<Cpu>)> {
    let (start, end) = Rows::from_segments(b, seq_len, vec![0; b * seq_len], vec![0; b * seq_len])?.spans();
    Ok((whole_numbers(start, &[b, seq_len]), whole_numbers(end, &[b, seq_len])))
}
