//! Policy losses against golden numbers, every knob, and what they refuse.

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use data_pipeline::{PADDING_SEGMENT, TokenRow};
use kernels_cubecl::Cpu;
use model_core::hf::TensorFile;
use model_core::{Decoder, Replay};

use super::router::mixture;
use super::tiny::{batch, leaf_values, model, random};
use crate::objective::{
    AdvantageScale, Aggregation, LossSum, MetricSum, Objective, Policy, PolicyTokens, RATIO_BEYOND, RATIO_DEVIATION,
    RatioLevel, RouterWeights, SAMPLER_BEYOND, advantages, deviation, sample_logprobs, token_losses,
};
use crate::{MicroBatch, Sample, TrainError};

const GOLDEN: Policy = Policy {
    aggregation: Aggregation::Dapo,
    level: RatioLevel::Token,
    clip_low: 0.2,
    clip_high: 0.28,
    delta: None,
    beta: 0.04,
    kl_bias_correction: false,
    max_completion: 16,
    router: RouterWeights::NONE,
    ratio_bound: 1e-6,
    sampler_bound: 1e-4,
};

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // NaN compares as false and fails.
        assert!((got - want).abs() <= 1e-6 + 2e-6 * want.abs(), "{what}[{i}]: {got}, want {want}");
    }
}

fn golden(name: &str) -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/losses.safetensors");
    TensorFile::open(&path).unwrap().read_f32(&format!("grpo.{name}")).unwrap()
}

#[test]
fn golden_advantages_and_their_scales() {
    let rewards = golden("rewards").iter().map(|r| f64::from(*r)).collect::<Vec<_>>();
    let groups: Vec<Vec<f64>> = rewards.chunks(2).map(<[f64]>::to_vec).collect();
    let flat = |scale| advantages(&groups, scale).concat().iter().map(|a| *a as f32).collect::<Vec<f32>>();
    close("adv", &flat(AdvantageScale::Group), &golden("adv"));
    let all = deviation(&rewards) + 1e-4;
    let plain = flat(AdvantageScale::None);
    close("none", &plain, &[0.5, -0.5, -0.3, 0.3]);
    close("batch", &flat(AdvantageScale::Batch), &plain.iter().map(|a| a / all as f32).collect::<Vec<_>>());
    // A mean that rounds must not make a spread out of equal rewards.
    assert_eq!(advantages(&[vec![0.1; 3], vec![0.7]], AdvantageScale::Group), [vec![0.0; 3], vec![0.0]]);
}

#[test]
fn the_grpo_family_reproduces_the_golden_losses_and_gradients() {
    let device = Default::default();
    let vector = |values: Vec<f32>| Tensor::<Autodiff<Cpu>, 1>::from_floats(values.as_slice(), &device);
    let (mask, adv) = (golden("mask"), golden("adv"));
    let members: Vec<Vec<usize>> =
        (0..4).map(|row| (9 * row..9 * row + 9).filter(|&i| mask[i] > 0.0).collect()).collect();
    let n_all: usize = members.iter().map(Vec::len).sum();
    for (name, aggregation) in [
        ("grpo", Aggregation::Grpo),
        ("bnpo", Aggregation::Bnpo),
        ("dr_grpo", Aggregation::DrGrpo),
        ("dapo", Aggregation::Dapo),
    ] {
        for kl_bias_correction in [false, true] {
            let config = Policy { aggregation, kl_bias_correction, ..GOLDEN };
            // The batch's sum over the units that the loop divides by, as completions would give them.
            let completions: Vec<Sample> = members.iter().map(|positions| sample(0..1, positions.len())).collect();
            let units = config.batch_units(&completions) as f32;
            let mut weights = vec![0.0f32; 36];
            for positions in &members {
                positions.iter().for_each(|&at| weights[at] = config.weight(positions.len(), n_all));
            }
            let logprob = vector(golden("logps")).require_grad();
            let tokens = PolicyTokens {
                old: vector(golden("old")),
                reference: Some(vector(golden("ref"))),
                advantage: vector(adv.iter().flat_map(|a| [*a; 9]).collect()),
                members: members.clone(),
            };
            let loss = (token_losses(&config, logprob.clone(), tokens) * vector(weights)).sum().div_scalar(units);
            let case = format!("{name}.klcorr{}", u8::from(kl_bias_correction));
            let host = |tensor: Tensor<Cpu, 1>| tensor.into_data().to_vec::<f32>().unwrap();
            close(&format!("{case}.loss"), &host(loss.clone().inner()), &golden(&format!("{case}.loss")));
            let gradient = logprob.grad(&loss.backward()).unwrap();
            close(&format!("{case}.grad"), &host(gradient), &golden(&format!("{case}.grad")));
        }
    }
}

