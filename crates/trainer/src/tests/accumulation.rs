//! The one division by the units of the whole step: micro-batches, masked labels, recomputation.

use std::cell::RefCell;

use burn::backend::Autodiff;
use kernels_cubecl::{Cpu, Shelf, Traffic};
use model_core::{Decoder, Replay};

use super::tiny::{SEQ_LEN, batch, config, model, relative_difference, rows, run, values};
use crate::config::Blocks;
use crate::objective::{LossSum, MetricSum, NextToken, Objective, RouterWeights};
use crate::train::Outcome;
use crate::{MicroBatch, TrainConfig, TrainError};

const OBJECTIVE: NextToken = NextToken { z_loss: 1e-3, router: RouterWeights::NONE };

/// The large `eps` keeps Adam from blowing up the rounding of gradients that are close to zero.
fn with_micro_rows(n: u64) -> TrainConfig {
    TrainConfig { tokens_per_micro_batch: n * SEQ_LEN as u64, eps: 1e-3, ..config(6) }
}

#[test]
fn s08_four_micro_batches_equal_one_batch() {
    // Rows have different numbers of labels, so a mean of means would differ in the first digits.
    let rows = rows(24, 3);
    let labels: Vec<f64> = rows.iter().map(data_pipeline::TokenRow::weight_sum).collect();
    assert!(labels.iter().any(|n| *n != labels[0]), "the test needs rows of different weight");
    let whole = run(&OBJECTIVE, rows.clone(), &with_micro_rows(8));
    for n in [4, 2, 1] {
        let split = run(&OBJECTIVE, rows.clone(), &with_micro_rows(n));
        let difference = relative_difference(whole.model.as_ref().unwrap(), split.model.as_ref().unwrap());
        assert!(difference <= 1e-5, "micro-batches of {n} rows: {difference:e}");
        for (a, b) in whole.seen.steps.iter().zip(&split.seen.steps) {
            assert!((a.loss - b.loss).abs() <= 1e-6 * a.loss.abs(), "step {}: {} and {}", a.step, a.loss, b.loss);
            assert_eq!(a.units, b.units);
        }
    }
}

#[test]
fn recomputed_blocks_change_no_bit() {
    let plain = run(&OBJECTIVE, rows(24, 3), &config(4));
    let want = values(&plain.model.unwrap());
    for recompute in [Blocks::All(true), Blocks::First(1), Blocks::First(9)] {
        let recomputed = run(&OBJECTIVE, rows(24, 3), &TrainConfig { recompute, ..config(4) });
        assert_eq!(want, values(&recomputed.model.unwrap()), "{recompute:?}");
    }
}

/// [`OBJECTIVE`], which keeps the shelf of every micro-batch.
#[derive(Default)]
struct Watched(RefCell<Vec<Shelf>>);

impl Objective<Cpu> for Watched {
    fn units(&self, batch: &MicroBatch) -> f64 {
        Objective::<Cpu>::units(&OBJECTIVE, batch)
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<Cpu>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &<Cpu as burn::tensor::backend::BackendTypes>::Device,
    ) -> Result<LossSum<Cpu>, TrainError> {
        self.0.borrow_mut().push(replay.shelf.clone());
        OBJECTIVE.loss(model, batch, replay, device)
    }

    fn evaluate(
        &self,
        model: &Decoder<Cpu>,
        batch: &MicroBatch,
        device: &<Cpu as burn::tensor::backend::BackendTypes>::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        OBJECTIVE.evaluate(model, batch, device)
    }
}

