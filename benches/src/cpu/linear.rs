//! Matrix products of linear layers: forward, gradient of the input, gradient of the weight.

use kernels_cubecl::{Cpu, LmBackend};
use model_core::ModelConfig;

use super::demo::{self, values};
use super::measure::{Plan, Spread, repeat};
use super::peak::Peak;
use super::table::{Row, Table};

/// A product of `m` rows: width in, width out.
struct Shape {
    name: &'static str,
    m: usize,
    i: usize,
    o: usize,
}

/// The demo's projections at its tokens per step, and products as larger models have them.
fn shapes(config: &ModelConfig) -> Vec<Shape> {
    let m = demo::TOKENS;
    let shape = |name, i, o| Shape { name, m, i, o };
    vec![
        shape("demo qkv", config.d_model, config.heads().width()),
        shape("demo attention output", config.attention_width(), config.d_model),
        shape("demo gate + up", config.d_model, 2 * config.d_ff),
        shape("demo down", config.d_ff, config.d_model),
        shape("demo head", config.d_model, config.vocab_size),
        shape("larger", 1024, 1024),
        shape("larger", 1024, 4096),
    ]
}

/// Measures every shape in three directions.
pub(super) fn measure(plan: Plan, peak: &Peak, table: &mut Table) {
    for Shape { name, m, i, o } in shapes(&demo::model_config()) {
        let (x, w, dy) = (values(&[m, i], 1), values(&[o, i], 2), values(&[m, o], 3));
        let forward = repeat(plan, || Cpu::lm_linear(x.clone(), w.clone()));
        let dx = repeat(plan, || Cpu::lm_linear_dx(dy.clone(), w.clone()));
        let dw = repeat(plan, || Cpu::lm_linear_dw(dy.clone(), x.clone()));
        let flops = 2.0 * (m * i * o) as f64;
        for (direction, seconds) in [("forward", forward), ("dx", dx), ("dw", dw)] {
            let value = Spread::rate(flops / 1e9, &seconds);
            let (name, share) = (format!("{name} {m}x{i}x{o} {direction}"), Some(value.median / peak.gflops));
            table.add(Row { part: "linear", name, unit: "GFLOP/s", value, share });
        }
    }
}
