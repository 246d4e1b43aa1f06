//! Why there is no score.

use crate::TooFewSamples;

pub(super) type Result<T, E = ScoreError> = std::result::Result<T, E>;

/// What keeps judgements from being scored; `what` names the file by its role.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// There is nothing to score.
    #[error("no judgement of a task that can be solved: a rate over nothing is undefined; run the judge first")]
    Empty,
    /// A task is not there, or of it only errors of the judge are.
    #[error(
        "{what}: task `{task}` has no judgement; judge its candidates, a task that is left out must not help a score"
    )]
    Missing {
        /// Judgements or baseline.
        what: &'static str,
        /// The task.
        task: String,
    },
    /// A task that should not be there.
    #[error("{what}: task `{task}` is not one of the tasks that are scored; compare only the same tasks")]
    Unknown {
        /// Judgements or baseline.
        what: &'static str,
        /// The task.
        task: String,
    },
    /// A task has fewer samples than another.
    #[error("{what}: task `{task}` has {samples} samples, others have {most}; judge as many candidates of every task")]
    Uneven {
        /// Judgements or baseline.
        what: &'static str,
        /// The task.
        task: String,
        /// Its samples.
        samples: usize,
        /// Samples of others.
        most: usize,
    },
    /// A task was another one when it was judged.
    #[error("{what}: task `{task}` has changed between two judgements; judge all of them over the same tasks")]
    TaskChanged {
        /// Judgements or baseline.
        what: &'static str,
        /// The task.
        task: String,
    },
    /// The judge failed too often.
    #[error(
        "{what}: {errors} of {n} judgements are errors of the judge, at most {most} of all may be; the first: {first}; mend the \
         judge's machine and judge again, an error says nothing about a candidate"
    )]
    JudgeErrors {
        /// Judgements or baseline.
        what: &'static str,
        /// Errors.
        errors: usize,
        /// Judgements.
        n: usize,
        /// The largest share.
        most: f64,
        /// What the first one says.
        first: String,
    },
    /// pass@k needs more samples.
    #[error("task `{task}`: {source}")]
    Samples {
        /// The task.
        task: String,
        /// What is missing.
        source: TooFewSamples,
    },
    /// Episodes and judgements are not of the same samples.
    #[error("task `{task}`, sample {sample}: {what}; give the episodes of exactly the candidates that were judged")]
    Episode {
        /// The task.
        task: String,
        /// The sample.
        sample: u64,
        /// What does not fit.
        what: &'static str,
    },
}
