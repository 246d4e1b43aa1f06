//! An episode: the tokens, who made them, and how it went.

use model_core::generate::Score;
use model_core::harmony::Message;
use serde::{Deserialize, Serialize};

use super::{Facts, Files};

/// Why an episode ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The model answered.
    Answered,
    /// The model wrote something that is no message or no proper call.
    Malformed(String),
    /// The model had its number of turns, or thought too often.
    Turns,
    /// There was no room for more, or a message was cut off.
    Length,
}

/// What a model and its tools did about a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// Place of the task among the tasks.
    pub task: usize,
    /// Number of the sample within the task.
    pub sample: u64,
    /// All tokens, the prompt first.
    pub ids: Vec<u32>,
    /// For each token whether the model sampled it.
    pub sampled: Vec<bool>,
    /// What the model thought of each token that it sampled, whatever temperature and limits it was chosen under.
    pub scores: Vec<Score>,
    /// Temperature of the choices.
    pub temperature: f32,
    /// The most likely tokens that a choice was made among hold this probability together.
    pub top_p: f32,
    /// The messages after the prompt.
    pub messages: Vec<Message>,
    /// Why it ended.
    pub ending: Ending,
    /// Turns of the model: calls and the answer, thoughts not counted; at least 1.
    pub turns: u64,
    /// Calls that it made or meant to make.
    pub calls: u64,
    /// Those that were proper calls.
    pub calls_well_formed: u64,
    /// Most often that a trouble came again right after itself.
    pub retries: u64,
    /// What it made.
    pub candidate: Files,
    /// Seconds until it ended, from when its batch began.
    pub seconds: f64,
}

impl Episode {
    /// Tokens that the model sampled.
    pub fn n_sampled(&self) -> usize {
        self.scores.len()
    }

    /// What a reward asks of the episode itself.
    pub fn facts(&self) -> Facts {
        Facts { malformed: matches!(self.ending, Ending::Malformed(_)), retries: self.retries }
    }
}
