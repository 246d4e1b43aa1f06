//! The demo's training step: through the real loop, and split into its passes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use data_pipeline::TokenRow;
use kernels_cubecl::{Cpu, clip_scale};
use trainer::batch::{PhaseRows, RowSource};
use trainer::objective::{NextToken, Objective, RouterWeights};
use trainer::observe::{EvalLog, Observe, StepLog};
use trainer::optim::{GradientSum, Optimizer};
use trainer::schedule::Schedule;
use trainer::train::{Save, Surroundings, train};
use trainer::{BatchSource, EvalSet, MicroBatch, Parts, TrainConfig, TrainError, TrainState};

use super::demo::{self, Demo};
use super::measure::{Plan, Spread};
use super::peak::Peak;
use super::table::{Row, Table};

/// Steps per repetition of the plan: the loop's figures come step by step.
const STEPS_PER_REP: usize = 2;

/// Keeps the wall time of every step.
#[derive(Default)]
struct Clock(Vec<f64>);

impl Observe for Clock {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        self.0.push(log.seconds);
        Ok(())
    }

    fn eval(&mut self, _: &EvalLog) -> Result<(), TrainError> {
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        eprintln!("{message}");
    }
}

/// Saves nothing: checkpoints have figures of their own.
struct NoSave;

impl Save<Cpu> for NoSave {
    fn save(&mut self, _: &Parts<Cpu>, _: &TrainState) -> Result<Option<Vec<String>>, TrainError> {
        Ok(Some(Vec::new()))
    }
}

/// Measures every phase of the demo's curriculum.
pub(super) fn measure(plan: Plan, demo: &Demo, peak: &Peak, table: &mut Table) -> Result<()> {
    for phase in &demo.stage.phase {
        let seq_len = phase.seq_len;
        let whole = demo.whole_rows(seq_len);
        for (kind, rows) in [("whole rows", whole.clone()), ("packed documents", demo.packed_rows(seq_len))] {
            let seconds = whole_steps(plan, demo, rows)?;
            add_step(&format!("{} x {seq_len}, {kind}", demo::TOKENS / seq_len), seq_len, &seconds, peak, table);
        }
        split(plan, demo, &whole, table)?;
    }
    Ok(())
}

/// Tokens/s and model arithmetic of a step.
fn add_step(name: &str, seq_len: usize, seconds: &[f64], peak: &Peak, table: &mut Table) {
    let tokens = demo::TOKENS as f64;
    let value = Spread::rate(tokens, seconds);
    table.add(Row { part: "step", name: format!("{name}: step"), unit: "tokens/s", value, share: None });
    let flops = demo::model_config().flops_per_token(seq_len) as f64 * tokens;
    let value = Spread::rate(flops / 1e9, seconds);
    let share = Some(value.median / peak.gflops);
    table.add(Row { part: "step", name: format!("{name}: model arithmetic"), unit: "GFLOP/s", value, share });
}

/// The stage's configuration, as one micro-batch per step.
fn config(demo: &Demo, n_steps: u64) -> TrainConfig {
    TrainConfig {
        max_steps: n_steps,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        eval_every: 0,
        save_every: 0,
        ..demo.stage.train.clone()
    }
}

fn source(rows: Vec<TokenRow>, config: &TrainConfig) -> Result<RowSource> {
    let phase = PhaseRows { until_step: config.max_steps, rows: Arc::new(rows), fingerprint: String::new() };
    Ok(RowSource::new(vec![phase], config)?)
}

/// Seconds per step of the real loop: data thread, forward, backward, norm, clipping, AdamW.
fn whole_steps(plan: Plan, demo: &Demo, rows: Vec<TokenRow>) -> Result<Vec<f64>> {
    let warmup = plan.warmup;
    let config = config(demo, (warmup + plan.reps * STEPS_PER_REP) as u64);
    let source = Box::new(source(rows, &config)?);
    let model = demo::model();
    let optimizer = Optimizer::new(&model, &config, &Default::default());
    let parts = Parts::new(model, optimizer, &config, Default::default());
    let mut clock = Clock::default();
    let mut around = Surroundings {
        eval: &EvalSet::default(),
        save: &mut NoSave,
        observe: &mut clock,
        interrupted: &AtomicBool::new(false),
    };
    let objective = NextToken { z_loss: demo.stage.z_loss, router: RouterWeights::NONE };
    train::<Cpu>(&objective, source, parts, &mut TrainState::default(), &config, &mut around)?;
    Ok(clock.0.split_off(warmup))
}

/// Milliseconds of forward, backward and optimizer; the forward pass holds the gradients of the output head.
fn split(plan: Plan, demo: &Demo, rows: &[TokenRow], table: &mut Table) -> Result<()> {
    let config = config(demo, 1);
    let mut source = source(rows.to_vec(), &config)?;
    let seq_len = source.seq_len(0);
    let mut model = demo::model();
    let mut optimizer = Optimizer::new(&model, &config, &Default::default());
    let objective = NextToken { z_loss: demo.stage.z_loss, router: RouterWeights::NONE };
    let mut passes: [Vec<f64>; 3] = Default::default();
    let n_steps = (plan.warmup + plan.reps) as u64;
    for step in 0..n_steps {
        let batches: Vec<MicroBatch> = source.step(step)?;
        let units: f64 = batches.iter().map(|batch| Objective::<Cpu>::units(&objective, batch)).sum();
        let started = Instant::now();
        let tracked = model.to_autodiff();
        let loss = objective.loss(&tracked, &batches[0], &config.replay(model.blocks.len()), &Default::default())?;
        let forward = started.elapsed();
        let mut gradients = GradientSum::new(model.leaves().len());
        gradients.add(&tracked, loss.sum);
        drop(tracked);
        let backward = started.elapsed();
        let scale = clip_scale(gradients.squares(&Default::default()), units, config.grad_clip);
        model = optimizer.step(model, gradients, &config, config.lr, scale, step + 1);
        let all = started.elapsed();
        if step >= plan.warmup as u64 {
            let parts = [forward, backward - forward, all - backward];
            passes.iter_mut().zip(parts).for_each(|(times, part)| times.push(1e3 * part.as_secs_f64()));
        }
    }
    for (name, times) in ["forward", "backward", "norm + clip + AdamW"].into_iter().zip(passes) {
        let name = format!("{} x {seq_len}, whole rows: {name}", demo::TOKENS / seq_len);
        table.add(Row { part: "step", name, unit: "ms", value: Spread::of(times), share: None });
    }
    Ok(())
}