#[test]
fn offloaded_inputs_change_no_bit() {
    let all = Blocks::All(true);
    let base = TrainConfig { recompute: all, ..config(4) };
    let plain = run(&OBJECTIVE, rows(24, 3), &base);
    let want = values(&plain.model.unwrap());
    // Blocks of the two that are there, and which of them are offloaded.
    for (recompute, offload, n) in [
        (all, Blocks::All(false), 0),
        (all, all, 2),
        (all, Blocks::First(1), 1),
        (all, Blocks::First(9), 2),
        (Blocks::First(1), all, 1),
    ] {
        let watched = Watched::default();
        let offloaded = run(&watched, rows(24, 3), &TrainConfig { recompute, offload, ..base.clone() });
        for (a, b) in plain.seen.steps.iter().zip(&offloaded.seen.steps) {
            let numbers = |step: &crate::observe::StepLog| (step.loss.to_bits(), step.grad_norm.to_bits());
            assert_eq!(numbers(a), numbers(b), "{recompute} {offload}, step {}", a.step);
        }
        assert_eq!(want, values(&offloaded.model.unwrap()), "{recompute} {offload}");
        let shelves = watched.0.into_inner();
        assert_eq!(shelves.len(), 8, "two micro-batches a step");
        let moved = Traffic { to_host: n, to_device: n };
        assert!(shelves.iter().all(|shelf| shelf.traffic() == moved), "{recompute} {offload}: {shelves:?}");
    }
}

#[test]
fn n8_a_step_without_labels_is_a_loss_of_zero_and_no_update() {
    let mut rows = rows(8, 3);
    rows.iter_mut().for_each(|row| row.weights.fill(0.0));
    let ran = run(&OBJECTIVE, rows, &config(3));
    assert_eq!(ran.outcome.unwrap(), Outcome::Finished);
    assert_eq!((ran.state.step, ran.state.updates, ran.state.skipped), (3, 0, 0));
    for step in &ran.seen.steps {
        assert_eq!((step.loss, step.grad_norm, step.units, step.skipped), (0.0, 0.0, 0.0, false));
        assert!(step.metrics.iter().all(|metric| metric.mean() == 0.0));
    }
    assert_eq!(values(&ran.model.unwrap()), values(&model()));
}

#[test]
fn a_micro_batch_without_labels_among_others_changes_nothing() {
    let rows = rows(8, 3);
    let mut half_masked = rows.clone();
    half_masked[4..].iter_mut().for_each(|row| row.weights.fill(0.0));
    let objective: &dyn Objective<Cpu> = &OBJECTIVE;
    let units = |rows: &[data_pipeline::TokenRow]| objective.units(&batch(rows));
    assert_eq!(units(&half_masked), units(&rows[..4]));
    assert_eq!(units(&half_masked[4..]), 0.0);
}

#[test]
fn the_loss_falls_and_the_counters_count() {
    let ran = run(&OBJECTIVE, rows(8, 3), &config(40));
    let (first, last) = (&ran.seen.steps[0], &ran.seen.steps[39]);
    assert!(last.loss < 0.7 * first.loss, "{} after {}", last.loss, first.loss);
    assert_eq!((ran.state.step, ran.state.updates), (40, 40));
    assert_eq!(ran.state.tokens_seen, 40 * 8 * SEQ_LEN as u64);
    assert_eq!(ran.state.units_seen, ran.seen.steps.iter().map(|step| step.units).sum::<f64>());
    // The loss is close to ln V at the start: the division is by label weight, not by tokens or rows.
    assert!((first.loss - (32f64).ln()).abs() < 0.3, "{}", first.loss);
}

#[test]
fn evaluation_agrees_with_the_training_loss() {
    let objective = NextToken { z_loss: 0.0, router: RouterWeights::NONE };
    let (model, device) = (model(), Default::default());
    let batch: MicroBatch = batch(&rows(6, 3));
    let loss = Objective::<Cpu>::loss(&objective, &model.to_autodiff(), &batch, &Replay::default(), &device).unwrap();
    let sum = f64::from(loss.sum.inner().into_data().to_vec::<f32>().unwrap()[0]);
    let evaluated = objective.evaluate(&model, &batch, &device).unwrap();
    assert_eq!(evaluated[0].name, "nll");
    assert!((evaluated[0].sum - sum).abs() <= 1e-5 * sum, "{} and {sum}", evaluated[0].sum);
    assert_eq!(evaluated[0].units, batch.weight_sum());
    assert_eq!((loss.metrics)(&[0.0])[0].units, batch.weight_sum());
}
