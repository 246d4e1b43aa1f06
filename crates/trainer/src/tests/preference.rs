//! Preference losses against golden numbers, and what they refuse.

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use data_pipeline::TokenRow;
use kernels_cubecl::Cpu;
use model_core::hf::TensorFile;
use model_core::{Decoder, Replay};

use super::router::mixture;
use super::tiny::{batch, model, random};
use crate::objective::{
    MetricSum, Objective, Preference, PreferenceLoss, RouterWeights, pair_losses, reference_logprobs,
};
use crate::{MicroBatch, Pair, TrainError};

type Vector = Tensor<Autodiff<Cpu>, 1>;

const SMOOTHING: f64 = 0.2;

fn preference(loss: PreferenceLoss) -> Preference {
    Preference { loss, beta: 0.1, router: RouterWeights::NONE }
}

/// Name in the golden file and the loss.
fn golden_losses() -> [(&'static str, PreferenceLoss); 4] {
    [
        ("sigmoid", PreferenceLoss::Sigmoid { label_smoothing: 0.0 }),
        ("cdpo", PreferenceLoss::Sigmoid { label_smoothing: SMOOTHING }),
        ("robust", PreferenceLoss::Robust { label_smoothing: SMOOTHING }),
        ("ipo", PreferenceLoss::Ipo { length_normalised: true }),
    ]
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // NaN compares as false and fails.
        assert!((got - want).abs() <= 1e-6 + 2e-6 * want.abs(), "{what}[{i}]: {got}, want {want}");
    }
}

#[test]
fn the_dpo_family_reproduces_the_golden_losses_and_gradients() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/losses.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let read = |name: &str| file.read_f32(&format!("dpo.{name}")).unwrap();
    let device = Default::default();
    let vector = |values: Vec<f32>| Vector::from_floats(values.as_slice(), &device);
    for (name, loss) in golden_losses() {
        let (chosen, rejected) = (vector(read("pc")).require_grad(), vector(read("pr")).require_grad());
        let lengths = [vector(read("lc")), vector(read("lr"))];
        let ratios = (chosen.clone() - vector(read("rc")), rejected.clone() - vector(read("rr")));
        let per_pair = pair_losses(&preference(loss), ratios.0, ratios.1, lengths);
        let host = |tensor: Tensor<Cpu, 1>| tensor.into_data().to_vec::<f32>().unwrap();
        close(&format!("{name}.per"), &host(per_pair.clone().inner()), &read(&format!("{name}.per")));
        let mean = per_pair.mean();
        close(&format!("{name}.loss"), &host(mean.clone().inner()), &read(&format!("{name}.loss")));
        let gradients = mean.backward();
        close(&format!("{name}.gc"), &host(chosen.grad(&gradients).unwrap()), &read(&format!("{name}.gc")));
        close(&format!("{name}.gr"), &host(rejected.grad(&gradients).unwrap()), &read(&format!("{name}.gr")));
    }
}

/// `n` rows with prompt and chosen answer in one segment, prompt and rejected answer in the next.
fn pairs(n: usize, with_reference: bool) -> MicroBatch {
    let mut random = random(17);
    let (mut rows, mut pairs) = (Vec::new(), Vec::new());
    for row in 0..n {
        let mut tokens = TokenRow::default();
        let lengths = [5 + random(2) as usize, 5];
        for (segment, &length) in lengths.iter().enumerate() {
            for i in 0..length {
                tokens.ids.push(1 + random(31) as u32);
                tokens.segments.push(segment as u32);
                tokens.weights.push(if i < 3 { 0.0 } else { 1.0 });
            }
        }
        while tokens.ids.len() < 12 {
            tokens.ids.push(0);
            tokens.segments.push(data_pipeline::PADDING_SEGMENT);
            tokens.weights.push(0.0);
        }
        let start = row * 12;
        let middle = start + lengths[0];
        pairs.push(Pair { chosen: start..middle, rejected: middle..middle + lengths[1], reference: None });
        rows.push(tokens);
    }
    let mut batch = batch(&rows);
    batch.pairs = pairs;
    if with_reference {
        let reference = reference_logprobs(&model(), &batch, &Default::default()).unwrap();
        batch.pairs.iter_mut().zip(reference).for_each(|(pair, sums)| pair.reference = Some(sums));
    }
    batch
}

fn mean(metrics: &[MetricSum], name: &str) -> f64 {
    metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no metric {name}")).mean()
}

