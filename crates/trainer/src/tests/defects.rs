//! Defects of the original system that the loop must not have: dead keys, hidden overrides, weights of low precision.

use burn::tensor::DType;

use super::tiny::{SEQ_LEN, config, model, rows, run, values};
use crate::TrainConfig;
use crate::config::{Arithmetic, Fp8Scaling, HistoryLength};
use crate::objective::{NextToken, RouterWeights};

const OBJECTIVE: NextToken = NextToken { z_loss: 0.0, router: RouterWeights::NONE };

#[test]
fn s11_every_key_of_the_configuration_changes_the_run_it_should() {
    let rows = rows(24, 3);
    let base = config(5);
    let weights = |config: &TrainConfig| values(&run(&OBJECTIVE, rows.clone(), config).model.unwrap());
    let want = weights(&base);
    let variants: [(&str, TrainConfig); 10] = [
        ("lr", TrainConfig { lr: 2e-2, ..base.clone() }),
        ("min_lr", TrainConfig { min_lr: 5e-3, ..base.clone() }),
        ("schedule", TrainConfig { schedule: crate::schedule::Schedule::Linear, ..base.clone() }),
        ("warmup_steps", TrainConfig { warmup_steps: 3, ..base.clone() }),
        ("beta1", TrainConfig { beta1: 0.8, ..base.clone() }),
        ("beta2", TrainConfig { beta2: 0.999, ..base.clone() }),
        ("weight_decay", TrainConfig { weight_decay: 0.0, ..base.clone() }),
        ("seed", TrainConfig { seed: 6, ..base.clone() }),
        ("moments", TrainConfig { moments: crate::config::MomentsKind::Packed, ..base.clone() }),
        ("max_steps", TrainConfig { max_steps: 6, stop_after: Some(5), ..base.clone() }),
    ];
    for (key, config) in &variants {
        assert_ne!(weights(config), want, "`{key}` is not read");
    }
    // FP8 products, where their scales come from, and how far those look back.
    let fp8 = TrainConfig { precision: Arithmetic::Fp8, ..base.clone() };
    let delayed = TrainConfig { fp8_scaling: Fp8Scaling::Delayed, ..fp8.clone() };
    let short = TrainConfig { fp8_history: HistoryLength(1), ..delayed.clone() };
    let kinds = [base.clone(), fp8, delayed, short].map(|config| weights(&config));
    assert!((1..4).all(|i| !kinds[..i].contains(&kinds[i])), "`precision`, `fp8_scaling` or `fp8_history` is not read");
    // These say when and how work is done; they must not change what is computed.
    for config in [
        TrainConfig { log_every: 3, ..base.clone() },
        TrainConfig { peak_tflops: 9.0, ..base.clone() },
        TrainConfig { recompute: true.into(), ..base.clone() },
        TrainConfig { recompute: true.into(), offload: true.into(), ..base.clone() },
    ] {
        assert_eq!(weights(&config), want);
    }
}

#[test]
fn s11_the_logged_rate_is_the_schedule_down_to_min_lr() {
    let config = config(40);
    let ran = run(&OBJECTIVE, rows(8, 3), &config);
    for (i, step) in ran.seen.steps.iter().enumerate() {
        assert_eq!(step.lr, config.learning_rate().at(i as u64));
    }
    let last = ran.seen.steps.last().unwrap().lr;
    assert!(last < 1.02 * config.min_lr + 1e-4 && last >= config.min_lr, "{last}");
}

#[test]
fn s11_clipping_and_eps_are_applied() {
    // Adam is blind to the scale of the gradient, except through eps: with a large eps the clipped step is the smaller one.
    let weights = |grad_clip: f64| {
        let config = TrainConfig { grad_clip, eps: 1.0, weight_decay: 0.0, ..config(1) };
        values(&run(&OBJECTIVE, rows(8, 3), &config).model.unwrap())
    };
    let start = values(&model());
    let moved = |after: Vec<Vec<f32>>| -> f64 {
        let squares = start.iter().flatten().zip(after.iter().flatten()).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let (free, clipped) = (moved(weights(1e6)), moved(weights(1e-3)));
    assert!(clipped > 0.0 && clipped < 0.1 * free, "{clipped} after {free}");
}

#[test]
fn decay_is_on_matrices_only() {
    let weights = |weight_decay: f64| {
        let config = TrainConfig { weight_decay, lr: 1e-3, min_lr: 1e-3, ..config(1) };
        values(&run(&OBJECTIVE, rows(8, 3), &config).model.unwrap())
    };
    let (with, without) = (weights(0.5), weights(0.0));
    for ((with, without), named) in with.iter().zip(&without).zip(model().leaves()) {
        let is_matrix = named.leaf.dims().len() == 2;
        assert_eq!(with != without, is_matrix, "{}", named.name);
    }
}

#[test]
fn s14_master_weights_are_f32_and_keep_updates_that_bf16_would_lose() {
    // Norm gains are 1 and every Adam step moves them by about lr. The neighbours of 1 in bf16 are 1/256 and 1/128 away,
    // so a bf16 weight would not move at all.
    let config = TrainConfig { lr: 1e-5, min_lr: 1e-5, warmup_steps: 0, ..config(20) };
    let ran = run(&OBJECTIVE, rows(8, 3), &config);
    let trained = ran.model.unwrap();
    for named in trained.leaves() {
        assert_eq!(named.leaf.clone().into_data().dtype, DType::F32, "{}", named.name);
    }
    let gains = trained.final_norm.gamma.into_data().to_vec::<f32>().unwrap();
    let moved = gains.iter().map(|gain| (gain - 1.0).abs()).fold(0.0f32, f32::max);
    assert!(moved > 5e-5 && moved < 1.0 / 256.0, "gains moved by {moved:e}");
}

#[test]
fn n10_the_number_of_threads_changes_nothing() {
    // The kernels promise it; here the whole loop is held to it, in pools of different sizes.
    let weights = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let config = TrainConfig { tokens_per_micro_batch: 8 * SEQ_LEN as u64, ..config(3) };
        pool.install(|| values(&run(&OBJECTIVE, rows(8, 3), &config).model.unwrap()))
    };
    let want = weights(1);
    for threads in [2, 7] {
        assert_eq!(weights(threads), want, "{threads} threads");
    }
}