fn sample(tokens: std::ops::Range<usize>, n: usize) -> Sample {
    Sample { tokens, advantage: 0.0, old: vec![0.0; n], reference: None, sampled: vec![0.0; n], age: 0 }
}

/// Two groups of two completions, one completion a row of 12, as the model scores them; `shift` moves old and reference values.
fn completions(seq_len: usize, shift: f32) -> MicroBatch {
    let mut random = random(31);
    let (mut rows, mut samples) = (Vec::new(), Vec::new());
    for (row, length) in [7usize, 10, 12, 9].into_iter().enumerate() {
        let mut tokens = TokenRow::default();
        for i in 0..seq_len {
            let real = i < length;
            tokens.ids.push(if real { 1 + random(31) as u32 } else { 0 });
            tokens.segments.push(if real { 0 } else { PADDING_SEGMENT });
            tokens.weights.push(if real && i >= 4 { 1.0 } else { 0.0 });
        }
        samples.push(sample(row * seq_len..row * seq_len + length, length - 4));
        rows.push(tokens);
        // The same tokens whatever the row length.
        (length..12).for_each(|_| _ = random(1));
    }
    let mut batch = batch(&rows);
    batch.samples = samples;
    let known = sample_logprobs(&model(), &batch, &Default::default()).unwrap();
    let advantages = advantages(&[vec![1.0, -0.3], vec![0.1, 0.7]], AdvantageScale::Group).concat();
    for ((sample, values), advantage) in batch.samples.iter_mut().zip(known).zip(advantages) {
        let moved = |by: f32| values.iter().enumerate().map(|(i, v)| v + by * (i as f32 * 1.7).sin()).collect();
        sample.advantage = advantage as f32;
        (sample.old, sample.reference, sample.sampled) = (moved(shift), Some(moved(0.3)), values.clone());
    }
    batch
}

fn loss_of(policy: &Policy, model: &Decoder<Cpu>, batch: &MicroBatch) -> Result<LossSum<Cpu>, TrainError> {
    policy.loss(&model.to_autodiff(), batch, &Replay::default(), &Default::default())
}

/// Sum, gradient of the embedding, metrics.
fn pass(policy: &Policy, batch: &MicroBatch) -> (f32, Vec<f32>, Vec<MetricSum>) {
    let tracked = model().to_autodiff();
    let loss = policy.loss(&tracked, batch, &Replay::default(), &Default::default()).unwrap();
    let sum = loss.sum.clone().inner().into_data().to_vec::<f32>().unwrap()[0];
    let metrics = (loss.metrics)(&loss.values.into_data().to_vec::<f32>().unwrap());
    let gradient = tracked.embedding.grad(&loss.sum.backward()).unwrap();
    (sum, leaf_values(kernels_cubecl::Leaf::Matrix(gradient)), metrics)
}

fn mean(metrics: &[MetricSum], name: &str) -> f64 {
    metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no metric {name}")).mean()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied()).max(f32::MIN_POSITIVE)
}