#[test]
fn s15_no_preference_loss_runs_without_reference_log_probabilities() {
    let batch = pairs(2, false);
    for (name, loss) in golden_losses().into_iter().chain([("hinge", PreferenceLoss::Hinge)]) {
        let objective = preference(loss);
        let train =
            Objective::<Cpu>::loss(&objective, &model().to_autodiff(), &batch, &Replay::default(), &Default::default());
        let eval = Objective::<Cpu>::evaluate(&objective, &model(), &batch, &Default::default());
        for error in [train.map(|_| ()).unwrap_err(), eval.map(|_| ()).unwrap_err()] {
            assert!(matches!(error, TrainError::Batch { .. }) && error.exit_code() == 2, "{name}: {error}");
            let text = error.to_string();
            assert!(
                text.contains("reference log-probabilities are missing") && text.contains("IPO included"),
                "{text}"
            );
        }
    }
}

#[test]
fn at_the_reference_every_reward_is_zero_and_the_losses_are_known() {
    let batch = pairs(3, true);
    let at_zero = |loss: PreferenceLoss| {
        let objective = preference(loss);
        let loss = objective.loss(&model().to_autodiff(), &batch, &Replay::default(), &Default::default()).unwrap();
        let values = loss.values.into_data().to_vec::<f32>().unwrap();
        let metrics = (loss.metrics)(&values);
        for name in ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"] {
            assert!(mean(&metrics, name).abs() < 1e-6, "{name}");
        }
        assert!(mean(&metrics, "logps/chosen") < -1.0 && mean(&metrics, "logps/rejected") < -1.0);
        let sum = f64::from(loss.sum.inner().into_data().to_vec::<f32>().unwrap()[0]);
        let units = Objective::<Cpu>::units(&objective, &batch);
        assert_eq!(units, 3.0);
        let evaluated = Objective::<Cpu>::evaluate(&objective, &model(), &batch, &Default::default()).unwrap();
        assert_eq!(evaluated[0].name, "loss");
        assert!((evaluated[0].sum - sum).abs() < 1e-4 * sum.abs(), "{} and {sum}", evaluated[0].sum);
        sum / units
    };
    let ln2 = std::f64::consts::LN_2;
    assert!((at_zero(PreferenceLoss::Sigmoid { label_smoothing: 0.0 }) - ln2).abs() < 1e-5);
    assert!((at_zero(PreferenceLoss::Sigmoid { label_smoothing: 0.3 }) - ln2).abs() < 1e-5);
    assert!((at_zero(PreferenceLoss::Robust { label_smoothing: 0.3 }) - ln2).abs() < 1e-5);
    assert!((at_zero(PreferenceLoss::Hinge) - 1.0).abs() < 1e-5);
    for length_normalised in [false, true] {
        assert!((at_zero(PreferenceLoss::Ipo { length_normalised }) - 25.0).abs() < 1e-3);
    }
}

#[test]
fn a_gradient_step_widens_the_margin() {
    let batch = pairs(3, true);
    for (name, loss) in golden_losses() {
        let objective = preference(loss);
        let tracked = model().to_autodiff();
        let loss =
            Objective::<Cpu>::loss(&objective, &tracked, &batch, &Replay::default(), &Default::default()).unwrap();
        let gradients = loss.sum.backward();
        let head = tracked.embedding.grad(&gradients).unwrap();
        let mut moved = model();
        let scale = 0.01 / head.clone().powi_scalar(2).sum().sqrt().into_scalar();
        moved.embedding = moved.embedding - head.mul_scalar(scale);
        let after = Objective::<Cpu>::evaluate(&objective, &moved, &batch, &Default::default()).unwrap();
        assert!(mean(&after, "rewards/margins") > 0.0, "{name}: {}", mean(&after, "rewards/margins"));
    }
}

#[test]
fn ipo_with_and_without_lengths_are_different_losses() {
    let device = Default::default();
    let vector = |values: [f32; 1]| Tensor::<Cpu, 1>::from_floats(values, &device);
    let loss = |length_normalised: bool| {
        let config = preference(PreferenceLoss::Ipo { length_normalised });
        let per_pair = pair_losses(&config, vector([8.0]), vector([2.0]), [vector([4.0]), vector([2.0])]);
        per_pair.into_data().to_vec::<f32>().unwrap()[0]
    };
    // (8 − 2 − 5)² and (8/4 − 2/2 − 5)².
    assert!((loss(false) - 1.0).abs() < 1e-6 && (loss(true) - 16.0).abs() < 1e-6);
}

