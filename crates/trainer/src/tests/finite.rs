//! Steps that are not finite: skipped before the weights change, counted, and limited.

use burn::backend::Autodiff;
use kernels_cubecl::Cpu;
use model_core::{Decoder, Replay};

use super::tiny::{config, model, rows, run, values};
use crate::objective::{LossSum, MetricSum, NextToken, Objective, RouterWeights};
use crate::train::Outcome;
use crate::{MicroBatch, TrainConfig, TrainError};
use std::cell::Cell;

/// What goes wrong in the chosen calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Poison {
    /// The loss is NaN, and with it every gradient.
    LossNan,
    /// The loss is infinite.
    LossInfinite,
    /// The loss is finite, one gradient is not.
    GradientNan,
}

/// Next-token prediction that breaks in some calls; there are two calls per step.
pub(super) struct Poisoned {
    poison: Poison,
    calls: Cell<u64>,
    broken: fn(u64) -> bool,
}

impl Poisoned {
    pub(super) fn new(poison: Poison, broken: fn(u64) -> bool) -> Self {
        Self { poison, calls: Cell::new(0), broken }
    }
}

const INNER: NextToken = NextToken { z_loss: 0.0, router: RouterWeights::NONE };

impl Objective<Cpu> for Poisoned {
    fn units(&self, batch: &MicroBatch) -> f64 {
        Objective::<Cpu>::units(&INNER, batch)
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<Cpu>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &<Cpu as burn::tensor::backend::BackendTypes>::Device,
    ) -> Result<LossSum<Cpu>, TrainError> {
        let mut loss = INNER.loss(model, batch, replay, device)?;
        let call = self.calls.replace(self.calls.get() + 1);
        if (self.broken)(call) {
            loss.sum = match self.poison {
                Poison::LossNan => loss.sum * f32::NAN,
                Poison::LossInfinite => loss.sum * f32::INFINITY,
                // The root of zero is zero, its slope is not finite.
                Poison::GradientNan => loss.sum + (model.embedding.clone() * 0.0).sqrt().sum(),
            };
        }
        Ok(loss)
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

#[test]
fn n1_one_bad_micro_batch_skips_exactly_one_step() {
    for poison in [Poison::LossNan, Poison::LossInfinite, Poison::GradientNan] {
        // Call 9 is the second micro-batch of step 5.
        let ran = run(&Poisoned::new(poison, |call| call == 9), rows(24, 3), &config(12));
        assert_eq!(ran.outcome.unwrap(), Outcome::Finished, "{poison:?}");
        let skipped: Vec<u64> = ran.seen.steps.iter().filter(|step| step.skipped).map(|step| step.step).collect();
        assert_eq!(skipped, [5], "{poison:?}");
        assert_eq!((ran.state.step, ran.state.updates, ran.state.skipped, ran.state.bad_streak), (12, 11, 1, 0));
        assert!(ran.state.window.mean().unwrap().is_finite(), "{poison:?}: the window is poisoned");
        let values = values(&ran.model.unwrap());
        assert!(values.iter().flatten().all(|v| v.is_finite()), "{poison:?}: a weight is not finite");
    }
}

#[test]
fn g13_the_step_after_a_bad_one_is_the_step_that_would_have_been() {
    // A skipped first step leaves model and moments as they were: what follows is a run that starts one batch later.
    let skipping = run(&Poisoned::new(Poison::LossNan, |call| call < 2), rows(24, 3), &config(1));
    assert_eq!(values(&skipping.model.unwrap()), values(&model()));
    assert_eq!((skipping.state.step, skipping.state.updates, skipping.state.window.len()), (1, 0, 0));
}

#[test]
fn n2_too_many_bad_steps_in_a_row_stop_the_run() {
    let ran = run(&Poisoned::new(Poison::LossInfinite, |call| call >= 8), rows(24, 3), &config(100));
    let error = ran.outcome.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(matches!(error, TrainError::NotFinite { step: 7, bad_steps: 3, .. }), "{error}");
    assert_eq!((ran.state.updates, ran.state.skipped), (4, 3));
}

#[test]
fn bad_steps_apart_from_each_other_do_not_add_up() {
    let limits = TrainConfig { max_bad_steps: 2, ..config(20) };
    let ran = run(&Poisoned::new(Poison::LossNan, |call| call % 4 == 0), rows(24, 3), &limits);
    assert_eq!(ran.outcome.unwrap(), Outcome::Finished);
    assert_eq!((ran.state.skipped, ran.state.updates), (10, 10));
}
