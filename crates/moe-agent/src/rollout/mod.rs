//! The rollout engine: episodes that a model plays with tools, token by token as it sampled them.
//!
//! An [`Environment`] begins with a conversation and answers the model's messages; [`Tasks`] have one each, and a [`World`] says what
//! finished [`Episode`]s are worth. [`Engine::play`] samples many episodes together with a cache. The ids of an episode are never
//! encoded again: what the model sampled stands there as it was sampled, and only that is trained on; the prompt, tool results and
//! the beginnings of messages are not.
//!
//! A message ends with `<|return|>`, `<|call|>` or `<|end|>`, after each of which somebody else has the word: so the model can
//! write neither a tool's result nor the user's messages.

mod engine;
mod episode;
mod error;
mod judged;
pub mod ranking;
mod reward;
mod stopwatch;
mod task;
mod task_set;
#[cfg(test)]
pub(crate) mod tests;

use model_core::harmony::{Conversation, Message};

pub use crate::tools::Files;
pub use engine::{Ask, Engine, Play, episode_number};
pub use episode::{Ending, Episode};
pub use error::RolloutError;
pub use judged::{JudgeKeys, JudgedWorld, Planted};
pub use reward::{Facts, Level, MAX_RETRIES, reward};
pub use stopwatch::Stopwatch;
pub use task::{PromptKeys, TaskEnvironment};
pub use task_set::{TaskSet, find_tasks, write_candidate};

/// How an environment answers a message of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The model goes on after these messages, which are not trained on.
    Reply {
        /// What tools said.
        messages: Vec<Message>,
        /// What tells the same trouble again, where a call did not work out.
        trouble: Option<String>,
    },
    /// The episode is over.
    Done,
    /// The message is no proper call; the episode is over. The text says what is wrong.
    Malformed(String),
}

/// One task as the model meets it.
pub trait Environment: Send {
    /// What stands before the model's first message.
    fn prompt(&self) -> Conversation;

    /// Answers a call, or takes the model's answer. Thoughts do not come here.
    ///
    /// # Errors
    /// A fault on this side, which says nothing about the model.
    fn act(&mut self, message: &Message) -> Result<Step, RolloutError>;

    /// What the model has made so far.
    fn candidate(&self) -> Files;
}

/// What an episode was worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Worth {
    /// The reward; `None` when nothing can be said, which is never a reward.
    pub reward: Option<f64>,
    /// How far the candidate came; `None` when nothing can be said.
    pub level: Option<Level>,
    /// The task is one that cannot be solved, and the candidate passed: it cheated.
    pub cheated: bool,
    /// Why nothing can be said, or what was wrong.
    pub reason: String,
}

/// Tasks that a model can be asked.
pub trait Tasks: Sync {
    /// Their ids, in their order.
    fn ids(&self) -> &[String];

    /// The environment of task `task` at its beginning.
    ///
    /// # Errors
    /// When it cannot be made.
    fn environment(&self, task: usize) -> Result<Box<dyn Environment + '_>, RolloutError>;
}

/// Tasks, and what comes of them.
pub trait World: Tasks {
    /// Hash over everything that decides what is asked and rewarded.
    fn fingerprint(&self) -> String;

    /// What finished episodes are worth, in their order; `seed` decides what is random about it.
    ///
    /// # Errors
    /// When nothing can be said about any of them.
    fn worth(&self, episodes: &[Episode], seed: u64) -> Result<Vec<Worth>, RolloutError>;
}