#[test]
fn configurations_must_say_what_they_mean() {
    let parse = |text: &str| toml::from_str::<PreferenceLoss>(text);
    assert_eq!(
        parse("kind = 'ipo'\nlength_normalised = true").unwrap(),
        PreferenceLoss::Ipo { length_normalised: true }
    );
    // The normalisation has no default, and one loss does not take another's keys.
    assert!(parse("kind = 'ipo'").unwrap_err().to_string().contains("length_normalised"));
    assert!(parse("kind = 'ipo'\nlength_normalised = true\nlabel_smoothing = 0.1").is_err());
    assert!(parse("kind = 'dpo'").unwrap_err().to_string().contains("sigmoid"));
    let check = |loss, beta| Preference { loss, beta, router: RouterWeights::NONE }.check();
    assert!(check(PreferenceLoss::Hinge, 0.1).is_ok());
    for (loss, beta, key) in [
        (PreferenceLoss::Hinge, 0.0, "beta"),
        (PreferenceLoss::Hinge, f64::NAN, "beta"),
        (PreferenceLoss::Hinge, f64::INFINITY, "beta"),
        (PreferenceLoss::Robust { label_smoothing: 0.5 }, 0.1, "label_smoothing"),
        (PreferenceLoss::Sigmoid { label_smoothing: -0.1 }, 0.1, "label_smoothing"),
    ] {
        assert!(check(loss, beta).unwrap_err().to_string().contains(key));
    }
}

#[test]
fn batches_without_pairs_or_answers_are_refused() {
    let objective = preference(PreferenceLoss::Hinge);
    let loss = |batch: &MicroBatch| {
        let result =
            Objective::<Cpu>::loss(&objective, &model().to_autodiff(), batch, &Replay::default(), &Default::default());
        result.map(|_| ()).unwrap_err().to_string()
    };
    let mut empty = pairs(2, true);
    empty.pairs.clear();
    assert!(loss(&empty).contains("no preference pairs"));
    let mut silent = pairs(2, true);
    silent.weights.fill(0.0);
    assert!(loss(&silent).contains("answer without a token"));
}

#[test]
fn routers_losses_count_once_a_pair() {
    let model = mixture();
    let mut batch = pairs(3, false);
    let reference = reference_logprobs(&model, &batch, &Default::default()).unwrap();
    batch.pairs.iter_mut().zip(reference).for_each(|(pair, sums)| pair.reference = Some(sums));
    let of = |model: &Decoder<Cpu>, loss, router| {
        let objective = Preference { loss, beta: 0.1, router };
        let loss = objective.loss(&model.to_autodiff(), &batch, &Replay::default(), &Default::default())?;
        let sum = f64::from(loss.sum.clone().inner().into_data().to_vec::<f32>().unwrap()[0]);
        let metrics = (loss.metrics)(&loss.values.into_data().to_vec::<f32>().unwrap());
        Ok::<_, TrainError>((sum, metrics, loss.sum))
    };
    for (name, loss) in golden_losses() {
        let (plain, without, _) = of(&model, loss, RouterWeights::NONE).unwrap();
        let (with, metrics, sum) = of(&model, loss, RouterWeights { balance: 0.5, z: 0.25 }).unwrap();
        assert_eq!(metrics, without, "{name}");
        let want = plain + 3.0 * (0.5 * mean(&metrics, "router_balance") + 0.25 * mean(&metrics, "router_z"));
        assert!((with - want).abs() <= 1e-5 * want, "{name}: {with} and {want}");
        assert!(mean(&metrics, "expert_load_peak") >= 1.0 && mean(&metrics, "rewards/margins").abs() < 1e-5);
        drop(sum);
    }
    let tracked = model.to_autodiff();
    let objective = preference(PreferenceLoss::Ipo { length_normalised: true });
    let loss = objective.loss(&tracked, &batch, &Replay::default(), &Default::default()).unwrap();
    let gradients = loss.sum.backward();
    for (name, moe) in tracked.mixtures() {
        let squares = moe.router_weight.grad(&gradients).unwrap().powi_scalar(2).sum().into_scalar();
        assert!(squares.is_finite() && squares > 0.0, "the router of {name} trains");
    }
    let dense = of(&self::model(), PreferenceLoss::Hinge, RouterWeights { balance: 0.1, z: 0.0 });
    assert!(dense.map(drop).unwrap_err().to_string().contains("no experts"));
}
