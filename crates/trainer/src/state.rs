//! Everything the loop must remember to continue bit for bit.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Losses in the window that the logs average over.
const WINDOW: usize = 64;

/// The loop's one state; a checkpoint holds it beside weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Completed steps, skipped ones included: the position in the data.
    pub step: u64,
    /// Steps that changed the weights: AdamW's clock.
    pub updates: u64,
    /// Label weight or pairs trained on, as f64 bits, so that the text form is exact.
    #[serde(with = "bits")]
    pub units_seen: f64,
    /// Tokens worked on, padding included.
    pub tokens_seen: u64,
    /// Skipped steps.
    pub skipped: u64,
    /// Skipped steps in a row.
    pub bad_streak: u64,
    /// Recent finite losses; a loss that is not finite never enters.
    pub window: LossWindow,
    /// Best evaluation.
    pub best: Option<Best>,
    /// Last evaluation.
    pub last_eval: Option<Best>,
    /// Best evaluation of which there is a checkpoint; saves that a signal asked for do not count, so that the state of a
    /// resumed run is that of an uninterrupted one.
    pub best_saved: Option<Best>,
    /// Step of the last evaluation.
    pub evaluated_at: Option<u64>,
    /// Step of the last checkpoint.
    pub saved_at: Option<u64>,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Its value; lower is better.
    #[serde(with = "bits")]
    pub value: f64,
}

impl Best {
    /// The better one of this and `other`; this one among equals, and any finite one before one that is not.
    pub fn or_better(this: Option<Self>, other: Option<Self>) -> Option<Self> {
        let other = other.filter(|other| other.value.is_finite());
        match (this, other) {
            (Some(this), Some(other)) if other.value < this.value => Some(other),
            (None, other) => other,
            (this, _) => this,
        }
    }
}

/// The last finite losses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LossWindow(VecDeque<u64>);

impl LossWindow {
    /// Takes a loss in; one that is not finite is left out, so that a single NaN cannot poison the window.
    pub fn push(&mut self, loss: f64) {
        if !loss.is_finite() {
            return;
        }
        self.0.push_back(loss.to_bits());
        if self.0.len() > WINDOW {
            self.0.pop_front();
        }
    }

    /// Mean of the window, `None` while it is empty.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 = self.0.iter().map(|&bits| f64::from_bits(bits)).sum();
        (!self.0.is_empty()).then(|| sum / self.0.len() as f64)
    }

    /// Losses in the window.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing has entered yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// f64 as its bits: decimal text would need a parser that rounds exactly.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_ignores_what_is_not_finite_and_forgets_the_old() {
        let mut window = LossWindow::default();
        assert_eq!(window.mean(), None);
        for loss in [1.0, f64::NAN, f64::INFINITY, 3.0] {
            window.push(loss);
        }
        assert_eq!((window.len(), window.mean()), (2, Some(2.0)));
        for _ in 0..WINDOW {
            window.push(5.0);
        }
        assert_eq!((window.len(), window.mean()), (WINDOW, Some(5.0)));
    }

    #[test]
    fn the_better_one_is_finite_lower_and_earlier() {
        let eval = |step: u64, value: f64| Some(Best { step, value });
        let step = |best: Option<Best>| best.map(|best| best.step);
        assert_eq!(step(Best::or_better(None, eval(1, 2.0))), Some(1));
        assert_eq!(step(Best::or_better(None, eval(1, f64::NAN))), None);
        assert_eq!(step(Best::or_better(eval(1, 2.0), None)), Some(1));
        assert_eq!(step(Best::or_better(eval(1, 2.0), eval(2, 1.0))), Some(2));
        for value in [2.0, 3.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(step(Best::or_better(eval(1, 2.0), eval(2, value))), Some(1), "{value}");
        }
    }

    #[test]
    fn the_text_form_is_exact() {
        let mut state = TrainState { units_seen: 0.1 + 0.2, ..TrainState::default() };
        state.best = Some(Best { step: 3, value: 1.0 / 3.0 });
        state.window.push(f64::MIN_POSITIVE);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TrainState>(&text).unwrap(), state);
        assert!(serde_json::from_str::<TrainState>(&text.replace("{\"step\"", "{\"x\":1,\"step\"")).is_err());
    }
}
