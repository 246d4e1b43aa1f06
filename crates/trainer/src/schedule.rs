//! Learning-rate schedules as pure functions of the step.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate over a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine from `lr` down to `min_lr` after the warm-up.
    Cosine,
    /// A straight line from `lr` down to `min_lr` after the warm-up.
    Linear,
    /// Warm-up, stable at `lr`, then a straight line down to `min_lr` over the last `decay_steps`.
    Wsd,
    /// `lr` after the warm-up.
    Constant,
}

/// What a schedule needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// Shape.
    pub schedule: Schedule,
    /// Peak.
    pub lr: f64,
    /// Floor, reached at `max_steps`.
    pub min_lr: f64,
    /// Steps of linear warm-up from `lr / warmup_steps`.
    pub warmup_steps: u64,
    /// Steps of the final descent of [`Schedule::Wsd`].
    pub decay_steps: u64,
    /// Length that shapes the schedule.
    pub max_steps: u64,
}

impl LearningRate {
    /// The learning rate of a step counted from 0; stays at the floor beyond `max_steps`.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let (start, length) = match self.schedule {
            Schedule::Constant => return self.lr,
            Schedule::Wsd => (self.max_steps.saturating_sub(self.decay_steps), self.decay_steps),
            Schedule::Cosine | Schedule::Linear => (self.warmup_steps, self.max_steps - self.warmup_steps),
        };
        if step < start {
            return self.lr;
        }
        let progress = ((step - start) as f64 / length.max(1) as f64).min(1.0);
        let remaining = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            _ => 1.0 - progress,
        };
        self.min_lr + (self.lr - self.min_lr) * remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule) -> LearningRate {
        LearningRate { schedule, lr: 1.0, min_lr: 0.1, warmup_steps: 4, decay_steps: 10, max_steps: 24 }
    }

    #[test]
    fn warm_up_rises_linearly_and_ends_at_the_peak() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Wsd, Schedule::Constant] {
            let got: Vec<f64> = (0..5).map(|step| rate(schedule).at(step)).collect();
            assert_eq!(got, [0.25, 0.5, 0.75, 1.0, 1.0], "{schedule:?}");
        }
    }

    #[test]
    fn s11_min_lr_is_reached_not_ignored() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Wsd] {
            assert!((rate(schedule).at(24) - 0.1).abs() < 1e-12, "{schedule:?} must end at min_lr");
            assert!((rate(schedule).at(1000) - 0.1).abs() < 1e-12, "{schedule:?} must stay at min_lr");
        }
        assert_eq!(rate(Schedule::Constant).at(1000), 1.0);
    }

    #[test]
    fn middles_are_where_the_formulas_say() {
        assert!((rate(Schedule::Cosine).at(14) - 0.55).abs() < 1e-12);
        assert!((rate(Schedule::Linear).at(14) - 0.55).abs() < 1e-12);
        assert_eq!(rate(Schedule::Wsd).at(13), 1.0);
        assert!((rate(Schedule::Wsd).at(19) - 0.55).abs() < 1e-12);
    }
}
