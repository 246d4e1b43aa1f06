//! A mixture of experts in the loop: what the routers' losses add, that they even the load out, and resuming.

use kernels_cubecl::Cpu;
use model_core::{Decoder, Experts, Family, GptOss, ModelConfig, Replay};

use super::tiny::{batch, config, model, model_config, parts, rows, run_from, source, values};
use crate::config::Blocks;
use crate::objective::{MetricSum, NextToken, Objective, RouterWeights};
use crate::{MicroBatch, TrainConfig, TrainError};

pub(super) fn mixture() -> Decoder<Cpu> {
    let experts = Experts { n: 4, top_k: 2, limit: 7.0, alpha: 1.702, balance_coef: 0.0 };
    let family = Family::GptOss(GptOss { window: 4, sliding: vec![true, false], experts });
    let config = ModelConfig { family, tied: false, init_std: 0.2, ..model_config() };
    Decoder::init(&config, 7, &Default::default())
}

fn loss_of(
    model: &Decoder<Cpu>,
    router: RouterWeights,
    batch: &MicroBatch,
    recompute: usize,
) -> Result<(f32, Vec<MetricSum>), TrainError> {
    let objective = NextToken { z_loss: 0.0, router };
    let loss = Objective::<Cpu>::loss(
        &objective,
        &model.to_autodiff(),
        batch,
        &Replay::first(recompute),
        &Default::default(),
    )?;
    let numbers = loss.values.into_data().to_vec::<f32>().unwrap();
    let sum = loss.sum.inner().into_data().to_vec::<f32>().unwrap()[0];
    Ok((sum, (loss.metrics)(&numbers)))
}

#[test]
fn losses_of_routers_count_as_often_as_the_units() {
    let (model, batch) = (mixture(), batch(&rows(6, 3)));
    let (plain, metrics) = loss_of(&model, RouterWeights::NONE, &batch, 0).unwrap();
    let names: Vec<_> = metrics.iter().map(|metric| metric.name).collect();
    assert_eq!(names, ["nll", "router_balance", "router_z", "expert_load_peak", "experts_idle"]);
    let [balance, z, peak, idle] = [1, 2, 3, 4].map(|at: usize| metrics[at].mean());
    assert!((1.9..2.5).contains(&balance) && z > 0.0, "{balance} {z}");
    assert!((1.0..=4.0).contains(&peak) && (0.0..1.0).contains(&idle), "{peak} {idle}");
    for recompute in [0, 2] {
        let (with, same) = loss_of(&model, RouterWeights { balance: 0.5, z: 0.25 }, &batch, recompute).unwrap();
        let want = f64::from(plain) + batch.weight_sum() * (0.5 * balance + 0.25 * z);
        assert!((f64::from(with) - want).abs() <= 1e-5 * want, "{with} and {want}");
        assert_eq!(same, metrics);
    }
}

#[test]
fn a_model_without_experts_has_no_such_losses() {
    let batch = batch(&rows(2, 3));
    assert_eq!(loss_of(&model(), RouterWeights::NONE, &batch, 0).unwrap().1.len(), 1);
    let error = loss_of(&model(), RouterWeights { balance: 0.1, z: 0.0 }, &batch, 0).unwrap_err().to_string();
    assert!(error.contains("`router`") && error.contains("no experts"), "{error}");
    for bad in [RouterWeights { balance: -1.0, z: 0.0 }, RouterWeights { balance: 0.0, z: f32::NAN }] {
        assert!(bad.check().unwrap_err().to_string().contains("key `router."), "{bad:?}");
    }
}

#[test]
fn the_balance_loss_evens_the_load_out() {
    let mut lopsided = mixture();
    for (_, moe) in lopsided.mixtures_mut() {
        let bias = burn::tensor::Tensor::from_floats([2.0, 1.0, 0.0, -1.0], &Default::default());
        moe.router_bias = bias;
    }
    let train = TrainConfig { lr: 0.01, ..config(40) };
    let last_peak = |router| {
        let objective = NextToken { z_loss: 0.0, router };
        let ran = run_from(&objective, source(rows(16, 3), &train), &train, parts(lopsided.clone(), &train));
        ran.seen.steps.last().unwrap().metrics.iter().find(|metric| metric.name == "expert_load_peak").unwrap().mean()
    };
    let (without, with) = (last_peak(RouterWeights::NONE), last_peak(RouterWeights { balance: 5.0, z: 0.0 }));
    assert!(with < without, "the busiest expert has {with} times the mean load, {without} without the loss");
}

#[test]
fn recomputed_mixtures_change_no_bit() {
    let objective = NextToken { z_loss: 0.0, router: RouterWeights { balance: 0.1, z: 0.01 } };
    let go = |recompute| {
        let train = TrainConfig { recompute, ..config(4) };
        run_from(&objective, source(rows(16, 3), &train), &train, parts(mixture(), &train)).model.unwrap()
    };
    let want = values(&go(Blocks::All(false)));
    for recompute in [Blocks::All(true), Blocks::First(1)] {
        assert_eq!(values(&go(recompute)), want, "{recompute:?}");
    }
}

#[test]
fn s28_what_ran_before_or_beside_a_run_changes_no_bit_of_it() {
    let objective = NextToken { z_loss: 0.0, router: RouterWeights::NONE };
    let train = config(3);
    let go = |model: Decoder<Cpu>| {
        values(&run_from(&objective, source(rows(16, 3), &train), &train, parts(model, &train)).model.unwrap())
    };
    let (dense, experts) = (go(model()), go(mixture()));
    assert_eq!((go(mixture()), go(model())), (experts.clone(), dense.clone()), "the other way round");
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|i| scope.spawn(move || if i % 2 == 0 { (0, go(model())) } else { (1, go(mixture())) }))
            .collect();
        for run in runs {
            let (which, got) = run.join().unwrap();
            assert_eq!(got, [&dense, &experts][which].clone(), "side by side");
        }
    });
}
