//! Rewards: a level from the judge's judgement, and penalties.

use eval_rust::judge::{Judgement, Status};
use serde::{Deserialize, Serialize};

/// Retries with the same error that cost nothing.
pub const MAX_RETRIES: u64 = 5;
/// Costs of more of them.
const RETRIES_PENALTY: f64 = -0.5;
/// Costs of `unsafe` that was not there before.
const UNSAFE_PENALTY: f64 = -0.3;

/// How far a candidate came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// A call without a proper form: there is no candidate.
    BadFormat,
    /// It does not compile, alone or with the tests, is not accepted, or pretends that a test passed.
    CompileFailure,
    /// It compiles and a test fails.
    TestsFail,
    /// Every test passes and clippy has something to say.
    Warnings,
    /// Every test passes and clippy has nothing to say.
    Clean,
}

impl Level {
    /// What it is worth.
    pub fn reward(self) -> f64 {
        match self {
            Self::BadFormat => -1.0,
            Self::CompileFailure => -0.3,
            Self::TestsFail => 0.1,
            Self::Warnings => 0.7,
            Self::Clean => 1.0,
        }
    }

    /// The level of a judged candidate; `None` of an error of the judge.
    pub fn of(judgement: &Judgement) -> Option<Self> {
        match judgement.status {
            Status::Error => None,
            Status::Refused => Some(Self::CompileFailure),
            Status::Judged => Some(match (judgement.compiled, judgement.passed, judgement.clippy_clean) {
                (false, ..) => Self::CompileFailure,
                (true, false, _) if judgement.unsound => Self::CompileFailure,
                (true, false, _) => Self::TestsFail,
                (true, true, false) => Self::Warnings,
                (true, true, true) => Self::Clean,
            }),
        }
    }
}

/// What a reward asks of the episode itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// A message was no message, or a call no proper call.
    pub malformed: bool,
    /// Most often that the same error came again right after itself.
    pub retries: u64,
}

/// The level and the reward of an episode; `None` when the judge failed. A malformed one has no candidate and needs no judgement.
pub fn reward(judgement: Option<&Judgement>, facts: Facts) -> Option<(Level, f64)> {
    let (level, adds_unsafe) = match judgement {
        _ if facts.malformed => (Level::BadFormat, false),
        Some(judgement) => (Level::of(judgement)?, judgement.unsafe_added > 0),
        None => return None,
    };
    let penalty = |applies: bool, costs: f64| if applies { costs } else { 0.0 };
    let penalties = penalty(adds_unsafe, UNSAFE_PENALTY) + penalty(facts.retries > MAX_RETRIES, RETRIES_PENALTY);
    Some((level, level.reward() + penalties))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A judgement that passed everything, changed.
    pub(in crate::rollout) fn judgement(change: impl Fn(&mut serde_json::Value)) -> Judgement {
        let mut value = serde_json::json!({
            "version": 1, "task": "t", "task_hash": "", "candidate": "", "status": "judged", "passed": true, "compiled": true,
            "tests_passed": true, "tests_expected": 2, "tests_ok": 2, "tests_failed": [], "questions": 0,
            "answers_right": 0, "clippy_clean": true, "clippy_findings": 0, "lint_attributes_added": 0,
            "formatted": true, "unsafe_added": 0, "diff_lines": 2, "files_changed": 1, "wall_ms": 1, "cpu_ms": 1,
            "peak_memory_bytes": 1, "weaker": [], "seed": 1, "reason": "",
            "error_codes": [], "lints": [], "diagnostics": "",
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_table_of_rewards() {
        let of = |change: &dyn Fn(&mut serde_json::Value), malformed, retries| {
            reward(Some(&judgement(change)), Facts { malformed, retries }).map(|(_, reward)| reward)
        };
        let nothing = |_: &mut serde_json::Value| ();
        let failing = |v: &mut serde_json::Value| (v["passed"], v["tests_passed"]) = (false.into(), false.into());
        let warned = |v: &mut serde_json::Value| v["clippy_clean"] = false.into();
        let broken = |v: &mut serde_json::Value| {
            failing(v);
            v["compiled"] = false.into();
        };
        let unsound = |v: &mut serde_json::Value| {
            failing(v);
            v["unsound"] = true.into();
        };
        let refused = |v: &mut serde_json::Value| v["status"] = "refused".into();
        let unsafe_added = |v: &mut serde_json::Value| v["unsafe_added"] = 1.into();
        let error = |v: &mut serde_json::Value| v["status"] = "error".into();
        assert_eq!(of(&nothing, false, 0), Some(1.0));
        assert_eq!(of(&warned, false, 0), Some(0.7));
        assert_eq!(of(&failing, false, 0), Some(0.1));
        assert_eq!(of(&broken, false, 0), Some(-0.3));
        assert_eq!(of(&unsound, false, 0), Some(-0.3));
        assert_eq!(of(&nothing, true, 0), Some(-1.0));
        assert_eq!(of(&unsafe_added, false, 0), Some(1.0 - 0.3));
        assert_eq!(of(&nothing, false, 5), Some(1.0));
        assert_eq!(of(&nothing, false, 6), Some(1.0 - 0.5));
        // Whatever a refused judgement says besides.
        assert_eq!(of(&refused, false, 0), Some(-0.3));
        // A fault of the judge is no reward, also where the rest of it claims a pass.
        assert_eq!(of(&error, false, 0), None);
        assert_eq!(reward(None, Facts::default()), None);
        assert_eq!(reward(None, Facts { malformed: true, retries: 0 }), Some((Level::BadFormat, -1.0)));
    }
}