#[test]
fn s16_right_after_sampling_every_ratio_is_one_and_the_gradient_is_that_of_the_advantages() {
    let batch = completions(12, 0.0);
    let policy = Policy { beta: 0.0, ..GOLDEN };
    let (sum, gradient, metrics) = pass(&policy, &batch);
    let n: f64 = batch.samples.iter().map(|s| s.old.len() as f64).sum();
    assert_eq!(Objective::<Cpu>::units(&policy, &batch), n);
    assert_eq!((mean(&metrics, RATIO_DEVIATION), mean(&metrics, RATIO_BEYOND)), (0.0, 0.0));
    assert_eq!((mean(&metrics, "clip_low"), mean(&metrics, "clip_high")), (0.0, 0.0));
    assert!(mean(&metrics, "kl") > 0.0 && mean(&metrics, SAMPLER_BEYOND) == 0.0);
    let want: f32 = batch.samples.iter().map(|s| -s.advantage * s.old.len() as f32).sum();
    assert!((sum - want).abs() < 1e-4, "{sum}, want {want}");
    // −Σ A·log π: the policy gradient, which every sample is part of.
    let tracked = model().to_autodiff();
    let (targets, _) = batch.targets();
    let device = Default::default();
    let x = super::super::objective::hidden_md(&tracked, &batch, &Replay::default(), &device);
    let targets = Tensor::from_ints(targets.as_slice(), &device);
    let logprob = kernels_cubecl::token_logprobs(x, tracked.head(), targets);
    let mut weights = vec![0.0f32; 48];
    batch.samples.iter().for_each(|s| weights[s.tokens.clone()].fill(-s.advantage));
    let loss = (logprob * Tensor::from_floats(weights.as_slice(), &device)).sum();
    let plain = leaf_values(kernels_cubecl::Leaf::Matrix(tracked.embedding.grad(&loss.backward()).unwrap()));
    assert!(distance(&plain, &gradient) < 1e-5, "{}", distance(&plain, &gradient));
    // No sample is discarded: without any one of them the gradient is another.
    for left_out in 0..4 {
        let mut fewer = batch.clone();
        fewer.samples[left_out].advantage = 0.0;
        assert!(distance(&gradient, &pass(&policy, &fewer).1) > 1e-2, "sample {left_out}");
    }
}

#[test]
fn s16_every_knob_changes_the_first_gradient() {
    let batch = completions(12, 0.6);
    let policy = Policy { delta: Some(1.5), ..GOLDEN };
    let (_, gradient, metrics) = pass(&policy, &batch);
    assert!(mean(&metrics, "clip_low") > 0.0 && mean(&metrics, "clip_high") > 0.0, "{metrics:?}");
    assert!(mean(&metrics, RATIO_BEYOND) > 0.5);
    let knobs: [(&str, Policy); 9] = [
        ("grpo", Policy { aggregation: Aggregation::Grpo, ..policy }),
        ("bnpo", Policy { aggregation: Aggregation::Bnpo, ..policy }),
        ("level", Policy { level: RatioLevel::Sequence, ..policy }),
        ("clip_low", Policy { clip_low: 0.5, ..policy }),
        ("clip_high", Policy { clip_high: 0.05, ..policy }),
        ("delta", Policy { delta: None, ..policy }),
        ("beta", Policy { beta: 0.0, ..policy }),
        ("more beta", Policy { beta: 0.4, ..policy }),
        ("kl_bias_correction", Policy { kl_bias_correction: true, ..policy }),
    ];
    for (name, changed) in knobs {
        let (_, other, _) = pass(&changed, &batch);
        assert!(other.iter().all(|g| g.is_finite()) && distance(&gradient, &other) > 1e-4, "{name}");
    }
    // The sum of `dr_grpo` is that of `dapo`; what it is divided by differs.
    let dr_grpo = Policy { aggregation: Aggregation::DrGrpo, ..policy };
    assert_eq!(Objective::<Cpu>::units(&dr_grpo, &batch), 4.0 * 16.0);
    // The advantages' scale is a knob too.
    let rewards = [vec![1.0, -0.3], vec![0.1, 0.7]];
    let [group, whole, none] =
        [AdvantageScale::Group, AdvantageScale::Batch, AdvantageScale::None].map(|scale| advantages(&rewards, scale));
    assert!(group != whole && whole != none && group != none);
}

#[test]
fn equal_rewards_have_no_gradient_and_no_nan() {
    let mut batch = completions(12, 0.6);
    for scale in [AdvantageScale::Group, AdvantageScale::Batch, AdvantageScale::None] {
        let equal = advantages(&[vec![0.7, 0.7], vec![-0.3, -0.3]], scale).concat();
        batch.samples.iter_mut().zip(equal).for_each(|(sample, a)| sample.advantage = a as f32);
        for aggregation in [Aggregation::Grpo, Aggregation::Bnpo, Aggregation::DrGrpo, Aggregation::Dapo] {
            let (sum, gradient, _) = pass(&Policy { aggregation, beta: 0.0, ..GOLDEN }, &batch);
            assert!(sum == 0.0 && gradient.iter().all(|g| *g == 0.0), "{scale:?} {aggregation:?}");
        }
    }
}

