//! Adapters that train and adapters that are attached and do nothing.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use kernels_cubecl::Cpu;
use model_core::{Decoder, LoraConfig, ModelError, Replay};

use super::router::mixture;
use super::tiny::{Ran, config, model, parts, rows, run_from, source, values};
use crate::objective::{LossSum, MetricSum, NextToken, Objective, RouterWeights};
use crate::{MicroBatch, TrainConfig, TrainError};

const INNER: NextToken = NextToken { z_loss: 0.0, router: RouterWeights::NONE };

type Tracked = Decoder<Autodiff<Cpu>>;

/// Next-token prediction by a model that is not quite the one whose gradients are asked for.
struct Through(fn(&mut Tracked));

impl Objective<Cpu> for Through {
    fn units(&self, batch: &MicroBatch) -> f64 {
        Objective::<Cpu>::units(&INNER, batch)
    }

    fn loss(
        &self,
        model: &Tracked,
        batch: &MicroBatch,
        replay: &Replay,
        device: &<Cpu as burn::tensor::backend::BackendTypes>::Device,
    ) -> Result<LossSum<Cpu>, TrainError> {
        let mut other = model.clone();
        (self.0)(&mut other);
        INNER.loss(&other, batch, replay, device)
    }

    fn evaluate(
        &self,
        model: &Decoder<Cpu>,
        batch: &MicroBatch,
        device: &<Cpu as burn::tensor::backend::BackendTypes>::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        INNER.evaluate(model, batch, device)
    }
}

fn adapted(mut model: Decoder<Cpu>) -> Decoder<Cpu> {
    let targets = vec!["all-linear".to_owned()];
    let lora = LoraConfig { r: 2, alpha: 4.0, dropout: 0.0, rslora: false, targets, rank_pattern: Default::default() };
    model.attach_lora(&lora, 3).unwrap();
    model
}

fn train(model: Decoder<Cpu>, change: fn(&mut Tracked)) -> Ran {
    let train = TrainConfig { warmup_steps: 2, ..config(4) };
    run_from(&Through(change), source(rows(16, 3), &train), &train, parts(model, &train))
}

/// The message of a run that must end in update `update`.
fn inert(ran: Ran, update: u64) -> String {
    let error = ran.outcome.unwrap_err();
    assert!(matches!(&error, TrainError::Model(ModelError::AdapterInert { .. })), "{error}");
    assert_eq!((error.exit_code(), ran.state.updates), (3, update));
    error.to_string()
}

#[test]
fn s26_adapters_that_train_are_let_through_and_all_of_them_move() {
    for model in [adapted(model()), adapted(mixture())] {
        let names: Vec<_> = model.leaves().into_iter().map(|leaf| (leaf.name.clone(), leaf.is_adapter())).collect();
        let before = values(&model);
        let ran = train(model, |_| ());
        ran.outcome.unwrap();
        for ((before, after), (name, is_adapter)) in before.iter().zip(values(&ran.model.unwrap())).zip(names) {
            assert_eq!(*before != after, is_adapter, "{name}");
        }
    }
}

#[test]
fn s26_an_adapter_that_is_attached_by_name_only_ends_the_run() {
    let text = inert(train(adapted(mixture()), |model| model.mixtures_mut()[1].1.gate_up.adapter = None), 1);
    assert!(text.contains("model.layers.1.mlp.experts.gate_up_proj.lora_B.weight (expert 0)"), "{text}");
    assert!(!text.contains("layers.0") && text.contains("gradient that is not zero"), "{text}");
    let of_attention = |model: &mut Tracked| model.linears_mut()[0].1.adapters[1] = None;
    let text = inert(train(adapted(model()), of_attention), 1);
    assert!(text.contains("got 1 that do not: model.layers.0.self_attn.k_proj.lora_B.weight;"), "{text}");
}

#[test]
fn s26_one_dead_expert_among_live_ones_is_found() {
    let one = |model: &mut Tracked| {
        let mut mixtures = model.mixtures_mut();
        let lora = mixtures[0].1.down.adapter.as_mut().unwrap();
        let [rows, _] = lora.b.dims();
        let (from, n) = (2 * rows / 4, rows / 4);
        let dead = lora.b.clone().narrow(0, from, n).detach();
        let [before, behind] = [lora.b.clone().narrow(0, 0, from), lora.b.clone().narrow(0, from + n, rows - from - n)];
        lora.b = Tensor::cat(vec![before, dead, behind], 0);
    };
    let text = inert(train(adapted(mixture()), one), 1);
    assert!(
        text.contains("got 1 that do not: model.layers.0.mlp.experts.down_proj.lora_B.weight (expert 2);"),
        "{text}"
    );
}

#[test]
fn s26_the_first_factor_must_live_as_soon_as_the_second_is_not_zero() {
    let first = |model: &mut Tracked| {
        let mut mixtures = model.mixtures_mut();
        let lora = mixtures[1].1.down.adapter.as_mut().unwrap();
        lora.a = lora.a.clone().detach();
    };
    let text = inert(train(adapted(mixture()), first), 2);
    assert!(
        text.contains("got 4 that do not: model.layers.1.mlp.experts.down_proj.lora_A.weight (expert 0)"),
        "{text}"
    );
}

#[test]
fn s26_an_expert_without_tokens_is_not_expected_to_train() {
    let mut lonely = adapted(mixture());
    for (_, moe) in lonely.mixtures_mut() {
        moe.router_bias = Tensor::from_floats([0.0, 0.0, 0.0, -1e4], &Default::default());
    }
    let ran = train(lonely, |_| ());
    ran.outcome.unwrap();
    let model = ran.model.unwrap();
    for (name, moe) in model.mixtures() {
        let b = moe.down.adapter.as_ref().unwrap().b.clone();
        let [rows, _] = b.dims();
        let of = |expert: usize| b.clone().narrow(0, expert * rows / 4, rows / 4).abs().sum().into_scalar();
        assert!(of(0) > 0.0 && of(3) == 0.0, "{name}");
    }
}

#[test]
fn s26_a_rate_that_moves_nothing_ends_the_run() {
    let train = TrainConfig { lr: 1e-300, min_lr: 1e-300, ..config(4) };
    let ran = run_from(&INNER, source(rows(16, 3), &train), &train, parts(adapted(mixture()), &train));
    let text = inert(ran, 1);
    assert!(text.contains("with a gradient to change"), "{text}");
}