#[test]
fn padding_changes_nothing() {
    let (short, long) = (completions(12, 0.4), completions(20, 0.4));
    for level in [RatioLevel::Token, RatioLevel::Sequence] {
        let policy = Policy { level, ..GOLDEN };
        let ((a, a_gradient, a_metrics), (b, b_gradient, b_metrics)) = (pass(&policy, &short), pass(&policy, &long));
        assert!((a - b).abs() < 1e-4 * a.abs().max(1.0) && distance(&a_gradient, &b_gradient) < 1e-4, "{a} {b}");
        assert!((mean(&a_metrics, "kl") - mean(&b_metrics, "kl")).abs() < 1e-5);
    }
}

#[test]
fn a_gradient_step_makes_the_better_completions_likelier() {
    let batch = completions(12, 0.0);
    let policy = Policy { beta: 0.0, ..GOLDEN };
    let tracked = model().to_autodiff();
    let loss = policy.loss(&tracked, &batch, &Replay::default(), &Default::default()).unwrap();
    let gradient = tracked.embedding.grad(&loss.sum.backward()).unwrap();
    let mut moved = model();
    let scale = 0.01 / gradient.clone().powi_scalar(2).sum().sqrt().into_scalar();
    moved.embedding = moved.embedding - gradient.mul_scalar(scale);
    let after = sample_logprobs(&moved, &batch, &Default::default()).unwrap();
    let gained: f32 = batch
        .samples
        .iter()
        .zip(&after)
        .map(|(s, a)| s.advantage * (a.iter().sum::<f32>() - s.old.iter().sum::<f32>()))
        .sum();
    assert!(gained > 0.0, "{gained}");
    let loss = |model: &Decoder<Cpu>| {
        let evaluated = Objective::<Cpu>::evaluate(&policy, model, &batch, &Default::default()).unwrap();
        assert_eq!(evaluated[0].name, "loss");
        evaluated[0].mean()
    };
    assert!(loss(&moved) < loss(&model()), "{} {}", loss(&moved), loss(&model()));
}

#[test]
fn routers_losses_count_once_a_unit() {
    let mut batch = completions(12, 0.2);
    let known = sample_logprobs(&mixture(), &batch, &Default::default()).unwrap();
    batch.samples.iter_mut().zip(known).for_each(|(sample, values)| sample.old = values);
    let of = |router| {
        let loss = loss_of(&Policy { router, ..GOLDEN }, &mixture(), &batch).unwrap();
        let sum = loss.sum.inner().into_data().to_vec::<f32>().unwrap()[0];
        (f64::from(sum), (loss.metrics)(&loss.values.into_data().to_vec::<f32>().unwrap()))
    };
    let ((plain, _), (with, metrics)) = (of(RouterWeights::NONE), of(RouterWeights { balance: 0.5, z: 0.25 }));
    let units = Objective::<Cpu>::units(&GOLDEN, &batch);
    let want = plain + units * (0.5 * mean(&metrics, "router_balance") + 0.25 * mean(&metrics, "router_z"));
    assert!((with - want).abs() <= 1e-5 * want.abs(), "{with} and {want}");
}

#[test]
fn batches_without_completions_or_values_and_bad_keys_are_refused() {
    let fails = |batch: &MicroBatch| loss_of(&GOLDEN, &model(), batch).map(drop).unwrap_err().to_string();
    let full = || completions(12, 0.0);
    let mut none = full();
    none.samples.clear();
    assert!(fails(&none).contains("no completions"));
    let mut silent = full();
    silent.weights.fill(0.0);
    assert!(fails(&silent).contains("without a sampled token"));
    let mut short = full();
    short.samples[1].old.pop();
    assert!(fails(&short).contains("6 sampled tokens has 5"), "{}", fails(&short));
    let mut alone = full();
    alone.samples[2].reference = None;
    assert!(fails(&alone).contains("reference log-probabilities are missing"));
    assert!(loss_of(&Policy { beta: 0.0, ..GOLDEN }, &model(), &alone).is_ok());
    for (key, policy) in [
        ("clip_low", Policy { clip_low: 1.0, ..GOLDEN }),
        ("clip_high", Policy { clip_high: f64::NAN, ..GOLDEN }),
        ("delta", Policy { delta: Some(1.1), ..GOLDEN }),
        ("beta", Policy { beta: -0.1, ..GOLDEN }),
        ("max_new_tokens", Policy { max_completion: 0, ..GOLDEN }),
    ] {
        assert!(policy.check().unwrap_err().to_string().contains(key), "{key}");
    }
    GOLDEN.check().unwrap();
}
